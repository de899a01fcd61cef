//! A loopback port that answers each connection on a thread of its own.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::http::authority;

/// Listens until it is dropped; connections that are open then go on.
#[derive(Debug)]
pub(crate) struct Listening {
    url: String,
    stopped: Arc<AtomicBool>,
}

impl Listening {
    /// Listens on a free loopback port; `stopped` becomes true when this is dropped.
    ///
    /// # Panics
    /// When no port can be had.
    pub(crate) fn start<S: Send + Sync + 'static>(
        state: Arc<S>,
        stopped: Arc<AtomicBool>,
        serve: fn(&S, TcpStream) -> io::Result<()>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
        let address = listener
            .local_addr()
            .expect("a bound listener has an address");
        let ends = Arc::clone(&stopped);
        // Ends with the connection that `drop` makes.
        let _detached = thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(stream) = stream else { continue };
                let state = Arc::clone(&state);
                // A connection that breaks is the client's to notice.
                let _detached = thread::spawn(move || drop(serve(&state, stream)));
            }
        });
        Self {
            url: format!("http://{address}"),
            stopped,
        }
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which then sees the flag.
        drop(TcpStream::connect(authority(&self.url)));
    }
}
