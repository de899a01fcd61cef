//! One connection, kept alive, that ends with its server.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nimbus_test_support::Server;
use serde_json::{Value, json};

/// The connection broke before the answer was there.
#[derive(Debug)]
pub(crate) struct Broken;

pub(crate) type Answer = Result<(u16, Value), Broken>;

pub(crate) struct Client {
    stream: TcpStream,
    token: String,
}

impl Client {
    pub(crate) fn new(server: &Server, token: String) -> Self {
        let stream = server.connect();
        stream.set_nodelay(true).expect("no delay");
        Self { stream, token }
    }

    pub(crate) fn get(&mut self, path: &str) -> Answer {
        self.request("GET", path, "")
    }

    pub(crate) fn post(&mut self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, &body.to_string())
    }

    pub(crate) fn request(&mut self, method: &str, path: &str, body: &str) -> Answer {
        let token = self.token.clone();
        self.request_as(&token, method, path, body)
    }

    /// The same with another credential.
    pub(crate) fn request_as(
        &mut self,
        token: &str,
        method: &str,
        path: &str,
        body: &str,
    ) -> Answer {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: nimbus\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        self.stream
            .write_all(request.as_bytes())
            .map_err(|_| Broken)?;
        let answer = Server::answer(&mut self.stream).ok_or(Broken)?;
        Ok((answer.status, answer.body))
    }

    /// GET, again and again while the server turns requests away.
    pub(crate) fn get_at_last(&mut self, path: &str) -> Answer {
        let begun = Instant::now();
        loop {
            let (status, answer) = self.get(path)?;
            if !turned_away(status) {
                return Ok((status, answer));
            }
            assert!(begun.elapsed() < PATIENCE, "GET {path}: {answer}");
            thread::sleep(PAUSE);
        }
    }

    /// All documents of a table, however many, from a server that nobody kills.
    pub(crate) fn documents(&mut self, tenant: &str, table: &str) -> Vec<Value> {
        let path = format!("/api/tenants/{tenant}/query/paginated");
        let mut documents = Vec::new();
        let mut after = Value::Null;
        loop {
            let wanted = json!({"query": {"table": table}, "page_size": 500, "after": after});
            let (status, page) = self.post(&path, &wanted).expect("the server runs");
            if turned_away(status) {
                continue;
            }
            assert_eq!(status, 200, "{page}");
            documents.extend_from_slice(page["data"].as_array().expect("data"));
            if page["has_more"] == false {
                return documents;
            }
            after = page["next_cursor"].clone();
        }
    }
}

/// One who works with the server, and knows what must be there afterwards.
pub(crate) trait Hand: Send {
    /// One piece of work, checked.
    fn step(&mut self, client: &mut Client) -> Result<(), Broken>;

    /// After a restart: what is there is what was acknowledged, or what was under way, whole.
    fn settle(&mut self, client: &mut Client);

    /// How often each kind of its work was acknowledged.
    fn done(&self) -> Vec<(&'static str, u64)>;

    /// Works until the server is killed.
    fn work(&mut self, mut client: Client, killed: &AtomicBool) {
        while let Ok(()) = self.step(&mut client) {
            thread::sleep(PAUSE);
        }
        expect_killed(killed);
    }
}

/// A connection breaks when the server is killed, and at no other time.
pub(crate) fn expect_killed(killed: &AtomicBool) {
    assert!(
        killed.load(Ordering::SeqCst),
        "a connection broke, and nobody had killed the server"
    );
}

/// The server may turn requests away under load.
pub(crate) fn turned_away(status: u16) -> bool {
    status == 503
}

const PAUSE: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(60);
