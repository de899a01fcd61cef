//! Counts the identities that use tenants' keys, off the path of requests.
//!
//! A request costs a hash and a look into a set in memory. An identity that is new there goes into
//! a queue; a thread of its own takes what has gathered for two seconds, or a batch, and commits it
//! to the control file, which knows what it has counted before. A crash loses what stood in the
//! queue: each of those identities counts with its next request of that month.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nimbus_manifests::TenantId;

use crate::control::{AccessKeyId, Control, Identity, Month, Sighting};
use crate::failpoints::crash_point;
use crate::runtime::{self, Background, panic_point};

/// Counts identities.
#[derive(Debug)]
pub struct UsageCounter {
    control: Arc<Control>,
    state: Mutex<State>,
    not_counted: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// The month and the number of ended deletions that `seen` is good for.
    of: Option<(Month, u64)>,
    /// What is in the queue or counted already.
    seen: HashSet<u64>,
    worker: Worker,
}

#[derive(Debug, Default)]
enum Worker {
    /// Nothing was seen yet.
    #[default]
    None,
    Running(SyncSender<Message>, JoinHandle<()>),
    Closed,
}

#[derive(Debug)]
enum Message {
    Seen(Sighting),
    /// Everything before this must be committed; the sender is notified when that was tried.
    Flush(SyncSender<()>),
}

impl UsageCounter {
    /// A counter into `control`. Its thread starts with the first identity.
    #[must_use]
    pub fn new(control: Arc<Control>) -> Self {
        Self {
            control,
            state: Mutex::default(),
            not_counted: AtomicU64::new(0),
        }
    }

    /// Notes a request under `key` of `tenant`. Never waits.
    pub fn note(
        &self,
        key: AccessKeyId,
        tenant: &TenantId,
        identity: Identity<'_>,
        now: Timestamp,
    ) {
        let month = Month::of(now);
        let hash = self.control.identity_hash(month, tenant, identity);
        // A tenant made anew after a deletion counts its identities anew.
        let of = Some((month, self.control.deletions()));
        let mut state = self.state();
        if state.of != of {
            state.seen.clear();
            state.of = of;
        }
        if state.seen.contains(&hash) {
            return;
        }
        let sighting = Sighting {
            month,
            tenant: tenant.clone(),
            key,
            hash,
        };
        if self.enqueue(&mut state, sighting) {
            // Beyond this many every request goes through the queue: the control file still counts
            // each identity once.
            if state.seen.len() < MAX_SEEN {
                state.seen.insert(hash);
            }
        } else {
            self.not_counted.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Commits what has gathered. Waits for it, at most a few seconds.
    pub fn flush(&self) {
        let (done, when) = sync_channel(1);
        let sent = match &self.state().worker {
            Worker::Running(queue, _) => queue.try_send(Message::Flush(done)).is_ok(),
            Worker::None | Worker::Closed => false,
        };
        if sent {
            // Whoever asks is answered with what was committed, be it late.
            let _when = when.recv_timeout(FLUSH_PATIENCE);
        }
    }

    /// Requests whose identity found no place in the queue.
    #[must_use]
    pub fn not_counted(&self) -> u64 {
        self.not_counted.load(Ordering::Relaxed)
    }

    /// Commits what has gathered and ends; nothing is counted any more.
    pub fn close(&self) {
        let worker = std::mem::replace(&mut self.state().worker, Worker::Closed);
        if let Worker::Running(queue, thread) = worker {
            drop(queue);
            // If it panicked, that was said.
            drop(thread.join());
        }
    }

    fn enqueue(&self, state: &mut State, sighting: Sighting) -> bool {
        if matches!(state.worker, Worker::None) {
            match self.start() {
                Ok(worker) => state.worker = worker,
                Err(error) => {
                    tracing::error!(%error, "usage cannot be counted: its thread does not start");
                    return false;
                }
            }
        }
        let Worker::Running(queue, _) = &state.worker else {
            return false;
        };
        match queue.try_send(Message::Seen(sighting)) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => false,
            Err(TrySendError::Disconnected(Message::Seen(sighting))) => {
                // It ended by a fault, as in a crash: whoever stood in the queue counts with the
                // next request.
                state.worker = Worker::None;
                state.seen.clear();
                self.enqueue(state, sighting)
            }
            Err(TrySendError::Disconnected(Message::Flush(_))) => false,
        }
    }

    fn start(&self) -> io::Result<Worker> {
        let (queue, inbox) = sync_channel(QUEUE);
        let control = self.control.clone();
        let work = move || work(&control, &inbox);
        let thread = runtime::thread(Background::UsageCounter, work)?;
        Ok(Worker::Running(queue, thread))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread: gathers, and commits.
fn work(control: &Control, inbox: &Receiver<Message>) {
    let mut gathered = Gathered::default();
    loop {
        let message = match gathered.due() {
            // Nothing waits for a commit.
            None => inbox
                .recv()
                .map_err(|_closed| RecvTimeoutError::Disconnected),
            // A commit failed and there is room for no more.
            Some(due) if gathered.seen.len() >= BATCH && due > Duration::ZERO => {
                std::thread::sleep(due);
                Err(RecvTimeoutError::Timeout)
            }
            Some(due) => inbox.recv_timeout(due),
        };
        match message {
            Ok(Message::Seen(sighting)) => {
                panic_point!("usage::seen");
                gathered.add(sighting);
            }
            Ok(Message::Flush(done)) => {
                gathered.commit(control);
                // Nobody listens any more when it took too long.
                let _sent = done.try_send(());
            }
            Err(RecvTimeoutError::Timeout) => gathered.commit(control),
            Err(RecvTimeoutError::Disconnected) => {
                gathered.commit(control);
                return;
            }
        }
    }
}

/// What the thread holds between two commits.
#[derive(Debug, Default)]
struct Gathered {
    seen: Vec<Sighting>,
    /// When they are committed at the latest; not set while there is nothing.
    due: Option<Instant>,
    failing: bool,
}

impl Gathered {
    fn add(&mut self, sighting: Sighting) {
        self.seen.push(sighting);
        if self.seen.len() >= BATCH && !self.failing {
            self.due = Some(Instant::now());
        } else if self.due.is_none() {
            self.due = Some(Instant::now() + GATHER);
        }
    }

    fn due(&self) -> Option<Duration> {
        let due = self.due?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    /// Commits what there is; keeps it for another try when that fails.
    fn commit(&mut self, control: &Control) {
        if self.seen.is_empty() {
            return;
        }
        crash_point!("usage::gathered");
        match control.count_identities(&self.seen) {
            Ok(()) => {
                crash_point!("usage::committed");
                *self = Self::default();
            }
            Err(error) => {
                if !self.failing {
                    tracing::error!(%error, "usage is not counted while the control file fails; what was seen last is tried again");
                }
                self.failing = true;
                self.due = Some(Instant::now() + GATHER);
            }
        }
    }
}

/// For how long identities gather before they are committed: what a crash can lose.
const GATHER: Duration = Duration::from_secs(2);
/// How many are committed at once.
const BATCH: usize = 4096;
/// How many wait for the thread.
const QUEUE: usize = 8192;
/// How many are known to be counted, without a look into the control file: 16 MiB of memory.
const MAX_SEEN: usize = 1 << 20;
const FLUSH_PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Scope;
    use crate::envelope::Envelope;

    struct House {
        counter: UsageCounter,
        control: Arc<Control>,
        tenant: TenantId,
        key: AccessKeyId,
        _dir: tempfile::TempDir,
    }

    impl House {
        async fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let control = Control::open(&Envelope::plaintext(), dir.path()).await;
            let control = Arc::new(control.unwrap());
            let tenant: TenantId = "demo".parse().unwrap();
            Self {
                counter: UsageCounter::new(control.clone()),
                key: make_key(&control, &tenant),
                control,
                tenant,
                _dir: dir,
            }
        }

        fn note(&self, name: &str, time: &str) {
            let now = time.parse().unwrap();
            let identity = Identity::Named(name.as_bytes());
            self.counter.note(self.key, &self.tenant, identity, now);
        }

        /// Months and their identities, the newest first.
        fn counted(&self) -> Vec<(String, u64)> {
            self.counter.flush();
            let months = self.control.usage(None).unwrap();
            let show = |one: crate::control::MonthUsage| (one.month.to_string(), one.identities);
            months.into_iter().map(show).collect()
        }
    }

    fn make_key(control: &Control, tenant: &TenantId) -> AccessKeyId {
        let name = "a name".parse().unwrap();
        let made = control.create_key(tenant, name, Scope::Read, control.deletions());
        made.unwrap().0.id()
    }

    #[tokio::test]
    async fn a_month_begins_anew_at_midnight_of_the_first_and_a_clock_set_back_finds_the_old_one() {
        let house = House::new().await;
        for name in ["ann", "bob", "ann"] {
            house.note(name, "2026-11-30T23:59:59.999Z");
        }
        house.note("ann", "2026-12-01T00:00:00Z");
        house.note("ann", "2026-11-30T23:59:59Z");
        house.note("cy", "2026-11-30T23:59:59Z");
        house.note("ann", "2026-12-01T00:00:01Z");
        let expected = [("2026-12".to_owned(), 1), ("2026-11".to_owned(), 3)];
        assert_eq!(house.counted(), expected);
    }

    #[tokio::test]
    async fn a_tenant_made_anew_counts_its_identities_anew() {
        let mut house = House::new().await;
        house.note("ann", "2026-11-05T00:00:00Z");
        assert_eq!(house.counted(), [("2026-11".to_owned(), 1)]);
        house.control.begin_delete(&house.tenant).unwrap();
        house.control.finish_delete(&house.tenant).unwrap();
        house.key = make_key(&house.control, &house.tenant);
        house.note("ann", "2026-11-06T00:00:00Z");
        let months = house.counted();
        assert_eq!(months, [("2026-11".to_owned(), 2)], "one of each tenant");
    }

    #[tokio::test]
    async fn an_end_commits_what_has_gathered_and_counts_nothing_after_it() {
        let house = House::new().await;
        house.note("ann", "2026-11-05T00:00:00Z");
        house.counter.close();
        assert_eq!(house.counted(), [("2026-11".to_owned(), 1)]);
        house.note("bob", "2026-11-05T00:00:00Z");
        assert_eq!(house.counter.not_counted(), 1);
        assert_eq!(house.counted(), [("2026-11".to_owned(), 1)]);
    }

    #[tokio::test]
    async fn a_batch_is_committed_as_it_fills_and_a_full_queue_turns_away() {
        let house = House::new().await;
        let many = QUEUE + 3 * BATCH;
        for n in 0..many {
            house.note(&format!("identity {n}"), "2026-11-05T00:00:00Z");
        }
        house.counter.close();
        let turned_away = house.counter.not_counted();
        let counted = house.control.usage(None).unwrap()[0].identities;
        assert_eq!(
            counted + turned_away,
            many as u64,
            "each is one or the other"
        );
    }
}
