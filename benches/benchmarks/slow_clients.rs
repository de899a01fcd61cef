//! As many connections as the server takes, all of clients that ask and do not read, read slowly,
//! or send half: how much memory they cost.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nimbus_test_support::Server;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use crate::http::House;
use crate::report::{Measurement, Target};

pub(crate) fn run() -> Vec<Measurement> {
    raise_file_limit();
    let house = House::start(&[]);
    for tenant in 0..TENANTS {
        house
            .server
            .create("/api/tenants", &json!({"id": format!("t{tenant}")}));
        let fields = json!({"a": "x".repeat(1_000_000)});
        for _document in 0..DOCUMENTS {
            house.server.insert(&format!("t{tenant}"), "large", &fields);
        }
    }
    let at_rest = memory(&house, "VmRSS:");
    // Before all others: a later one would wait for its place.
    let mut looking = house.server.connect();
    let look = house.request("GET", "/metrics", "");
    let mut clients: Vec<Client> = (0..CONNECTIONS)
        .map(|number| Client::new(&house, number))
        .collect();
    let (mut most, mut refused) = (0.0_f64, 0.0_f64);
    let started = Instant::now();
    while started.elapsed() < TIME {
        for client in &mut clients {
            client.go_on(&house);
        }
        // It names no tenant, and so finds a place beside all of them.
        looking.write_all(&look).expect("a request");
        let answer = Server::answer(&mut looking).expect("an answer");
        let metrics = String::from_utf8_lossy(answer.bytes());
        if answer.status == 200 {
            most = most.max(metric(&metrics, "nimbus_http_connections"));
            refused = metric(&metrics, "nimbus_http_buffer_refusals_total");
        }
    }
    let peak = memory(&house, "VmHWM:");
    vec![
        Measurement {
            name: "connections of slow readers and writers, at the server",
            measured: format!("{most:.0} of {CONNECTIONS}"),
            against: format!("{refused:.0} requests refused"),
            value: most,
            unit: "",
            target: Target::None,
        },
        Measurement {
            name: "peak memory under slow readers and writers",
            measured: format!("{peak:.0} MiB"),
            against: format!("{at_rest:.0} MiB at rest"),
            value: peak,
            unit: "MiB",
            target: Target::AtMost(BOUND_MIB),
        },
    ]
}

/// One client, which comes back when it is refused.
struct Client {
    stream: TcpStream,
    kind: Kind,
    number: usize,
    /// What it still has to say at once.
    request: Vec<u8>,
    /// Bytes of a body that it still has.
    body: usize,
    /// Steps that it has gone.
    steps: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Asks for a large answer and reads nothing.
    Silent,
    /// Asks for one and reads a little of it now and then.
    Slow,
    /// Sends half of a large body.
    Half,
    /// Asks again and again and reads nothing.
    Asking,
}

impl Client {
    /// What it asks, and how much of a body it sends.
    fn request(house: &House, number: usize) -> (Kind, Vec<u8>, usize) {
        let kind = [Kind::Silent, Kind::Slow, Kind::Half, Kind::Asking][number % 4];
        let tenant = format!("/api/tenants/t{}", number / 4 % TENANTS);
        let (request, body) = match kind {
            Kind::Silent | Kind::Slow => {
                let path = format!("{tenant}/query");
                let body = r#"{"table":"large"}"#;
                (house.request("POST", &path, body), 0)
            }
            Kind::Half => {
                let head = house.request("POST", &format!("{tenant}/documents"), "");
                let head = String::from_utf8(head).expect("a head is ASCII");
                let head = head.replace("content-length: 0", "content-length: 16777216");
                (head.into_bytes(), 12 << 20)
            }
            Kind::Asking => (house.request("HEAD", "/health", "").repeat(200), 0),
        };
        (kind, request, body)
    }

    fn new(house: &House, number: usize) -> Self {
        let (kind, request, body) = Self::request(house, number);
        let stream = house.server.connect();
        stream.set_nonblocking(true).expect("a socket");
        Self {
            stream,
            kind,
            number,
            request,
            body,
            steps: 0,
        }
    }

    /// Sends what can be sent, and reads as its kind does.
    fn go_on(&mut self, house: &House) {
        self.steps += 1;
        // Turned away, it asks again.
        if self.kind == Kind::Silent && self.request.is_empty() && self.steps.is_multiple_of(AGAIN)
        {
            self.request = Self::request(house, self.number).1;
        }
        let ended = match self.step() {
            Ok(ended) => ended,
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        };
        if ended {
            *self = Self::new(house, self.number);
        }
    }

    /// One step; whether the server has closed the connection.
    fn step(&mut self) -> std::io::Result<bool> {
        if self.kind == Kind::Slow {
            let mut part = [0; 4096];
            match self.stream.read(&mut part) {
                Ok(0) => return Ok(true),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        while !self.request.is_empty() {
            let sent = self.stream.write(&self.request)?;
            drop(self.request.drain(..sent));
        }
        if self.body > 0 {
            let part = [b'x'; 64 << 10];
            self.body -= self.stream.write(&part[..part.len().min(self.body)])?;
        }
        Ok(false)
    }
}

/// Of the server, in MiB.
fn memory(house: &House, kind: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", house.server.pid()));
    let status = status.expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix(kind));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: f64 = kib.and_then(|kib| kib.parse().ok()).expect("a number");
    kib / 1024.0
}

fn metric(metrics: &str, name: &str) -> f64 {
    let mut lines = metrics.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).unwrap_or(0.0)
}

fn raise_file_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, raised).expect("as many files as may be open");
}

/// One less than the server takes: the one that looks is another.
const CONNECTIONS: usize = 8191;
const TENANTS: usize = 4;
/// Of a megabyte, in each.
const DOCUMENTS: usize = 32;
/// Steps between two questions of one that was turned away.
const AGAIN: usize = 20;
const TIME: Duration = Duration::from_secs(45);
/// Half a GiB that may be buffered, 64 KiB a connection, and a quarter of a GiB for the rest.
const BOUND_MIB: f64 = 1280.0;
