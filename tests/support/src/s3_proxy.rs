//! A proxy in front of an S3 that counts, and fails on demand.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::http::{Message, authority};
use crate::listening::Listening;

/// What to do with a request instead of passing it on at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum S3Fault {
    /// Answer with this status, and pass nothing on.
    Refuse(u16),
    /// Pass it on, and break the connection instead of answering.
    LoseAnswer,
    /// Pass half of its body on, then break both connections.
    Half,
    /// Pass it on after a pause; what was sent later overtakes it.
    Delay(Duration),
    /// Pass it on once [`S3Proxy::release`] was called, whether anybody waits for the answer or
    /// not.
    Hold,
}

/// What passed, failed requests included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests that store an object.
    pub puts: u64,
    /// Requests that read an object or a part of one.
    pub gets: u64,
    /// Requests that list objects.
    pub lists: u64,
    /// All others.
    pub others: u64,
    /// Bytes of the bodies of requests.
    pub sent: u64,
    /// Bytes of answers, their heads included.
    pub received: u64,
}

impl Traffic {
    /// How many requests there were.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.puts + self.gets + self.lists + self.others
    }

    /// What passed since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            puts: self.puts - before.puts,
            gets: self.gets - before.gets,
            lists: self.lists - before.lists,
            others: self.others - before.others,
            sent: self.sent - before.sent,
            received: self.received - before.received,
        }
    }
}

type Plan = Box<dyn FnMut(&str, &str) -> Option<S3Fault> + Send>;

/// Forwards HTTP requests to an S3. Each connection carries one request.
pub struct S3Proxy {
    listener: Listening,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    upstream: String,
    plan: Mutex<Option<Plan>>,
    traffic: Mutex<Traffic>,
    held: Mutex<u64>,
    released: Condvar,
}

impl fmt::Debug for S3Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("S3Proxy").field(&self.url()).finish()
    }
}

impl S3Proxy {
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
        let listener = Listening::start(Arc::clone(&state), Arc::default(), |state, client| {
            state.serve(client)
        });
        Self { listener, state }
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> &str {
        self.listener.url()
    }

    /// From here on `plan` says of each request, by its method and its path with the query, what is
    /// done to it.
    pub fn plan(&self, plan: impl FnMut(&str, &str) -> Option<S3Fault> + Send + 'static) {
        *lock(&self.state.plan) = Some(Box::new(plan));
    }

    /// Lets everything pass, but for what is held already.
    pub fn clear(&self) {
        *lock(&self.state.plan) = None;
    }

    /// Passes on what is held.
    pub fn release(&self) {
        *lock(&self.state.held) += 1;
        self.state.released.notify_all();
    }

    /// What passed so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        lock(&self.state.traffic).clone()
    }
}

impl Drop for S3Proxy {
    fn drop(&mut self) {
        self.release();
    }
}

impl State {
    fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        let Some(request) = Message::read(&mut client)? else {
            return Ok(());
        };
        let line = request.head.first().cloned().unwrap_or_default();
        let mut words = line.split(' ');
        let (method, path) = (
            words.next().unwrap_or_default(),
            words.next().unwrap_or_default(),
        );
        {
            let mut traffic = lock(&self.traffic);
            *match method {
                "PUT" => &mut traffic.puts,
                "GET" if path.contains("list-type=") => &mut traffic.lists,
                "GET" => &mut traffic.gets,
                _ => &mut traffic.others,
            } += 1;
            traffic.sent += request.body.len() as u64;
        }
        let fault = lock(&self.plan)
            .as_mut()
            .and_then(|plan| plan(method, path));
        match fault {
            Some(S3Fault::Refuse(status)) => {
                let said = "<Error><Code>SlowDown</Code><Message>injected</Message></Error>";
                let length = said.len();
                let answer = format!(
                    "HTTP/1.1 {status} Injected\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{said}"
                );
                return client.write_all(answer.as_bytes());
            }
            Some(S3Fault::Half) => {
                let mut upstream = TcpStream::connect(&self.upstream)?;
                let mut half = Vec::new();
                closing(request).write(&mut half)?;
                upstream.write_all(&half[..half.len() / 2])?;
                return upstream.shutdown(Shutdown::Both);
            }
            Some(S3Fault::Delay(pause)) => thread::sleep(pause),
            Some(S3Fault::Hold) => self.wait(),
            Some(S3Fault::LoseAnswer) | None => {}
        }
        let mut upstream = TcpStream::connect(&self.upstream)?;
        closing(request).write(&mut upstream)?;
        let mut answer = Vec::new();
        upstream.read_to_end(&mut answer)?;
        lock(&self.traffic).received += answer.len() as u64;
        match fault {
            Some(S3Fault::LoseAnswer) => Ok(()),
            _ => client.write_all(&answer),
        }
    }

    fn wait(&self) {
        let held = lock(&self.held);
        let before = *held;
        let released = self
            .released
            .wait_while(held, |now| *now == before)
            .unwrap_or_else(PoisonError::into_inner);
        drop(released);
    }
}

/// The request, whose connection the server ends after its answer: so the answer is what comes
/// until then, however it says its length.
fn closing(mut request: Message) -> Message {
    let is_connection = |line: &String| line.to_ascii_lowercase().starts_with("connection:");
    request.head.retain(|line| !is_connection(line));
    request.head.push("Connection: close".to_owned());
    request
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
