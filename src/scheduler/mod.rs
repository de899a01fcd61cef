//! The scheduler: runs what is due, in whichever tenant, open or not.
//!
//! It knows from the [`DueIndex`] when to look at which tenant, and sleeps until then; tenants
//! without work cost it nothing. A look opens the tenant, runs what is due in batches between which
//! others' writes have their turn, and lets it go again. A tenant in trouble is tried again later
//! and later, and takes no more than a part of the places from the others.

mod clock;
mod due_index;

use std::sync::Arc;
use std::time::{Duration, Instant};

use nimbus_manifests::TenantId;
use tokio::sync::{Mutex, watch};
use tokio::task::{JoinError, JoinSet};

pub use clock::{Clock, SystemClock};
pub use due_index::{DueIndex, DueRecord};

use crate::documents::schedule::{DueWork, Ran};
use crate::metrics;
use crate::runtime::{self, Background, Kept, acting_as, blocking, panic_point};
use crate::tenants::{Claim, StoreError, TenantProvider};
use due_index::{Turn, is_set_back};

/// The running scheduler.
#[derive(Debug)]
pub struct Scheduler {
    clock: Arc<dyn Clock>,
    stopping: watch::Sender<bool>,
    task: Mutex<Option<Kept<()>>>,
}

impl Scheduler {
    /// Starts it over the tenants whose [`DueLog`](crate::tenants::DueLog) is this due index.
    pub fn start(
        tenants: Arc<dyn TenantProvider>,
        due_index: Arc<DueIndex>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let (stopping, stopped) = watch::channel(false);
        let of_rounds = Arc::clone(&clock);
        let rounds = move || {
            let rounds = Rounds {
                tenants: Arc::clone(&tenants),
                due_index: Arc::clone(&due_index),
                clock: Arc::clone(&of_rounds),
                looks: JoinSet::new(),
                suspects: 0,
                stopped: stopped.clone(),
            };
            rounds.run()
        };
        let task = runtime::keep(Background::Scheduler, rounds);
        Self {
            clock,
            stopping,
            task: Mutex::new(Some(task)),
        }
    }

    /// The time by which it goes.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }

    /// Lets what runs come to its end, and begins nothing more. What is due waits for the next
    /// start. To be called before the tenants are closed.
    pub async fn stop(&self) {
        self.stopping.send_replace(true);
        let task = self.task.lock().await.take();
        if let Some(task) = task {
            let _ended = task.ended().await;
        }
    }
}

/// What the scheduler's task owns.
struct Rounds {
    tenants: Arc<dyn TenantProvider>,
    due_index: Arc<DueIndex>,
    clock: Arc<dyn Clock>,
    looks: JoinSet<Turn>,
    /// How many of `looks` are at tenants whose last look failed.
    suspects: usize,
    stopped: watch::Receiver<bool>,
}

impl Rounds {
    async fn run(mut self) {
        // Looks of rounds that a fault ended are over, and those tenants want new ones.
        self.due_index.forget_looks(self.clock.now_ms());
        self.complete().await;
        let mut before = self.clock.now_ms();
        let (mut settled, mut told) = (Instant::now(), Instant::now());
        while !*self.stopped.borrow() {
            panic_point!("scheduler::round");
            let now = self.clock.now_ms();
            if is_set_back(before, now) {
                tracing::warn!("the clock was set back; the times of all crons are reckoned again");
                self.due_index.look_at_all(now);
            }
            before = now;
            self.begin(now);
            if told.elapsed() >= TELL || self.due_index.is_empty() {
                told = Instant::now();
                metrics::SCHEDULER_LATE.set(self.due_index.late_ms(now) as f64 / 1000.0);
            }
            self.wait(now).await;
            if settled.elapsed() >= BEAT {
                settled = Instant::now();
                self.settle(false).await;
            }
        }
        let last = async { while self.looks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_PATIENCE, last).await.is_err() {
            tracing::warn!(
                "some tenants' due work did not end in time and is cut off; the next start runs it"
            );
        }
        self.settle(true).await;
    }

    /// Sees to it that every tenant with work is known.
    async fn complete(&self) {
        if !self.due_index.is_incomplete() {
            return;
        }
        let due_index = Arc::clone(&self.due_index);
        let completed = match self.tenants.list_tenants().await {
            Ok(tenants) => blocking(move || due_index.complete(&tenants))
                .await
                .map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = completed {
            tracing::error!(%error, "which tenants have work due is not known; what tenants that are not opened have waits for the next start");
        }
    }

    /// Begins looks at what is due, as far as there are places.
    fn begin(&mut self, now: i64) {
        let free = LOOKS.saturating_sub(self.looks.len());
        let suspects = SUSPECT_LOOKS.saturating_sub(self.suspects);
        for turn in self.due_index.take(now, free, suspects) {
            self.suspects += usize::from(turn.suspect);
            let look = look(
                Arc::clone(&self.tenants),
                Arc::clone(&self.due_index),
                Arc::clone(&self.clock),
                turn,
                self.stopped.clone(),
            );
            let _handle = self.looks.spawn(look);
        }
    }

    /// Waits until there may be something to do.
    async fn wait(&mut self, now: i64) {
        // A tenant that is due and was not begun waits for a place: for a look to end.
        let until = self
            .due_index
            .next_look(now)
            .map_or(BEAT, |at| Duration::from_millis(at.abs_diff(now)).min(BEAT));
        let idle = self.due_index.is_empty();
        tokio::select! {
            () = self.due_index.changed() => {}
            Some(look) = self.looks.join_next() => self.ended(look),
            // A closed channel means that nobody can stop it any more.
            _stopping = self.stopped.changed() => {}
            // The clock may be set: it is looked at once in a while. With nothing to wait for there
            // is no reason to.
            () = tokio::time::sleep(until), if !idle => {}
        }
    }

    fn ended(&mut self, look: Result<Turn, JoinError>) {
        match look.map_err(JoinError::try_into_panic) {
            Ok(turn) => self.suspects -= usize::from(turn.suspect),
            // Which turn that was is not known: all of them begin anew.
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            Err(Err(_runtime_ends)) => {}
        }
    }

    async fn settle(&self, all: bool) {
        let due_index = Arc::clone(&self.due_index);
        if let Err(error) = blocking(move || due_index.settle(all)).await {
            tracing::warn!(%error, "the control file was not brought up to date; the next start looks at some tenants in vain");
        }
    }
}

/// Runs what is due in one tenant, and updates the due index.
async fn look(
    tenants: Arc<dyn TenantProvider>,
    due_index: Arc<DueIndex>,
    clock: Arc<dyn Clock>,
    turn: Turn,
    stopped: watch::Receiver<bool>,
) -> Turn {
    let tenant = &turn.tenant;
    // In a task of its own, so that a panic in it is a failure like others.
    let work = run_due(
        tenants,
        clock,
        tenant.clone(),
        turn.give_up.clone(),
        stopped,
    );
    let running = runtime::short_task(acting_as(ACTOR.into(), work));
    let result = running.await.unwrap_or_else(|_panic| {
        Err(StoreError::Closed {
            tenant: tenant.clone(),
        })
    });
    match result {
        Ok(next_due) => due_index.looked(&turn, next_due),
        Err(error) => {
            let work = match &error {
                StoreError::Unrunnable { work, .. } => Some(work),
                _ => None,
            };
            let failures = due_index.failed(&turn, work);
            let gone = matches!(error, StoreError::TenantNotFound { .. });
            // A full queue or a server that stops is no trouble.
            let passing = matches!(error, StoreError::Busy { .. } | StoreError::Closed { .. });
            if failures.is_power_of_two() && !gone && !(passing && failures < 4) {
                tracing::warn!(%tenant, %error, failures, "a tenant's work that is due cannot be run; it is tried again");
            }
        }
    }
    turn
}

/// Runs what is due in one tenant, batch by batch; when the next is due.
async fn run_due(
    tenants: Arc<dyn TenantProvider>,
    clock: Arc<dyn Clock>,
    tenant: TenantId,
    give_up: Option<DueWork>,
    stopped: watch::Receiver<bool>,
) -> Result<Option<i64>, StoreError> {
    let now = clock.now_ms();
    match tenants.claim(&tenant, now).await? {
        Claim::Free => {}
        Claim::Taken => return Ok(Some(now.saturating_add(TAKEN_MS))),
        Claim::Later(next_due_ms) => return Ok(next_due_ms),
    }
    let store = tenants.open(&tenant).await?;
    let mut batches = 0;
    loop {
        let now = clock.now_ms();
        let Ran { next_due_ms, .. } = store.run_due(now, BATCH, give_up.clone()).await?;
        batches += 1;
        let more = next_due_ms.is_some_and(|due| due <= now);
        // One that has more than this to do lets the others go first.
        if !more || batches == BATCHES || *stopped.borrow() {
            return Ok(next_due_ms);
        }
    }
}

/// Who opens tenants for their work, in the audit log.
const ACTOR: &str = "scheduler";
/// How many tenants are looked at at once.
const LOOKS: usize = 8;
/// How many of them may be ones whose last look failed: an unreachable key provider may keep each
/// waiting for long.
const SUSPECT_LOOKS: usize = 2;
/// When to look again at a tenant whose work another server runs.
const TAKEN_MS: i64 = 250;
/// How many jobs share a commit.
const BATCH: usize = 64;
/// How many batches one look runs.
const BATCHES: usize = 16;
/// How long what runs may take to end when the server stops.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// How often, at most, the scheduler's delay is logged.
const TELL: Duration = Duration::from_secs(1);
/// How long the scheduler sleeps at most while anything is scheduled.
const BEAT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests;
