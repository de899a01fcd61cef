//! Signals, and the end of the process: on a thread with a runtime of its own, so that nothing that
//! hangs elsewhere keeps the process alive.
//!
//! The first SIGTERM or SIGINT asks for an orderly end, the second for a quick one, the third ends
//! the process. Whatever hangs then, the process is gone after [`STOP_DEADLINE`]: what was
//! acknowledged is durable, and the next start does what it does after a crash.

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{Background, keep_thread, log, panic_point};
use crate::process::exit_now;

/// How urgently the process is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// It is not to end.
    No,
    /// In order.
    Orderly,
    /// Without waiting for requests.
    Quickly,
}

/// What was asked of this process by signals.
#[derive(Debug, Clone)]
pub struct Signals {
    /// Whether it is to end.
    pub stop: watch::Receiver<Stop>,
    /// How often SIGHUP came.
    pub hangups: watch::Receiver<u64>,
}

impl Signals {
    /// Handles signals from here on: none of them kills the process any more but those that cannot
    /// be handled, or mean a fault.
    ///
    /// # Errors
    ///
    /// What the operating system said.
    pub fn listen() -> io::Result<Self> {
        let (stop, stopping) = watch::channel(Stop::No);
        let (hung_up, hangups) = watch::channel(0);
        let (first, listening) = sync_channel(1);
        let work = move || handle(&stop, &hung_up, &first);
        drop(keep_thread(Background::Signals, work)?);
        let ended = |_gone| io::Error::other("the thread for signals ended");
        listening.recv().map_err(ended)??;
        Ok(Self {
            stop: stopping,
            hangups,
        })
    }
}

/// Says what the end of the process waits for from here on: what is named should it take too long.
pub fn end_waits_for(what: &'static str) {
    *WAITED_FOR.lock().unwrap_or_else(PoisonError::into_inner) = what;
}

static WAITED_FOR: Mutex<&str> = Mutex::new("the start");

/// The thread. Tells `first` whether it listens.
fn handle(
    stop: &watch::Sender<Stop>,
    hung_up: &watch::Sender<u64>,
    first: &SyncSender<io::Result<()>>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let streams = runtime.and_then(|runtime| {
        let inside = runtime.enter();
        let streams = Streams::open();
        drop(inside);
        Ok((runtime, streams?))
    });
    match streams {
        Ok((runtime, streams)) => {
            drop(first.try_send(Ok(())));
            runtime.block_on(streams.follow(stop, hung_up));
        }
        Err(error) => drop(first.try_send(Err(error))),
    }
}

struct Streams {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// What has no meaning here and would kill the process.
    alarm: Signal,
    user1: Signal,
    user2: Signal,
    io: Signal,
}

impl Streams {
    fn open() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            alarm: signal(SignalKind::alarm())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            io: signal(SignalKind::io())?,
        })
    }

    /// For ever.
    async fn follow(mut self, stop: &watch::Sender<Stop>, hung_up: &watch::Sender<u64>) {
        // After a fault of this thread the end is near.
        let mut deadline = (*stop.borrow() > Stop::No).then(|| Instant::now() + QUICK_DEADLINE);
        loop {
            panic_point!("signals::follow");
            let passed = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            let ignored = tokio::select! {
                () = passed => end("the server did not end in time"),
                _came = self.terminate.recv() => None,
                _came = self.interrupt.recv() => None,
                _came = self.hangup.recv() => {
                    hung_up.send_modify(|count| *count += 1);
                    continue;
                }
                _came = self.alarm.recv() => Some("SIGALRM"),
                _came = self.user1.recv() => Some("SIGUSR1"),
                _came = self.user2.recv() => Some("SIGUSR2"),
                _came = self.io.recv() => Some("SIGIO"),
            };
            if let Some(name) = ignored {
                tracing::info!("{name} has no meaning here and is ignored");
                continue;
            }
            let asked = *stop.borrow();
            let (next, within) = match asked {
                Stop::No => (Stop::Orderly, STOP_DEADLINE),
                Stop::Orderly => (Stop::Quickly, QUICK_DEADLINE),
                Stop::Quickly => end("the server received a third signal to end"),
            };
            let by = Instant::now() + within;
            deadline = Some(deadline.map_or(by, |before| before.min(by)));
            stop.send_replace(next);
        }
    }
}

/// Ends the process, whatever it is at.
fn end(why: &'static str) -> ! {
    let waits_for = *WAITED_FOR.lock().unwrap_or_else(PoisonError::into_inner);
    tracing::error!(
        waits_for,
        "{why} and is ended; what was acknowledged is durable, the next start recovers the rest"
    );
    log::flush();
    exit_now(FAILED)
}

/// The exit code of an end that was not in order.
const FAILED: u8 = 1;
/// However the server ends, it has ended after this.
pub const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// The same after a second signal.
const QUICK_DEADLINE: Duration = Duration::from_secs(5);
