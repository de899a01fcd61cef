//! A proxy in front of a KMS, or of an S3, that fails on demand.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::http::{Message, authority};
use crate::listening::Listening;

/// What to do with a request instead of passing it on.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answer with an AWS JSON error.
    Error {
        /// The HTTP status.
        status: u16,
        /// The error code, as in `DisabledException`.
        code: String,
        /// The message.
        message: String,
    },
    /// Answer with these bytes as a 200 body of type JSON.
    Reply(String),
    /// Answer with this status and these bytes.
    Answer(u16, String),
    /// Pass the request on, and give the answer a byte a second.
    Drip,
    /// Never answer.
    Hang,
    /// Break the connection (RST).
    Reset,
    /// Pass the request on after a pause.
    Delay(Duration),
    /// Pass the request on with the first text replaced by the second, and the answer the other way
    /// round: another key works under the first one's name.
    Rewrite(String, String),
}

impl Fault {
    /// An AWS JSON error.
    #[must_use]
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        Self::Error {
            status,
            code: code.into(),
            message: message.into(),
        }
    }
}

/// Forwards HTTP requests to a KMS, but for the actions that it was told to fail. Of an S3 the
/// action is the method, and what a request contains is its first line.
#[derive(Debug)]
pub struct FaultProxy {
    listener: Listening,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    upstream: String,
    faults: Mutex<Vec<Planned>>,
    calls: Mutex<Vec<(String, String)>>,
    replicas: Mutex<Vec<Replicated>>,
    connections: AtomicUsize,
    in_flight: AtomicUsize,
    max_in_flight: AtomicUsize,
    stopped: Arc<AtomicBool>,
}

/// A key that stands for the replicas of a multi-Region key in all regions: moto makes such keys,
/// and does not decrypt with them.
#[derive(Debug)]
struct Replicated {
    arn: String,
    id: String,
}

#[derive(Debug)]
struct Planned {
    /// Empty for every action.
    action: String,
    /// What the body must contain: a key, a subject.
    containing: String,
    fault: Fault,
    /// How often still; `None` is always.
    left: Option<usize>,
}

impl FaultProxy {
    /// A proxy on a free loopback port.
    ///
    /// # Panics
    /// When no port can be had.
    #[must_use]
    pub fn in_front_of(upstream_url: &str) -> Self {
        let state = Arc::new(State {
            upstream: authority(upstream_url).to_owned(),
            ..State::default()
        });
        let listener = Listening::start(
            Arc::clone(&state),
            Arc::clone(&state.stopped),
            |state, client| state.serve(client),
        );
        Self { listener, state }
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> &str {
        self.listener.url()
    }

    /// Fails every request for `action` until [`clear`](Self::clear).
    pub fn inject(&self, action: &str, fault: Fault) {
        self.plan(action, "", fault, None);
    }

    /// Fails every request until [`clear`](Self::clear).
    pub fn inject_always(&self, fault: Fault) {
        self.plan("", "", fault, None);
    }

    /// Fails every request for `action` whose body contains `text` (a key's ARN, a subject) until
    /// [`clear`](Self::clear).
    pub fn inject_for(&self, action: &str, text: &str, fault: Fault) {
        self.plan(action, text, fault, None);
    }

    /// Fails the next `times` requests for `action`, then lets them pass.
    pub fn inject_times(&self, action: &str, fault: Fault, times: usize) {
        self.plan(action, "", fault, Some(times));
    }

    /// Has the key `arn` of us-east-1 work as a multi-Region key that has a replica in every
    /// region; the ARN of the one in `region`.
    #[must_use]
    pub fn replica(&self, arn: &str, region: &str) -> String {
        let arn = arn.to_owned();
        let mut known = Replicated {
            arn,
            id: String::new(),
        };
        // Nothing of the real id is in it: each is replaced by the other.
        let other: String = known
            .real_id()
            .chars()
            .rev()
            .filter(|c| *c != '-')
            .collect();
        known.id = format!("mrk-{other}");
        let here = known.arn_in(region);
        let mut replicas = lock(&self.state.replicas);
        replicas.retain(|other| other.id != known.id);
        replicas.push(known);
        here
    }

    /// Lets everything pass.
    pub fn clear(&self) {
        lock(&self.state.faults).clear();
    }

    /// The bodies of all requests for `action` so far, failed ones included.
    #[must_use]
    pub fn calls(&self, action: &str) -> Vec<String> {
        let calls = lock(&self.state.calls);
        calls
            .iter()
            .filter(|(called, _)| called == action)
            .map(|(_, body)| body.clone())
            .collect()
    }

    /// How many connections were made.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// How many requests are under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.state.in_flight.load(Ordering::SeqCst)
    }

    /// The most requests that were under way at once.
    #[must_use]
    pub fn max_in_flight(&self) -> usize {
        self.state.max_in_flight.load(Ordering::SeqCst)
    }

    fn plan(&self, action: &str, containing: &str, fault: Fault, left: Option<usize>) {
        let mut faults = lock(&self.state.faults);
        faults.retain(|planned| planned.action != action || planned.containing != containing);
        faults.push(Planned {
            action: action.to_owned(),
            containing: containing.to_owned(),
            fault,
            left,
        });
    }
}

impl State {
    fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        self.connections.fetch_add(1, Ordering::SeqCst);
        while let Some(request) = Message::read(&mut client)? {
            let now = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
            self.max_in_flight.fetch_max(now, Ordering::SeqCst);
            let answered = self.answer(&request, &mut client);
            self.in_flight.fetch_sub(1, Ordering::SeqCst);
            if !answered? {
                break;
            }
        }
        Ok(())
    }

    /// Answers one request; false when the connection must not be used again.
    fn answer(&self, request: &Message, client: &mut TcpStream) -> io::Result<bool> {
        let action = request.action().to_owned();
        let body = match request.header("x-amz-target") {
            Some(_) => String::from_utf8_lossy(&request.body).into_owned(),
            // S3 has all of it in the first line.
            None => request.head.first().cloned().unwrap_or_default(),
        };
        lock(&self.calls).push((action.clone(), body.clone()));
        match self.next_fault(&action, &body) {
            None => self.forward(request, client, None),
            Some(Fault::Delay(pause)) => {
                thread::sleep(pause);
                self.forward(request, client, None)
            }
            Some(Fault::Rewrite(from, to)) => self.forward(request, client, Some((&from, &to))),
            Some(Fault::Error {
                status,
                code,
                message,
            }) => {
                let body = json!({ "__type": code, "message": message }).to_string();
                respond(client, status, &body).map(|()| true)
            }
            Some(Fault::Reply(body)) => respond(client, 200, &body).map(|()| true),
            Some(Fault::Answer(status, body)) => respond(client, status, &body).map(|()| true),
            Some(Fault::Drip) => {
                let mut answer = Vec::new();
                let _again = self.forward(request, &mut answer, None)?;
                for byte in answer {
                    client.write_all(&[byte])?;
                    if self.stopped.load(Ordering::SeqCst) {
                        break;
                    }
                    thread::sleep(Duration::from_secs(1));
                }
                Ok(false)
            }
            Some(Fault::Hang) => self.hang(client).map(|()| false),
            Some(Fault::Reset) => {
                // Closing with a linger of zero sends RST instead of FIN.
                socket2::SockRef::from(&*client).set_linger(Some(Duration::ZERO))?;
                Ok(false)
            }
        }
    }

    fn next_fault(&self, action: &str, body: &str) -> Option<Fault> {
        let mut faults = lock(&self.faults);
        let planned = faults.iter_mut().find(|planned| {
            (planned.action.is_empty() || planned.action == action)
                && body.contains(&planned.containing)
                && planned.left != Some(0)
        })?;
        if let Some(left) = &mut planned.left {
            *left -= 1;
        }
        Some(planned.fault.clone())
    }

    fn forward(
        &self,
        request: &Message,
        client: &mut impl Write,
        rewritten: Option<(&str, &str)>,
    ) -> io::Result<bool> {
        let mut upstream = TcpStream::connect(&self.upstream)?;
        let mut head: Vec<String> = request
            .head
            .iter()
            .filter(|line| !line.to_ascii_lowercase().starts_with("connection:"))
            .cloned()
            .collect();
        head.push("Connection: close".into());
        let translation = self.translation(request, rewritten);
        let mut body = request.body.clone();
        for (from, to) in &translation {
            body = replace(&body, from, to);
        }
        if translation.len() > 1 {
            let region = format!("/{}/kms/", request.region());
            for line in &mut head {
                *line = line.replace(&region, "/us-east-1/kms/");
            }
        }
        head.retain(|line| !line.to_ascii_lowercase().starts_with("content-length:"));
        head.push(format!("Content-Length: {}", body.len()));
        if request.action() == "DisableKey" {
            // AWS takes an ARN; moto knows its keys by their bare ids there.
            let text = String::from_utf8_lossy(&body).into_owned();
            if let Some((_arn, id)) = text.split_once(":key/") {
                body = format!(r#"{{"KeyId":"{id}"#).into_bytes();
            }
            head.retain(|line| !line.to_ascii_lowercase().starts_with("content-length:"));
            head.push(format!("Content-Length: {}", body.len()));
        }
        Message { head, body }.write(&mut upstream)?;
        let Some(response) = Message::read(&mut upstream)? else {
            return Ok(false);
        };
        // moto's "Connection: close" is its own: a client keeps its connection, as it does with
        // AWS.
        let mut response = response;
        response
            .head
            .retain(|line| !line.to_ascii_lowercase().starts_with("connection:"));
        response.head[0] = response.head[0].replacen("HTTP/1.0", "HTTP/1.1", 1);
        for (from, to) in &translation {
            response.body = replace(&response.body, to, from);
        }
        if !translation.is_empty() {
            let is_length =
                |line: &String| line.to_ascii_lowercase().starts_with("content-length:");
            response.head.retain(|line| !is_length(line));
            let length = format!("Content-Length: {}", response.body.len());
            response.head.push(length);
        }
        response.write(client)?;
        Ok(true)
    }

    /// What is replaced in the body on the way there, and put back on the way back.
    fn translation(
        &self,
        request: &Message,
        rewritten: Option<(&str, &str)>,
    ) -> Vec<(String, String)> {
        let body = String::from_utf8_lossy(&request.body);
        let rewritten = rewritten.map(|(from, to)| (from.to_owned(), to.to_owned()));
        let mut pairs: Vec<_> = rewritten.into_iter().collect();
        for known in lock(&self.replicas).iter() {
            if body.contains(&known.id) {
                pairs.push((known.arn_in(request.region()), known.arn.clone()));
                pairs.push((known.id.clone(), known.real_id().to_owned()));
            }
        }
        pairs
    }

    /// Holds the connection without a word until the client gives up or the proxy goes.
    fn hang(&self, client: &mut TcpStream) -> io::Result<()> {
        client.set_read_timeout(Some(Duration::from_millis(50)))?;
        while !self.stopped.load(Ordering::SeqCst) {
            match client.read(&mut [0]) {
                Ok(0) => break,
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => break,
                _ => {}
            }
        }
        Ok(())
    }
}

impl Replicated {
    fn real_id(&self) -> &str {
        self.arn.rsplit('/').next().unwrap_or_default()
    }

    fn arn_in(&self, region: &str) -> String {
        let before = self.arn.split(":key/").next().unwrap_or_default();
        format!("{}:key/{}", before.replace("us-east-1", region), self.id)
    }
}

fn replace(body: &[u8], from: &str, to: &str) -> Vec<u8> {
    String::from_utf8_lossy(body).replace(from, to).into_bytes()
}

fn respond(client: &mut TcpStream, status: u16, body: &str) -> io::Result<()> {
    Message {
        head: vec![
            format!("HTTP/1.1 {status} Injected"),
            "Content-Type: application/x-amz-json-1.1".into(),
            format!("Content-Length: {}", body.len()),
        ],
        body: body.as_bytes().to_vec(),
    }
    .write(client)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
