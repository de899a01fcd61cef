//! A machine of one's own (home, data directory, environment), servers on it, and a client.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// How long a start or a stop may take before the test gives up, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(30);

/// A machine of one's own: nothing of the user's home or environment is seen or touched.
#[derive(Debug)]
pub struct Machine {
    root: TempDir,
    binary: PathBuf,
}

impl Machine {
    /// An empty home, no data. `binary` is `env!("CARGO_BIN_EXE_nimbus")`, which only the tests of that package know.
    #[must_use]
    pub fn new(binary: &str) -> Self {
        let root = tempfile::Builder::new()
            .prefix("nimbus-test-")
            .tempdir()
            .expect("a temporary directory");
        for name in ["home", "tmp"] {
            fs::create_dir(root.path().join(name)).expect("a directory in it");
        }
        Self {
            root,
            binary: binary.into(),
        }
    }

    /// The directory that everything of this machine lies in: home, data, temporary files and logs.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// A path on this machine.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// The server's data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.path("data")
    }

    /// Where a first start puts the master key.
    pub fn master_key(&self) -> PathBuf {
        self.path("home/.local/share/nimbus/keys/master.key")
    }

    /// Where a first start puts the admin token.
    pub fn token_file(&self) -> PathBuf {
        self.path("home/.local/share/nimbus/auth/token")
    }

    /// The admin token as it stands in its file now.
    pub fn token(&self) -> String {
        let text = fs::read(self.token_file()).expect("the token file");
        let json: Value = serde_json::from_slice(&text).expect("the token file is JSON");
        json["token"]
            .as_str()
            .expect("it has a token field")
            .to_owned()
    }

    /// The real binary, with this machine's environment and no other, in this machine's directory.
    pub fn nimbus(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        let _ = command
            .args(arguments)
            .current_dir(self.root())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path("home"))
            .env("XDG_DATA_HOME", self.path("home/.local/share"))
            .env("TMPDIR", self.path("tmp"))
            .env("NIMBUS_DATA_DIR", self.data_dir())
            .stdin(Stdio::null());
        command
    }

    /// Starts a server on a free port with `arguments` added to `nimbus start`, and waits until it listens.
    pub fn start(&self, arguments: &[&str]) -> Server {
        let mut command = self.nimbus(&["start", "--port", "0"]);
        let _ = command.args(arguments);
        self.start_command(command)
    }

    /// Starts a server from a command made with [`Machine::nimbus`] (to add to its environment), and waits until it listens.
    pub fn start_command(&self, mut command: Command) -> Server {
        let log = self.path(&format!("server-{}.log", self.logs().len()));
        let out = File::create_new(&log).expect("a log file");
        let child = command
            .stdout(out.try_clone().expect("a second handle on it"))
            .stderr(out)
            .spawn()
            .expect("nimbus starts");
        let mut server = Server {
            child,
            address: String::new(),
            token_file: self.token_file(),
            log,
        };
        server.address = server.wait_until_listening();
        server
    }

    /// What every server on this machine has logged, oldest first.
    pub fn logs(&self) -> Vec<PathBuf> {
        (0..)
            .map(|number| self.path(&format!("server-{number}.log")))
            .take_while(|path| path.exists())
            .collect()
    }

    /// The one file of this name in the data directory, wherever it lies there.
    pub fn find(&self, name: &str) -> PathBuf {
        let mut found = files_under(&self.data_dir());
        found.retain(|path| path.file_name().is_some_and(|file| file == name));
        assert_eq!(found.len(), 1, "{name} in the data directory: {found:?}");
        found.remove(0)
    }
}

/// Every file under a directory, at any depth.
pub fn files_under(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(next) = waiting.pop() {
        for entry in fs::read_dir(&next).unwrap_or_else(|error| panic!("{next:?}: {error}")) {
            let entry = entry.expect("a directory entry");
            if entry.file_type().expect("its type").is_dir() {
                waiting.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    files
}

/// A running server. It is killed where a test ends without [`Server::stop`].
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: String,
    token_file: PathBuf,
    log: PathBuf,
}

impl Server {
    /// Host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("the server's log")
    }

    /// A request with the admin token: the status and the decoded body (null where there is none).
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let text = fs::read(&self.token_file).expect("the token file");
        let json: Value = serde_json::from_slice(&text).expect("the token file is JSON");
        self.request_as(json["token"].as_str().expect("a token"), method, path, body)
    }

    /// A request with any token.
    pub fn request_as(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> (u16, Value) {
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json");
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(PATIENCE))
            .build()
            .new_agent();
        let answer = match body {
            Some(body) => agent.run(request.body(body.to_string()).expect("a request")),
            None => agent.run(request.body(()).expect("a request")),
        };
        let mut answer = answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        let text = answer.body_mut().read_to_string().expect("a body in UTF-8");
        let json = if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text).unwrap_or_else(|_| panic!("{method} {path}: {text}"))
        };
        (answer.status().as_u16(), json)
    }

    /// GET, which has to succeed.
    pub fn get(&self, path: &str) -> Value {
        let (status, body) = self.request("GET", path, None);
        assert_eq!(status, 200, "GET {path}: {body}");
        body
    }

    /// POST, which has to create.
    pub fn create(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.request("POST", path, Some(body));
        assert_eq!(status, 201, "POST {path}: {answer}");
        answer
    }

    /// Inserts a document and gives its id.
    pub fn insert(&self, tenant: &str, table: &str, fields: &Value) -> String {
        let body = serde_json::json!({"table": table, "fields": fields});
        let answer = self.create(&format!("/api/tenants/{tenant}/documents"), &body);
        answer["id"].as_str().expect("the new id").to_owned()
    }

    /// Ends it as an operator does (SIGTERM), and asserts that it ended well.
    pub fn stop(mut self) {
        let status = self.end(Signal::TERM);
        assert!(status.success(), "{status}\n{}", self.log());
    }

    /// Ends it as a power cut does.
    pub fn kill(mut self) {
        let _ = self.end(Signal::KILL);
    }

    fn end(&mut self, signal: Signal) -> ExitStatus {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        kill_process(Pid::from_raw(pid).expect("not zero"), signal).expect("a signal to it");
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("its status") {
                return status;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "it does not end\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn wait_until_listening(&mut self) -> String {
        const SAID: &str = "nimbus listening on ";
        let started = Instant::now();
        loop {
            let log = self.log();
            if let Some((_, rest)) = log.split_once(SAID)
                && let Some((address, _)) = rest.split_once(char::is_whitespace)
            {
                return address.trim_start_matches("http://").to_owned();
            }
            if let Some(status) = self.child.try_wait().expect("its status") {
                panic!("nimbus start ended with {status}\n{}", self.log());
            }
            assert!(started.elapsed() < PATIENCE, "it does not listen\n{log}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
