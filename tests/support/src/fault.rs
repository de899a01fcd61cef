//! A proxy in front of a KMS that fails on demand.

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::http::{Message, authority};

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
    /// Never answer.
    Hang,
    /// Break the connection (RST).
    Reset,
    /// Pass the request on after a pause.
    Delay(Duration),
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

/// Forwards HTTP requests to a KMS, but for the actions that it was told to fail.
#[derive(Debug)]
pub struct FaultProxy {
    url: String,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    upstream: String,
    faults: Mutex<HashMap<String, Planned>>,
    calls: Mutex<Vec<(String, String)>>,
    in_flight: AtomicUsize,
    max_in_flight: AtomicUsize,
    stopped: AtomicBool,
}

#[derive(Debug)]
struct Planned {
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
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
        let address = listener
            .local_addr()
            .expect("a bound listener has an address");
        let state = Arc::new(State {
            upstream: authority(upstream_url).to_owned(),
            ..State::default()
        });
        let served = Arc::clone(&state);
        // Ends with the connection that `drop` makes.
        let _detached = thread::spawn(move || {
            for stream in listener.incoming() {
                if served.stopped.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(stream) = stream else { continue };
                let served = Arc::clone(&served);
                // A connection that breaks is the client's to notice.
                let _detached = thread::spawn(move || drop(served.serve(stream)));
            }
        });
        Self {
            url: format!("http://{address}"),
            state,
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Fails every request for `action` until [`clear`](Self::clear).
    pub fn inject(&self, action: &str, fault: Fault) {
        self.plan(action, Planned { fault, left: None });
    }

    /// Fails the next `times` requests for `action`, then lets them pass.
    pub fn inject_times(&self, action: &str, fault: Fault, times: usize) {
        self.plan(
            action,
            Planned {
                fault,
                left: Some(times),
            },
        );
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

    /// The most requests that were under way at once.
    #[must_use]
    pub fn max_in_flight(&self) -> usize {
        self.state.max_in_flight.load(Ordering::SeqCst)
    }

    fn plan(&self, action: &str, planned: Planned) {
        drop(lock(&self.state.faults).insert(action.to_owned(), planned));
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which then sees the flag.
        drop(TcpStream::connect(authority(&self.url)));
    }
}

impl State {
    fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        while let Some(request) = Message::read(&mut client)? {
            let now = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
            let _before = self.max_in_flight.fetch_max(now, Ordering::SeqCst);
            let answered = self.answer(&request, &mut client);
            let _before = self.in_flight.fetch_sub(1, Ordering::SeqCst);
            if !answered? {
                break;
            }
        }
        Ok(())
    }

    /// Answers one request; false when the connection is not to be used again.
    fn answer(&self, request: &Message, client: &mut TcpStream) -> io::Result<bool> {
        let action = request.action().to_owned();
        let body = String::from_utf8_lossy(&request.body).into_owned();
        lock(&self.calls).push((action.clone(), body));
        match self.next_fault(&action) {
            None => self.forward(request, client),
            Some(Fault::Delay(pause)) => {
                thread::sleep(pause);
                self.forward(request, client)
            }
            Some(Fault::Error {
                status,
                code,
                message,
            }) => {
                let body = json!({ "__type": code, "message": message }).to_string();
                respond(client, status, &body).map(|()| true)
            }
            Some(Fault::Reply(body)) => respond(client, 200, &body).map(|()| true),
            Some(Fault::Hang) => self.hang(client).map(|()| false),
            Some(Fault::Reset) => {
                // Closing with a linger of zero sends RST instead of FIN.
                socket2::SockRef::from(&*client).set_linger(Some(Duration::ZERO))?;
                Ok(false)
            }
        }
    }

    fn next_fault(&self, action: &str) -> Option<Fault> {
        let mut faults = lock(&self.faults);
        let planned = faults.get_mut(action)?;
        match &mut planned.left {
            Some(0) => return None,
            Some(left) => *left -= 1,
            None => {}
        }
        Some(planned.fault.clone())
    }

    fn forward(&self, request: &Message, client: &mut TcpStream) -> io::Result<bool> {
        let mut upstream = TcpStream::connect(&self.upstream)?;
        let mut head: Vec<String> = request
            .head
            .iter()
            .filter(|line| !line.to_ascii_lowercase().starts_with("connection:"))
            .cloned()
            .collect();
        head.push("Connection: close".into());
        Message {
            head,
            body: request.body.clone(),
        }
        .write(&mut upstream)?;
        let Some(response) = Message::read(&mut upstream)? else {
            return Ok(false);
        };
        // moto's "Connection: close" goes with the response, and is kept.
        response.write(client)?;
        client.shutdown(Shutdown::Write)?;
        Ok(false)
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
