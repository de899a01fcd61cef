//! Threads and tasks: whatever lives longer than a request is started here, under its name, so that
//! none dies unnoticed.
//!
//! `docs/operations.md` says of each name what depends on it and what its panic ends. A panic is
//! logged, counted by name, and makes `/ready` answer 503 until another has taken the place of the
//! one that is gone.

mod actor;
mod blocking;
pub(crate) mod log;
pub mod signals;

use std::any::Any;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::task::JoinHandle;

pub use actor::{act_as, acting_as, actor};
pub(crate) use blocking::blocking;

use crate::metrics;

/// Called now and then with the bytes (or files) done and their approximate total. Answers whether
/// to go on: work that is stopped is undone.
pub type Progress = Arc<dyn Fn(u64, u64) -> bool + Send + Sync>;

/// Every thread and task that lives longer than a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Background {
    /// Writes the log to standard error.
    LogWriter,
    /// Handles signals, and ends the process in time.
    Signals,
    /// Accepts connections, and commands of this machine.
    Acceptor,
    /// Writes the audit log.
    AuditLog,
    /// Counts identities.
    UsageCounter,
    /// Renews leases.
    LeaseKeeper,
    /// Runs what is due.
    Scheduler,
    /// Writes for one tenant; there is one per open tenant.
    TenantWriter,
    /// Reads the TLS certificate again.
    TlsReload,
    /// Replaces old data keys.
    DataKeyAge,
    /// Looks at all manifests, for the metrics.
    Gauges,
    /// Folds what was recorded into the histograms.
    MetricsUpkeep,
    /// Ships what is committed to the repository of backups.
    Shipper,
    /// Proves that tenants restore from it.
    BackupProofs,
    /// Prunes that repository.
    BackupRetention,
    /// Looks what other servers on the same database do.
    SharedTenants,
}

impl Background {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::LogWriter,
        Self::Signals,
        Self::Acceptor,
        Self::AuditLog,
        Self::UsageCounter,
        Self::LeaseKeeper,
        Self::Scheduler,
        Self::TenantWriter,
        Self::TlsReload,
        Self::DataKeyAge,
        Self::Gauges,
        Self::MetricsUpkeep,
        Self::Shipper,
        Self::BackupProofs,
        Self::BackupRetention,
        Self::SharedTenants,
    ];

    /// Its name in metrics, in `/ready` and in the log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LogWriter => "log-writer",
            Self::Signals => "signals",
            Self::Acceptor => "acceptor",
            Self::AuditLog => "audit-log",
            Self::UsageCounter => "usage-counter",
            Self::LeaseKeeper => "lease-keeper",
            Self::Scheduler => "scheduler",
            Self::TenantWriter => "tenant-writer",
            Self::TlsReload => "tls-reload",
            Self::DataKeyAge => "data-key-age",
            Self::Gauges => "figures",
            Self::MetricsUpkeep => "metrics-upkeep",
            Self::Shipper => "backup-shipper",
            Self::BackupProofs => "backup-proofs",
            Self::BackupRetention => "backup-retention",
            Self::SharedTenants => "shared-tenants",
        }
    }

    /// Whether the next who needs it starts another, so that one that is gone is missed by nobody.
    const fn is_replaced_on_demand(self) -> bool {
        matches!(self, Self::TenantWriter | Self::UsageCounter)
    }
}

/// Panics here when a test armed the point of this name: what a fault in a long-lived thread or
/// task would do.
macro_rules! panic_point {
    ($name:literal) => {
        ::fail::fail_point!($name)
    };
}
pub(crate) use panic_point;

/// Runs `work` on a thread of its own until it ends by itself. A panic is noted; nothing begins it
/// again.
///
/// # Errors
///
/// No thread can be started.
pub(crate) fn thread<T: Send + 'static>(
    who: Background,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<thread::JoinHandle<T>> {
    short_thread(who.name(), move || {
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            died(who);
            resume_unwind(panic)
        })
    })
}

/// As [`thread`], for work that keeps no state of its own: after a panic it is begun again.
///
/// # Errors
///
/// No thread can be started.
pub(crate) fn keep_thread(
    who: Background,
    work: impl Fn() + Send + 'static,
) -> io::Result<thread::JoinHandle<()>> {
    short_thread(who.name(), move || {
        let mut pause = Pause::default();
        while catch_unwind(AssertUnwindSafe(&work)).is_err() {
            died(who);
            thread::sleep(pause.next());
            runs_again(who);
        }
    })
}

/// Runs a task until it ends by itself. A panic is noted; nothing begins it again.
pub(crate) fn task<F>(who: Background, work: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    short_task(async move {
        AssertUnwindSafe(work)
            .catch_unwind()
            .await
            .unwrap_or_else(|panic| {
                died(who);
                resume_unwind(panic)
            })
    })
}

/// Runs the task that `make` gives until it ends by itself. After a panic another is made, later
/// and later while they go on to panic.
pub(crate) fn keep<F>(who: Background, make: impl Fn() -> F + Send + 'static) -> Kept<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    Kept(short_task(async move {
        let mut pause = Pause::default();
        loop {
            match AssertUnwindSafe(make()).catch_unwind().await {
                Ok(end) => return end,
                Err(_told) => {
                    died(who);
                    tokio::time::sleep(pause.next()).await;
                    runs_again(who);
                }
            }
        }
    }))
}

/// A task that is kept running, until this is dropped.
#[derive(Debug)]
pub(crate) struct Kept<T>(JoinHandle<T>);

impl<T> Kept<T> {
    /// Waits until it ends by itself; `None` when the runtime ended it.
    pub(crate) async fn ended(mut self) -> Option<T> {
        (&mut self.0).await.ok()
    }

    /// Ends it, as a process that is killed does.
    #[cfg(test)]
    pub(crate) async fn abort(mut self) {
        self.0.abort();
        drop((&mut self.0).await);
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs a task that is over when what it was begun for is: a request, an opening, an operation.
/// Whoever needs its result waits for it.
#[expect(clippy::disallowed_methods, reason = "the one owner of tasks")]
pub(crate) fn short_task<F>(work: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(work)
}

/// Runs a thread that is over when what it was begun for is.
///
/// # Errors
///
/// No thread can be started.
#[expect(clippy::disallowed_methods, reason = "the one owner of threads")]
pub(crate) fn short_thread<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<thread::JoinHandle<T>> {
    thread::Builder::new().name(name.into()).spawn(work)
}

/// From here on a panic of whatever thread or task is a line of the log, and counted. To be called
/// once, by a server.
pub(crate) fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        metrics::PANICKED.increment(1);
        let place = panic.location().map(ToString::to_string);
        let thread = thread::current();
        tracing::error!(
            thread = thread.name().unwrap_or("unnamed"),
            at = place.unwrap_or_default(),
            why = panic_message(panic.payload()),
            "panicked: this is a fault of the server"
        );
    }));
}

/// An alert on what never happened needs its zero. What happened before there were metrics is
/// counted, too. To be called once, by a server.
pub(crate) fn show_metrics() {
    let early = early().take().unwrap_or_default();
    let down = down();
    for who in Background::ALL {
        metrics::background_down(who.name(), down.contains_key(&who));
        metrics::background_panics(who.name(), early.get(&who).copied().unwrap_or(0));
    }
}

/// Who is gone by a fault and was not replaced.
#[must_use]
pub(crate) fn gone() -> Vec<Background> {
    down().keys().copied().collect()
}

fn died(who: Background) {
    let name = who.name();
    match &mut *early() {
        Some(early) => *early.entry(who).or_default() += 1,
        None => metrics::background_panics(name, 1),
    }
    if who.is_replaced_on_demand() {
        tracing::error!(
            name,
            "ended by a fault; the next that needs it starts another"
        );
        return;
    }
    *down().entry(who).or_default() += 1;
    metrics::background_down(name, true);
    tracing::error!(
        name,
        "ended by a fault; what depends on it is refused until it runs again"
    );
}

fn runs_again(who: Background) {
    let mut down = down();
    if let Some(count) = down.get_mut(&who) {
        *count -= 1;
        if *count == 0 {
            down.remove(&who);
            metrics::background_down(who.name(), false);
        }
    }
    drop(down);
    tracing::warn!(name = who.name(), "begun again after a fault");
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or(panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no words")
}

fn down() -> MutexGuard<'static, BTreeMap<Background, u32>> {
    DOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn early() -> MutexGuard<'static, Option<BTreeMap<Background, u64>>> {
    EARLY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Deaths before there were metrics; `None` from then on.
static EARLY: Mutex<Option<BTreeMap<Background, u64>>> = Mutex::new(Some(BTreeMap::new()));

static DOWN: Mutex<BTreeMap<Background, u32>> = Mutex::new(BTreeMap::new());

/// How long to wait before another is begun: twice as long each time, but after one that had run
/// for long.
struct Pause {
    next: Duration,
    since: Instant,
}

impl Default for Pause {
    fn default() -> Self {
        Self {
            next: SHORTEST,
            since: Instant::now(),
        }
    }
}

impl Pause {
    fn next(&mut self) -> Duration {
        if self.since.elapsed() > 2 * LONGEST {
            self.next = SHORTEST;
        }
        let pause = self.next;
        self.next = (2 * pause).min(LONGEST);
        self.since = Instant::now();
        pause
    }
}

const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests;
