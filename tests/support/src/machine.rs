//! A machine of one's own (home, data directory, environment), servers on it, and a client.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use serde_json::Value;
use tempfile::TempDir;

use crate::http::Message;

/// How long a start or a stop may take before the test gives up, on a machine that is busy with
/// other tests.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(5);
const LISTENING: &str = "nimbus listening on ";

/// A machine of one's own: nothing of the user's home or environment is seen or touched.
#[derive(Debug)]
pub struct Machine {
    root: TempDir,
    binary: PathBuf,
}

impl Machine {
    /// An empty home, no data. `binary` is `env!("CARGO_BIN_EXE_nimbus")`, which only the tests of
    /// that package know.
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

    /// Where servers take commands of this machine.
    pub fn control_dir(&self) -> PathBuf {
        self.path("home/.local/share/nimbus/run")
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
        command
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

    /// Starts a server on a free port with `arguments` added to `nimbus start`, and waits until it
    /// listens.
    pub fn start(&self, arguments: &[&str]) -> Server {
        let mut command = self.nimbus(&["start", "--port", "0"]);
        command.args(arguments);
        self.start_command(command)
    }

    /// Starts a server from a command made with [`Machine::nimbus`] (to add to its environment),
    /// and waits until it listens.
    pub fn start_command(&self, command: Command) -> Server {
        self.try_start(command).unwrap_or_else(|ended| {
            panic!("nimbus start ended with {}\n{}", ended.status, ended.said)
        })
    }

    /// Starts a server from a command made with [`Machine::nimbus`], and waits until it listens or
    /// has ended.
    ///
    /// # Errors
    /// How it ended.
    pub fn try_start(&self, command: Command) -> Result<Server, Ended> {
        let mut server = self.spawn(command);
        match server.wait_until_listening() {
            Ok(address) => {
                server.address = address;
                Ok(server)
            }
            Err(status) => {
                let said = server.log();
                Err(Ended { status, said })
            }
        }
    }

    /// Starts a server whose log goes to `stderr` and is read by nobody, and waits until it answers
    /// at `address`.
    pub fn start_unheard(&self, mut command: Command, stderr: Stdio, address: &str) -> Server {
        let log = self.path(&format!("server-{}.log", self.logs().len()));
        drop(File::create_new(&log).expect("a log file"));
        let child = command.stdout(Stdio::null()).stderr(stderr).spawn();
        let server = Server {
            child: child.expect("nimbus starts"),
            address: address.to_owned(),
            token_file: self.token_file(),
            log,
        };
        let health = b"GET /health HTTP/1.1\r\nHost: nimbus\r\nConnection: close\r\n\r\n";
        let answer = server.raw(health).expect("an answer");
        assert_eq!(answer.status, 200);
        server
    }

    /// Starts a command made with [`Machine::nimbus`], and does not wait for anything.
    pub fn spawn(&self, mut command: Command) -> Server {
        let log = self.path(&format!("server-{}.log", self.logs().len()));
        let out = File::create_new(&log).expect("a log file");
        let child = command
            .stdout(out.try_clone().expect("a second handle on it"))
            .stderr(out)
            .spawn()
            .expect("nimbus starts");
        Server {
            child,
            address: String::new(),
            token_file: self.token_file(),
            log,
        }
    }

    /// Runs `nimbus start` with `arguments`, which has to end by itself without ever listening; how
    /// it ended, and what it said.
    pub fn start_that_ends(&self, arguments: &[&str]) -> Ended {
        let mut command = self.nimbus(&["start", "--port", "0"]);
        command.args(arguments);
        self.run_to_end(command)
    }

    /// Runs a command made with [`Machine::nimbus`] to its end, which must not be that of a server
    /// that listens.
    pub fn run_to_end(&self, command: Command) -> Ended {
        match self.try_start(command) {
            Err(ended) => ended,
            Ok(server) => panic!("it listens\n{}", server.log()),
        }
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

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output and standard error.
    pub said: String,
}

impl Ended {
    /// Asserts the exit code and that what it said names each of `words`, without a panic or a
    /// backtrace.
    pub fn expect(&self, code: i32, words: &[&str]) {
        assert_eq!(self.status.code(), Some(code), "{}", self.said);
        for word in words {
            assert!(self.said.contains(word), "no {word:?} in: {}", self.said);
        }
        assert!(!self.said.contains("panicked"), "{}", self.said);
    }

    /// Asserts that it was killed, as a crash point does it.
    pub fn expect_killed(&self) {
        assert_killed(self.status, &self.said);
    }
}

fn assert_killed(status: ExitStatus, said: &str) {
    assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{said}");
}

/// What a server answered to a request that was written by hand.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body; null where there is none.
    pub body: Value,
    message: Message,
}

impl Answer {
    /// The value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.message.header(name)
    }

    /// The body as it came.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.message.body
    }
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

    /// A request with the admin token: the status and the decoded body (null where there is none,
    /// text where it is no JSON).
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
        self.try_request_as(token, method, path, body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}\n{}", self.log()))
    }

    /// A request with any token; an error when the connection broke before the whole answer was
    /// there.
    ///
    /// # Errors
    /// What the connection said.
    pub fn try_request_as(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Value), ureq::Error> {
        self.try_request_with(token, &[], method, path, body)
    }

    /// The same with further headers.
    ///
    /// # Errors
    /// What the connection said.
    pub fn try_request_with(
        &self,
        token: &str,
        headers: &[(&str, &str)],
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Value), ureq::Error> {
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // An answer is what the server said, also where it says to look elsewhere.
            .max_redirects(0)
            .proxy(None)
            .timeout_global(Some(PATIENCE))
            .build()
            .new_agent();
        let answer = match body {
            Some(body) => agent.run(request.body(body.to_string()).expect("a request")),
            None => agent.run(request.body(()).expect("a request")),
        };
        let mut answer = answer?;
        let text = answer.body_mut().read_to_string()?;
        let json = if text.is_empty() {
            Value::Null
        } else {
            // The metrics are text.
            serde_json::from_str(&text).unwrap_or(Value::String(text))
        };
        Ok((answer.status().as_u16(), json))
    }

    /// A request as these bytes on a connection of its own, and the answer to it; `None` when the
    /// server closed without one.
    pub fn raw(&self, request: &[u8]) -> Option<Answer> {
        let mut stream = self.connect();
        // A server that refuses a body early closes the connection under it: what counts is its
        // answer.
        drop(stream.write_all(request));
        Self::answer(&mut stream)
    }

    /// A connection to it.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).expect("the server accepts connections");
        stream
            .set_read_timeout(Some(2 * PATIENCE))
            .expect("a timeout");
        stream
    }

    /// The next answer on a connection; `None` when the server closed it first.
    pub fn answer(stream: &mut TcpStream) -> Option<Answer> {
        let message = Message::read(stream).ok()??;
        let status = message.head[0].split(' ').nth(1).expect("a status");
        Some(Answer {
            status: status.parse().expect("a number"),
            body: serde_json::from_slice(&message.body).unwrap_or(Value::Null),
            message,
        })
    }

    /// GET, which has to succeed.
    pub fn get(&self, path: &str) -> Value {
        let (status, body) = self.request("GET", path, None);
        assert_eq!(status, 200, "GET {path}: {body}");
        body
    }

    /// The items of a list, from its first part to its last, each of at most `limit` items.
    pub fn list(&self, path: &str, name: &str, limit: usize) -> Vec<Value> {
        let mut items = Vec::new();
        let mut after = String::new();
        loop {
            let part = self.get(&format!("{path}?limit={limit}{after}"));
            let listed = part[name].as_array().expect("a list");
            assert!(listed.len() <= limit, "{path}: {}", listed.len());
            items.extend_from_slice(listed);
            let Some(cursor) = part["next_cursor"].as_str() else {
                assert_eq!(part["has_more"], false, "{path}");
                return items;
            };
            assert_eq!(part["has_more"], true, "{path}");
            assert!(!listed.is_empty(), "{path}: a part without items");
            after = format!("&after={cursor}");
        }
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
    pub fn stop(self) {
        self.send_stop();
        self.wait_until_stopped();
    }

    /// Sends it `SIGKILL`, and does not wait.
    pub fn send_kill(&self) {
        self.send(Signal::KILL);
    }

    /// Whether it has ended; it may be a zombie then, and still is asked for its status.
    pub fn has_ended(&self) -> bool {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        let state = waitid(
            WaitId::Pid(Pid::from_raw(pid).expect("not zero")),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT,
        );
        state.expect("its state").is_some()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.send(signal);
    }

    /// Sends it `SIGHUP`.
    pub fn hang_up(&self) {
        self.send(Signal::HUP);
    }

    /// Sends it `SIGTERM`, and does not wait.
    pub fn send_stop(&self) {
        self.send(Signal::TERM);
    }

    /// Waits until it has ended well after [`Server::send_stop`].
    pub fn wait_until_stopped(mut self) {
        let status = self.wait_for_end();
        assert!(status.success(), "{status}\n{}", self.log());
    }

    /// Waits until it has ended by itself, well or not.
    pub fn wait_until_ended(mut self) -> Ended {
        let status = self.wait_for_end();
        let said = self.log();
        Ended { status, said }
    }

    /// Waits until it was killed at a crash point.
    pub fn wait_until_killed(mut self) {
        let status = self.wait_for_end();
        assert_killed(status, &self.log());
    }

    /// Ends it as a power cut does.
    pub fn kill(mut self) {
        self.send_kill();
        let _ = self.wait_for_end();
    }

    fn send(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        kill_process(Pid::from_raw(pid).expect("not zero"), signal).expect("a signal to it");
    }

    fn wait_for_end(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("its status") {
                return status;
            }
            assert!(
                started.elapsed() < 2 * PATIENCE,
                "it does not end\n{}",
                self.log()
            );
            std::thread::sleep(PAUSE);
        }
    }

    fn wait_until_listening(&mut self) -> Result<String, ExitStatus> {
        let started = Instant::now();
        loop {
            let log = self.log();
            if let Some((_, rest)) = log.split_once(LISTENING)
                // In JSON a quotation mark ends it.
                && let Some((address, _)) = rest.split_once(|end: char| end.is_whitespace() || end == '"')
            {
                return Ok(address.trim_start_matches("http://").to_owned());
            }
            if let Some(status) = self.child.try_wait().expect("its status") {
                return Err(status);
            }
            assert!(
                started.elapsed() < PATIENCE,
                "it neither listens nor ends\n{log}"
            );
            std::thread::sleep(PAUSE);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
