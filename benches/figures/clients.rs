//! Many clients against one, and against a server in plaintext: the real server, HTTP over loopback, connections kept
//! alive, every answer durable.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nimbus_test_support::{Machine, Server};
use serde_json::json;

use crate::report::{Figure, Target, in_turn};
use crate::setup::place;

pub(crate) fn run() -> Vec<Figure> {
    let mut encrypted = Crowd::start(&[]);
    let mut plaintext = Crowd::start(&["--encryption-key-provider", "none"]);
    let against_one = {
        let (many, one) = (&mut encrypted.clients, &mut encrypted.one);
        in_turn(ROUNDS, || rate(many), || rate(one))
    };
    let time = |crowd: &mut Crowd| 1.0 / rate(&mut crowd.clients);
    let against_plaintext = in_turn(ROUNDS, || time(&mut encrypted), || time(&mut plaintext));
    encrypted.server.stop();
    plaintext.server.stop();
    vec![
        Figure {
            name: "insert over HTTP, 64 clients against one",
            measured: format!("{:.0}/s of 64 clients", against_one.first),
            against: format!("{:.0}/s of one", against_one.second),
            value: against_one.ratio,
            unit: "×",
            target: Target::AtLeast(8.0),
        },
        Figure {
            name: "insert over HTTP, 64 clients, against plaintext",
            measured: format!("{:.0}/s encrypted", 1.0 / against_plaintext.first),
            against: format!("{:.0}/s plaintext", 1.0 / against_plaintext.second),
            value: against_plaintext.ratio,
            unit: "×",
            target: Target::AtMost(1.15),
        },
    ]
}

/// A server with a tenant, and its clients.
struct Crowd {
    clients: Vec<Client>,
    one: [Client; 1],
    server: Server,
    _machine: Machine,
}

impl Crowd {
    fn start(arguments: &[&str]) -> Self {
        let machine = Machine::new(env!("CARGO_BIN_EXE_nimbus"));
        let server = machine.start(arguments);
        let _tenant = server.create("/api/tenants", &json!({"id": "demo"}));
        let head = format!(
            "POST /api/tenants/demo/documents HTTP/1.1\r\nhost: nimbus\r\nauthorization: Bearer {}\r\n\
             content-type: application/json\r\n",
            machine.token()
        );
        let client = |number| {
            let stream = server.connect();
            stream.set_nodelay(true).expect("no delay");
            Client {
                stream,
                head: head.clone(),
                next: number,
            }
        };
        Self {
            clients: (0..CLIENTS).map(client).collect(),
            one: [client(CLIENTS)],
            server,
            _machine: machine,
        }
    }
}

/// Documents a second, as long as [`ROUND`].
fn rate(clients: &mut [Client]) -> f64 {
    let inserted = AtomicUsize::new(0);
    let started = Instant::now();
    thread::scope(|scope| {
        for client in clients {
            let _thread = scope.spawn(|| {
                let mut mine = 0;
                while started.elapsed() < ROUND {
                    client.insert();
                    mine += 1;
                }
                let _before = inserted.fetch_add(mine, Ordering::Relaxed);
            });
        }
    });
    inserted.into_inner() as f64 / started.elapsed().as_secs_f64()
}

/// A connection. Its HTTP is as little as will do: what a client costs is taken from the server, on the same processors.
struct Client {
    stream: TcpStream,
    head: String,
    next: usize,
}

impl Client {
    fn insert(&mut self) {
        let fields = place(self.next);
        self.next += CLIENTS;
        let body = format!(r#"{{"table":"places","fields":{fields}}}"#);
        let request = format!("{}content-length: {}\r\n\r\n{body}", self.head, body.len());
        self.stream
            .write_all(request.as_bytes())
            .expect("a request");
        let mut answer = [0; 4096];
        let mut length = 0;
        // The answer is one JSON object.
        while !answer[..length].ends_with(b"\"}") {
            let read = self.stream.read(&mut answer[length..]).expect("an answer");
            assert!(read > 0, "the server closed the connection");
            length += read;
        }
        assert!(
            answer.starts_with(b"HTTP/1.1 201 "),
            "{}",
            String::from_utf8_lossy(&answer[..length])
        );
    }
}

const CLIENTS: usize = 64;
const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_millis(700);
