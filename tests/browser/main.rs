//! An application in a real browser, Chromium: a page of another origin that uses the API with a
//! tenant's key, and pages that must not.
//!
//! The page is tests/browser/page.html. It does all that it is to do, whatever comes of it, and
//! reports; here stands what must have.

#![expect(
    clippy::disallowed_methods,
    reason = "tests start threads of their own, and read and damage files by hand"
)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use nimbus_test_support::{Machine, Server, whole};
use serde_json::{Value, json};

#[test]
fn a_page_of_an_accepted_origin_works_with_a_key_of_the_tenant() {
    let site = Site::start();
    let machine = Machine::new(env!("CARGO_BIN_EXE_nimbus"));
    let named = format!("http://{ACCEPTED}:{}", site.port);
    let server = machine.start(&["--cors-allow-origin", &named]);
    let key = prepare(&server);
    // A loopback origin is accepted as it is, another one because the operator named it.
    for host in ["127.0.0.1", ACCEPTED] {
        let found = site.visit(&machine, host, &server, &key);
        assert_eq!(found["origin"], format!("http://{host}:{}", site.port));
        let status = |step: &str| found[step]["status"].as_u64();
        for (step, expected) in [
            ("inserted", 201),
            ("query", 200),
            ("patched", 200),
            ("read", 200),
            ("deleted", 204),
            ("schema", 204),
            ("file", 200),
            ("denied", 401),
            ("simple", 200),
        ] {
            assert_eq!(status(step), Some(expected), "{host}, {step}: {found:#}");
        }
        assert_eq!(found["query"]["body"]["data"][0]["name"], "Wengen");
        assert_eq!(found["read"]["body"]["document"]["height"], 1275);
        assert_eq!(found["file"]["body"], "hello");
        // Errors are for the page to read, too, with the id that the operator finds in the log.
        assert_eq!(
            found["denied"]["body"]["error"]["code"],
            "auth.unauthorized"
        );
        assert_eq!(found["denied"]["traced"], true);
    }
    server.stop();
}

#[test]
fn a_page_of_a_foreign_origin_reads_nothing_and_changes_nothing() {
    let site = Site::start();
    let machine = Machine::new(env!("CARGO_BIN_EXE_nimbus"));
    // The host is right, the port is another's.
    let named = format!("http://{FOREIGN}:{}", site.port.wrapping_add(1).max(1));
    let server = machine.start(&["--cors-allow-origin", &named]);
    let key = prepare(&server);
    let found = site.visit(&machine, FOREIGN, &server, &key);
    assert_eq!(found["origin"], format!("http://{FOREIGN}:{}", site.port));
    for step in [
        "inserted", "query", "patched", "read", "deleted", "schema", "file", "denied", "simple",
    ] {
        assert_eq!(
            found[step],
            json!({"error": "TypeError"}),
            "{step}: {found:#}"
        );
    }
    let listed = server.get("/api/tenants/demo/documents/places");
    assert_eq!(listed, whole("data", json!([])));
    server.stop();
}

/// A tenant with a deployed file, and a key of it that may write.
fn prepare(server: &Server) -> String {
    drop(server.create("/api/tenants", &json!({"id": "demo"})));
    let app = json!({
        "name": "v1", "schemas": [], "crons": [],
        "files": [{
            "path": "hello.txt",
            "sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
            "content_base64": "aGVsbG8=",
        }],
    });
    drop(server.create("/api/tenants/demo/deploy", &app));
    let key = json!({"name": "the page", "scope": "write"});
    let key = server.create("/api/tenants/demo/keys", &key);
    key["key"].as_str().expect("a key").to_owned()
}

/// Serves the page, and takes what it found.
struct Site {
    port: u16,
    found: Receiver<Value>,
}

impl Site {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let (send, found) = mpsc::channel();
        // Ends with the process.
        let _thread = thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let send = send.clone();
                // A browser opens connections that it does not use yet.
                let _thread = thread::spawn(move || answer(stream, &send));
            }
        });
        Self { port, found }
    }

    /// What the page finds when it is opened under `host`, in a browser that was never used before.
    fn visit(&self, machine: &Machine, host: &str, server: &Server, key: &str) -> Value {
        let profile = tempfile::tempdir_in(machine.root()).expect("a directory");
        let log = machine.path("chromium.log");
        let page = format!(
            "http://{host}:{}/?nimbus={}&key={key}",
            self.port,
            server.address()
        );
        let browser = Command::new("chromium")
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--no-proxy-server",
                // The names of the pages are this machine.
                "--host-resolver-rules=MAP *.test 127.0.0.1",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("--remote-debugging-port=0")
            .arg(page)
            .env("HOME", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).expect("a log"))
            .spawn()
            .unwrap_or_else(|error| panic!("chromium: {error}; scripts/test installs it"));
        let _browser = Browser(browser);
        self.found.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            panic!(
                "the page reported nothing within {PATIENCE:?}\n{said}\n{}",
                server.log()
            )
        })
    }
}

/// Ends with its test.
struct Browser(Child);

impl Drop for Browser {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn answer(stream: TcpStream, found: &Sender<Value>) {
    let mut reader = BufReader::new(&stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(2..) if line != "\r\n" => head.push(line),
            Ok(2..) => break,
            _ => return,
        }
    }
    let (status, body) = match head.first().map(String::as_str) {
        Some(line) if line.starts_with("GET /?") => ("200 OK", PAGE),
        Some(line) if line.starts_with("POST /found ") => {
            let length = head.iter().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                let is_length = name.eq_ignore_ascii_case("content-length");
                is_length.then(|| value.trim().parse().expect("a length"))
            });
            let mut report = vec![0; length.expect("a length")];
            reader.read_exact(&mut report).expect("all of it");
            drop(found.send(serde_json::from_slice(&report).expect("JSON")));
            ("200 OK", "")
        }
        _ => ("404 Not Found", ""),
    };
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    );
    drop((&stream).write_all(answer.as_bytes()));
}

const PAGE: &str = include_str!("page.html");
const ACCEPTED: &str = "app.test";
const FOREIGN: &str = "evil.test";
/// A browser that was never used takes seconds to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);
