//! HTTP over loopback to the real server, connections kept alive. The client is as little as will
//! do: what it costs is taken from the server, on the same processors.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nimbus_test_support::{Machine, Server};
use serde_json::json;

/// A server with a tenant `demo`.
pub(crate) struct House {
    pub(crate) server: Server,
    pub(crate) machine: Machine,
    token: String,
}

impl House {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let machine = Machine::new(env!("CARGO_BIN_EXE_nimbus"));
        let house = Self::restarted(machine, arguments);
        house.server.create("/api/tenants", &json!({"id": "demo"}));
        house
    }

    /// Another server where one was, which was stopped.
    pub(crate) fn restarted(machine: Machine, arguments: &[&str]) -> Self {
        let server = machine.start(arguments);
        Self::of(machine, server)
    }

    /// A server that runs.
    pub(crate) fn of(machine: Machine, server: Server) -> Self {
        let token = machine.token();
        Self {
            server,
            machine,
            token,
        }
    }

    /// A request with the admin token, as bytes.
    pub(crate) fn request(&self, method: &str, path: &str, body: &str) -> Vec<u8> {
        let length = body.len();
        let token = &self.token;
        format!(
            "{method} {path} HTTP/1.1\r\nhost: nimbus\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }

    /// Seconds of processor time that the server has used, all threads that still run together.
    pub(crate) fn processor_time(&self) -> f64 {
        let threads = fs::read_dir(format!("/proc/{}/task", self.server.pid()));
        let nanoseconds = threads.expect("its threads").filter_map(|thread| {
            let usage = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
            usage.split(' ').next()?.parse::<u64>().ok()
        });
        nanoseconds.sum::<u64>() as f64 / 1e9
    }

    /// The same with threads that have ended, to ten milliseconds.
    pub(crate) fn server_time(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.server.pid()));
        let stat = stat.expect("its times");
        // Behind the name, which may have blanks in it: the 14th and the 15th field of all.
        let (_, fields) = stat.rsplit_once(')').expect("a name");
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks = |at: usize| fields[at].parse::<u64>().expect("a number");
        (ticks(11) + ticks(12)) as f64 / 100.0
    }

    /// `work` with each number below `count`, over so many connections.
    pub(crate) fn each(
        &self,
        connections: usize,
        count: usize,
        work: impl Fn(&mut Connection, usize) + Sync,
    ) {
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..connections {
                let _thread = scope.spawn(|| {
                    let mut connection = Connection::new(self.server.connect());
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= count {
                            break;
                        }
                        work(&mut connection, number);
                    }
                });
            }
        });
    }

    /// Connections in the hands of as many threads as `hands`.
    pub(crate) fn crowd(&self, connections: usize, hands: usize) -> Crowd {
        let connect = || Connection::new(self.server.connect());
        let share = |_| (0..connections / hands).map(|_| connect()).collect();
        Crowd((0..hands).map(share).collect())
    }
}

/// Connections, each of which waits for its answer before it sends again.
pub(crate) struct Crowd(Vec<Vec<Connection>>);

impl Crowd {
    /// Answers a second, over about `time`. `request` makes the request number so and so.
    pub(crate) fn rate(
        &mut self,
        time: Duration,
        next: &AtomicUsize,
        status: u16,
        request: impl Fn(usize) -> Vec<u8> + Sync,
    ) -> f64 {
        let answered = AtomicUsize::new(0);
        let started = Instant::now();
        thread::scope(|scope| {
            for connections in &mut self.0 {
                let _thread = scope.spawn(|| {
                    let mut mine = 0;
                    while started.elapsed() < time {
                        for connection in connections.iter_mut() {
                            connection.send(&request(next.fetch_add(1, Ordering::Relaxed)));
                        }
                        for connection in connections.iter_mut() {
                            connection.receive(status);
                            mine += 1;
                        }
                    }
                    answered.fetch_add(mine, Ordering::Relaxed);
                });
            }
        });
        answered.into_inner() as f64 / started.elapsed().as_secs_f64()
    }
}

/// One connection.
pub(crate) struct Connection {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("no delay");
        let answer = Vec::with_capacity(ANSWER);
        Self { stream, answer }
    }

    pub(crate) fn send(&mut self, request: &[u8]) {
        self.stream.write_all(request).expect("a request");
    }

    /// The body of the next answer, which must have this status.
    pub(crate) fn receive(&mut self, status: u16) -> &[u8] {
        let mut buffer = [0; ANSWER];
        self.answer.clear();
        loop {
            let read = self.stream.read(&mut buffer).expect("an answer");
            assert!(read > 0, "the server closed the connection");
            self.answer.extend_from_slice(&buffer[..read]);
            if let Some(body) = body(&self.answer) {
                let head = &self.answer[..body];
                let expected = format!("HTTP/1.1 {status} ");
                let text = String::from_utf8_lossy(&self.answer);
                assert!(head.starts_with(expected.as_bytes()), "{text}");
                return &self.answer[body..];
            }
        }
    }
}

/// Where the body begins of an answer that is whole.
fn body(answer: &[u8]) -> Option<usize> {
    let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
    let text = str::from_utf8(&answer[..head]).expect("a head is ASCII");
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.parse().expect("a length"));
    (answer.len() >= head + length).then_some(head)
}

const ANSWER: usize = 4096;
