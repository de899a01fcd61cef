//! One connection, kept alive, that ends with its server.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};

use nimbus_test_support::Server;
use serde_json::Value;

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
        let (token, length) = (&self.token, body.len());
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
