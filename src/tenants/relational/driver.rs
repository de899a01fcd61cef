//! What drivers share that are asynchronous: a runtime of their own, connections that are open, and
//! an end for work that nobody waits for.

use std::{
    collections::VecDeque,
    fmt::{self, Debug},
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    runtime::{Handle, Runtime},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};

use super::{
    engine::{Failure, FailureKind, Stops},
    space::PATIENCE,
};

/// It is no URL of an engine. What was given is not repeated: it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is no URL of {engine} as {form}, with the parameters that {page} lists")]
pub struct NotAUrl {
    pub(super) engine: &'static str,
    pub(super) form: &'static str,
    pub(super) page: &'static str,
}

/// An error of an engine, or of the way to it.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {what}")]
struct EngineError {
    place: String,
    what: String,
}

pub(super) fn failure(place: &str, kind: FailureKind, what: impl Into<String>) -> Failure {
    let (place, what) = (place.to_owned(), what.into());
    Failure {
        kind,
        source: Arc::new(EngineError { place, what }),
    }
}

/// Where an engine is, the runtime that its connections use, and those that are open.
pub(super) struct Driver<W> {
    pub(super) place: Arc<str>,
    pub(super) pool: Arc<Pool<W>>,
    runtime: Option<Runtime>,
}

impl<W> Debug for Driver<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Driver").field(&self.place).finish()
    }
}

impl<W> Drop for Driver<W> {
    fn drop(&mut self) {
        // Nothing is waited for: whoever drops it may not block.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl<W> Driver<W> {
    /// Connections to a place, of which some are kept and so many open at most.
    pub(super) fn new(
        place: String,
        threads: &str,
        connections: (usize, usize),
    ) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(RUNTIME_THREADS)
            .thread_name(threads)
            .enable_all()
            .build()
            .map_err(|error| failure(&place, FailureKind::Refused, error.to_string()))?;
        Ok(Self {
            place: place.into(),
            pool: Arc::new(Pool::new(connections)),
            runtime: Some(runtime),
        })
    }

    pub(super) fn handle(&self) -> &Handle {
        // It is taken when this is dropped, and by nobody else.
        self.runtime
            .as_ref()
            .expect("a runtime until the end")
            .handle()
    }

    /// Waits for the right to have a connection. `setting` says how many there may be.
    pub(super) async fn permit(&self, setting: &str) -> Result<OwnedSemaphorePermit, Failure> {
        let permits = Arc::clone(&self.pool.permits);
        match timeout(PATIENCE, permits.acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => {
                let what = format!("all connections are in use: raise {setting}, or try again");
                Err(failure(&self.place, FailureKind::Exhausted, what))
            }
        }
    }
}

/// Does some work, unless nobody waits for it any more. The connection is not to be used then.
pub(super) async fn unless_stopped<T>(
    place: &str,
    stops: &Stops,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let stopped = async {
        while !stops.is_set() {
            sleep(LOOK).await;
        }
    };
    tokio::select! {
        biased;
        done = work => done,
        () = stopped => Err(failure(place, FailureKind::Stopped, "nobody waits for it any more")),
    }
}

/// Connections that are open and not in use, and the right to have one.
#[derive(Debug)]
pub(super) struct Pool<W> {
    permits: Arc<Semaphore>,
    /// The one used last is the last.
    idle: Mutex<VecDeque<Idle<W>>>,
    kept: usize,
}

#[derive(Debug)]
struct Idle<W> {
    wire: W,
    since: Instant,
}

impl<W> Pool<W> {
    /// A pool of at most so many connections, of which some are kept.
    fn new((kept, most): (usize, usize)) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(most)),
            idle: Mutex::new(VecDeque::new()),
            kept,
        }
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Idle<W>>> {
        // Every change under the lock is complete in itself: a panic leaves no half of it.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take(&self) -> Option<W> {
        self.idle().pop_back().map(|idle| idle.wire)
    }

    pub(super) fn give_back(&self, wire: W) {
        // Closed behind the lock.
        let mut closed = Vec::new();
        let (mut idle, now) = (self.idle(), Instant::now());
        idle.push_back(Idle { wire, since: now });
        while idle.len() > self.kept
            && idle
                .front()
                .is_some_and(|first| now.duration_since(first.since) > IDLE)
        {
            closed.extend(idle.pop_front());
        }
        drop(idle);
        drop(closed);
    }

    /// Closes those that are not in use.
    pub(super) fn clear(&self) {
        let closed = std::mem::take(&mut *self.idle());
        drop(closed);
    }
}

const RUNTIME_THREADS: usize = 2;
/// How often is looked whether anybody still waits.
const LOOK: Duration = Duration::from_millis(25);
/// Connections beyond those that are kept are closed after this long without use.
pub(super) const IDLE: Duration = Duration::from_secs(300);
