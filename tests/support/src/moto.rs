//! A KMS over the wire.

use std::env;
use std::fs;
use std::io;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::{Message, authority};

/// A running moto, shared by the tests of a process.
#[derive(Clone, Debug)]
pub struct Moto(Arc<Server>);

impl Moto {
    /// The moto of `NIMBUS_TEST_MOTO_URL`, or one that this process starts and shares.
    ///
    /// # Panics
    /// When there is none to use: what to install is in the message.
    #[must_use]
    pub fn start() -> Self {
        static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = shared.upgrade() {
            return Self(server);
        }
        let server = Arc::new(match env::var("NIMBUS_TEST_MOTO_URL") {
            Ok(url) => Server { url, process: None },
            Err(_) => Server::spawn(),
        });
        *shared = Arc::downgrade(&server);
        Self(server)
    }

    /// Where it listens, as `http://127.0.0.1:<port>`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// A new symmetric key in `us-east-1`; its ARN.
    #[must_use]
    pub fn create_key(&self) -> String {
        let reply = self.kms("us-east-1", "CreateKey", &json!({}));
        reply["KeyMetadata"]["Arn"]
            .as_str()
            .expect("moto names the key it made")
            .to_owned()
    }

    /// Calls a KMS action directly, as an administrator would.
    ///
    /// # Panics
    /// When moto answers with an error.
    pub fn kms(&self, region: &str, action: &str, input: &Value) -> Value {
        let body = input.to_string().into_bytes();
        let host = authority(self.url());
        let request = Message {
            head: vec![
                "POST / HTTP/1.1".into(),
                format!("Host: {host}"),
                "Content-Type: application/x-amz-json-1.1".into(),
                format!("X-Amz-Target: TrentService.{action}"),
                // moto reads the region from here and does not check signatures.
                format!(
                    "Authorization: AWS4-HMAC-SHA256 Credential=test/20260101/{region}/kms/\
                     aws4_request, SignedHeaders=host, Signature=none"
                ),
                format!("Content-Length: {}", body.len()),
                "Connection: close".into(),
            ],
            body,
        };
        let mut stream = TcpStream::connect(host).expect("moto accepts connections");
        request.write(&mut stream).expect("moto takes a request");
        let reply = Message::read(&mut stream)
            .expect("moto answers")
            .expect("moto answers before it closes");
        let text = String::from_utf8_lossy(&reply.body);
        assert!(
            reply.head[0].contains(" 200 "),
            "moto refused {action}: {} {text}",
            reply.head[0]
        );
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }
}

#[derive(Debug)]
struct Server {
    url: String,
    process: Option<Process>,
}

#[derive(Debug)]
struct Process {
    shell: Child,
    _log: TempDir,
}

impl Server {
    fn spawn() -> Self {
        let program = find().unwrap_or_else(|| {
            panic!(
                "moto_server was not found in $NIMBUS_TEST_VENV/bin or on the PATH, and this test \
                 talks to a KMS: run `scripts/test`, which installs it, or `pip install moto[server]`, \
                 or name a running one in NIMBUS_TEST_MOTO_URL"
            )
        });
        let log_dir = TempDir::new().expect("a temporary directory can be made");
        let log = log_dir.path().join("moto.log");
        // The shell waits on its standard input, which closes when this process ends in whatever
        // way, and takes moto with it: a test that is killed leaves no server behind.
        let script = r#""$1" -H 127.0.0.1 -p 0 >"$2" 2>&1 & moto=$!
            trap 'kill "$moto"' TERM; read -r _; kill "$moto"; wait "$moto""#;
        let shell = Command::new("sh")
            .args(["-c", script, "moto"])
            .arg(&program)
            .arg(&log)
            .stdin(Stdio::piped())
            .spawn()
            .expect("sh can be started");
        let mut server = Self {
            url: String::new(),
            process: Some(Process {
                shell,
                _log: log_dir,
            }),
        };
        server.url = wait_for_url(&program, &log);
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            drop(process.shell.stdin.take());
            drop(process.shell.wait());
        }
    }
}

/// Waits for the line in which moto says where it listens.
fn wait_for_url(program: &Path, log: &Path) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let text = read_or_empty(log);
        let url = text
            .lines()
            .find_map(|line| Some(line.split_once("Running on ")?.1.trim().to_owned()));
        if let Some(url) = url
            && TcpStream::connect(authority(&url)).is_ok()
        {
            return url;
        }
        assert!(
            Instant::now() < deadline,
            "{} did not come up within a minute; it said: {text}",
            program.display()
        );
        thread::sleep(Duration::from_millis(50));
    }
}

fn read_or_empty(path: &Path) -> String {
    match fs::read_to_string(path) {
        Ok(text) => text,
        // The shell has not made it yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

fn find() -> Option<PathBuf> {
    let venv = env::var_os("NIMBUS_TEST_VENV").map(|venv| PathBuf::from(venv).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    venv.into_iter()
        .chain(env::split_paths(&path))
        .map(|dir| dir.join("moto_server"))
        .find(|program| program.is_file())
}
