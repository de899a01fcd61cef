//! Connections that are open and not in use.

use std::{
    collections::VecDeque,
    fmt::{self, Debug},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::Semaphore, task::JoinHandle};
use tokio_postgres::Client;

/// Connections that are open, and the right to have one.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) permits: Arc<Semaphore>,
    /// The one used last is the last.
    idle: Mutex<VecDeque<Idle>>,
    kept: usize,
}

#[derive(Debug)]
struct Idle {
    wire: Wire,
    since: Instant,
}

/// A connection, and the task that moves its bytes.
pub(super) struct Wire {
    pub(super) client: Client,
    pub(super) moving: JoinHandle<()>,
}

impl Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // Otherwise it would wait for what is under way.
        self.moving.abort();
    }
}

impl Pool {
    /// A pool of at most so many connections, of which some are kept.
    pub(super) fn new((kept, most): (usize, usize)) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(most)),
            idle: Mutex::default(),
            kept,
        }
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        // Every change under the lock is complete in itself: a panic leaves no half of it.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take(&self) -> Option<Wire> {
        let mut idle = self.idle();
        while let Some(Idle { wire, .. }) = idle.pop_back() {
            if !wire.client.is_closed() {
                return Some(wire);
            }
        }
        None
    }

    pub(super) fn give_back(&self, wire: Wire) {
        let (mut idle, now) = (self.idle(), Instant::now());
        idle.push_back(Idle { wire, since: now });
        while idle.len() > self.kept
            && idle
                .front()
                .is_some_and(|first| now.duration_since(first.since) > IDLE)
        {
            let _closed = idle.pop_front();
        }
    }
}

/// Connections beyond those that are kept are closed after this long without use.
const IDLE: Duration = Duration::from_secs(300);
