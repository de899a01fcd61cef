//! When each tenant is due: in memory and exact, and in the control file for the next start.
//!
//! The tenant's own file is the truth; an entry is a promise to look there in time. So the rule is:
//! **no entry is later than the truth**, in the control file and in memory, at any moment at which
//! the server may be killed. An entry that is too early costs one look in vain.
//!
//! | state in which a crash leaves it | the next start |
//! | --- | --- |
//! | 1. neither file has the work | nothing was answered, nothing runs |
//! | 2. the control file has an entry, the tenant's transaction is not committed | one look in vain |
//! | 3. both have it | runs it when it is due |
//! | 4. it ran, the entry is still there | one look in vain |
//! | 5. the entry was set later or removed, in one commit for many tenants | as 3 for what is left |
//!
//! Two things keep the control file quiet. Its entries are full minutes, rounded down, so that what
//! is scheduled within one costs one write. And one that has become too early is set later only
//! once nothing was scheduled for ten minutes: a tenant that schedules all the time keeps an early
//! one. What is scheduled after an entry's time costs no write at all.
//!
//! Where several servers share their tenants, the transaction that makes work due notes it for all
//! of them, and nothing is left to be noted here. A server learns of work noted by others once that
//! is overdue.
//!
//! A file may be replaced from outside, by a backup or a migration, while the server is down: when
//! such a tenant is opened its first due time is compared, and a missing entry is made. A control
//! file that was made anew beside tenants gives each of them an entry at its first start.
//!
//! **Order of what happens at once.** A look may find nothing while a job is being scheduled whose
//! transaction comes just after. Such a job was announced after the look began, and what is
//! announced during a look counts beside what the look finds.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nimbus_manifests::TenantId;
use tokio::sync::Notify;

use super::Clock;
use crate::control::{self, Control};
use crate::documents::schedule::{CLOCK_SLACK_MS, DueWork};
use crate::tenants::{DueLog, StoreError, control_failed};

/// Where it is noted for good when tenants have work due: the control file, or a database that
/// several servers share. Its calls block.
pub trait DueRecord: Debug + Send + Sync {
    /// All entries.
    fn due(&self) -> Result<control::DueIndex, StoreError>;

    /// Sets entries, or removes them; all of them or, after an error, none.
    fn set_due(&self, changes: &[(TenantId, Option<i64>)], clock_ms: i64)
    -> Result<(), StoreError>;

    /// Gives each of these tenants an entry that is due at once, and notes that from now on none is
    /// missing.
    fn complete_due(&self, tenants: &[TenantId], clock_ms: i64) -> Result<(), StoreError>;
}

impl DueRecord for Control {
    fn due(&self) -> Result<control::DueIndex, StoreError> {
        Self::due(self).map_err(control_failed)
    }

    fn set_due(
        &self,
        changes: &[(TenantId, Option<i64>)],
        clock_ms: i64,
    ) -> Result<(), StoreError> {
        let changes = changes.iter().map(|(tenant, at)| (tenant, *at));
        Self::set_due(self, changes, clock_ms).map_err(control_failed)
    }

    fn complete_due(&self, tenants: &[TenantId], clock_ms: i64) -> Result<(), StoreError> {
        Self::complete_due(self, tenants, clock_ms).map_err(control_failed)
    }
}

/// When to look at which tenant.
#[derive(Debug)]
pub struct DueIndex {
    record: Arc<dyn DueRecord>,
    clock: Arc<dyn Clock>,
    /// Held while the control file is written, and not for longer looks at the state.
    writing: Mutex<()>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<TenantId, Entry>,
    /// Waiting tenants, by their due time.
    order: BTreeSet<(i64, TenantId)>,
    /// Counts looks, so that an old one is not taken for a new one.
    looks: u64,
    /// The control file lacks entries.
    incomplete: bool,
}

#[derive(Debug, Default)]
struct Entry {
    /// When the first work is due; not later, but perhaps earlier.
    due: Option<i64>,
    /// When to look: when it is due, or later after a look that failed. Nothing while a look is
    /// under way.
    at: Option<i64>,
    /// Not earlier than what the control file has.
    durable: Option<i64>,
    /// Since when `durable` may be set later.
    early_since: Option<i64>,
    look: Option<Look>,
    /// Looks in a row that failed.
    failures: u32,
    /// The work at which the engine failed, and how often. A restart begins to count anew.
    failing: Option<(DueWork, u32)>,
}

#[derive(Debug)]
struct Look {
    number: u64,
    /// What was announced since it began.
    since: Option<i64>,
}

/// A tenant to be looked at: its work must be run, and [`DueIndex::looked`] or [`DueIndex::failed`]
/// told.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) tenant: TenantId,
    number: u64,
    /// The last look at it failed.
    pub(super) suspect: bool,
    /// What failed so often that this is its last try.
    pub(super) give_up: Option<DueWork>,
}

impl DueIndex {
    /// Reads what is noted. Blocks.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn load(record: Arc<dyn DueRecord>, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let index = record.due()?;
        let now = clock.now_ms();
        // Crons may have times then that the clock, set right again, will not reach for long.
        let set_back = index
            .clock_ms
            .is_some_and(|before| is_set_back(before, now));
        let mut state = State {
            incomplete: !index.complete,
            ..State::default()
        };
        for (tenant, durable) in index.entries {
            let at = if set_back { durable.min(now) } else { durable };
            state.order.insert((at, tenant.clone()));
            let entry = Entry {
                due: Some(durable),
                at: Some(at),
                durable: Some(durable),
                ..Entry::default()
            };
            state.entries.insert(tenant, entry);
        }
        Ok(Self {
            record,
            clock,
            writing: Mutex::default(),
            state: Mutex::new(state),
            changed: Notify::new(),
        })
    }

    /// Whether [`complete`](Self::complete) must be called.
    pub(super) fn is_incomplete(&self) -> bool {
        self.state().incomplete
    }

    /// Gives every tenant an entry that is due now. Blocks.
    pub(super) fn complete(&self, tenants: &[TenantId]) -> Result<(), StoreError> {
        let _writing = self.writing();
        self.record.complete_due(tenants, self.clock.now_ms())?;
        let mut state = self.state();
        state.incomplete = false;
        for tenant in tenants {
            let _first = state.announce(tenant, 0);
            state.entries.entry(tenant.clone()).or_default().durable = Some(0);
        }
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Resolves when something was announced that may be earlier than all else.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// When to look next, at whichever tenant; what is due already is not meant.
    pub(super) fn next_look(&self, now_ms: i64) -> Option<i64> {
        let state = self.state();
        let mut waiting = state.order.iter().map(|(at, _)| *at);
        waiting.find(|at| *at > now_ms)
    }

    /// Whether there is anything to come back for: work, or an entry to be set later.
    pub(super) fn is_empty(&self) -> bool {
        self.state().entries.is_empty()
    }

    /// How long the first work waits that is due, in milliseconds; 0 when none is.
    pub(super) fn late_ms(&self, now_ms: i64) -> i64 {
        let state = self.state();
        let first = state.entries.values().filter_map(|entry| entry.due).min();
        first.map_or(0, |due| now_ms.saturating_sub(due).max(0))
    }

    /// The tenants to be looked at by now, the longest overdue first: at most `free`, of them at
    /// most `suspects` whose last look failed.
    pub(super) fn take(&self, now_ms: i64, free: usize, mut suspects: usize) -> Vec<Turn> {
        let mut state = self.state();
        let mut taken = Vec::new();
        for (at, tenant) in &state.order {
            if *at > now_ms || taken.len() == free {
                break;
            }
            let suspect = state.entries[tenant].failures > 0;
            if suspect && suspects == 0 {
                continue;
            }
            suspects -= usize::from(suspect);
            taken.push((*at, tenant.clone(), suspect));
        }
        let begin = |(at, tenant, suspect): (i64, TenantId, bool)| {
            state.looks += 1;
            let number = state.looks;
            let entry = state.entries.get_mut(&tenant)?;
            entry.at = None;
            entry.look = Some(Look {
                number,
                since: None,
            });
            let last =
                |(work, tries): &(DueWork, u32)| (tries + 1 >= MAX_TRIES).then(|| work.clone());
            let give_up = entry.failing.as_ref().and_then(last);
            let place = (at, tenant);
            state.order.remove(&place);
            Some(Turn {
                tenant: place.1,
                number,
                suspect,
                give_up,
            })
        };
        taken.into_iter().filter_map(begin).collect()
    }

    /// The task that reports the current looks is gone: their tenants are looked at again.
    pub(super) fn forget_looks(&self, now_ms: i64) {
        let mut state = self.state();
        let State { entries, order, .. } = &mut *state;
        for (tenant, entry) in entries {
            if let Some(look) = entry.look.take() {
                entry.due = earlier(entry.due, look.since);
                entry.at = Some(now_ms);
                order.insert((now_ms, tenant.clone()));
            }
        }
    }

    /// A look ended well: what is left is due then.
    pub(super) fn looked(&self, turn: &Turn, next_due_ms: Option<i64>) {
        let now = self.clock.now_ms();
        self.end(turn, |entry, since| {
            entry.failures = 0;
            entry.failing = None;
            entry.due = earlier(next_due_ms, since);
            entry.at = entry.due;
            entry.mark_early(now);
        });
    }

    /// A look did not succeed; it is tried again later, and the later the more often it failed. How
    /// many times in a row that was. `work` is what alone kept it from succeeding, if that is so:
    /// its tries are counted.
    pub(super) fn failed(&self, turn: &Turn, work: Option<&DueWork>) -> u32 {
        let now = self.clock.now_ms();
        let mut failures = 0;
        self.end(turn, |entry, since| {
            entry.failures = entry.failures.saturating_add(1);
            failures = entry.failures;
            if let Some(work) = work {
                let before = entry.failing.take_if(|(failing, _)| failing == work);
                let tries = before.map_or(0, |(_, tries)| tries) + 1;
                entry.failing = Some((work.clone(), tries));
            }
            entry.due = earlier(entry.due, since);
            entry.at = Some(now.saturating_add(backoff_ms(entry.failures)));
        });
        failures
    }

    fn end(&self, turn: &Turn, change: impl FnOnce(&mut Entry, Option<i64>)) {
        let mut state = self.state();
        let Some(entry) = state.entries.get_mut(&turn.tenant) else {
            return;
        };
        // A tenant that was deleted meanwhile, and made again, has nothing to do with this look.
        let Some(look) = entry.look.take_if(|look| look.number == turn.number) else {
            return;
        };
        change(entry, look.since);
        if let Some(at) = entry.at {
            state.order.insert((at, turn.tenant.clone()));
        }
    }

    /// Has every tenant with work looked at now: the clock was set back, and crons may have times
    /// of the old one.
    pub(super) fn look_at_all(&self, now_ms: i64) {
        let mut state = self.state();
        let tenants: Vec<_> = state.entries.keys().cloned().collect();
        for tenant in tenants {
            let _first = state.announce(&tenant, now_ms);
        }
    }

    /// Sets the entries in the control file later that are too early: those that have been for
    /// long, or all of them. Blocks.
    pub(super) fn settle(&self, all: bool) -> Result<(), StoreError> {
        let _writing = self.writing();
        let now = self.clock.now_ms();
        let ripe = |since: i64| all || since.saturating_add(SETTLE_AFTER_MS) <= now || since > now;
        // What is announced from here on is compared with the new entries, and written after them.
        let mut changes = Vec::new();
        for (tenant, entry) in &mut self.state().entries {
            if entry.look.is_none() && entry.early_since.is_some_and(ripe) {
                let later = entry.due.map(rounded);
                changes.push((tenant.clone(), later, entry.durable));
                entry.durable = later;
                entry.early_since = None;
            }
        }
        if changes.is_empty() {
            return Ok(());
        }
        let written = changes
            .iter()
            .map(|(tenant, later, _)| (tenant.clone(), *later));
        let result = self.record.set_due(&written.collect::<Vec<_>>(), now);
        let mut state = self.state();
        for (tenant, _, before) in &changes {
            let Some(entry) = state.entries.get_mut(tenant) else {
                continue;
            };
            if result.is_err() {
                entry.durable = *before;
                entry.early_since = Some(now);
            } else if entry.is_spent() {
                state.entries.remove(tenant);
            }
        }
        result
    }

    /// Has the entry in the control file be no later than `due_ms`, and the one in memory. Blocks
    /// for a commit when it has to be set.
    fn note(&self, tenant: &TenantId, due_ms: i64) -> Result<(), StoreError> {
        let now = self.clock.now_ms();
        if self.announce_noted(tenant, due_ms, now) {
            return Ok(());
        }
        let _writing = self.writing();
        // Another may have noted it meanwhile.
        if self.announce_noted(tenant, due_ms, now) {
            return Ok(());
        }
        let durable = rounded(due_ms);
        self.record
            .set_due(&[(tenant.clone(), Some(durable))], now)?;
        let entry = |state: &mut State| {
            let entry = state.entries.entry(tenant.clone()).or_default();
            entry.durable = Some(durable);
            entry.early_since = None;
        };
        entry(&mut self.state());
        self.announce(tenant, due_ms);
        Ok(())
    }

    /// Announces work if the control file has it covered. A tenant that schedules keeps its early
    /// entry.
    fn announce_noted(&self, tenant: &TenantId, due_ms: i64, now_ms: i64) -> bool {
        let covered = |entry: &mut Entry| {
            let covered = entry.durable.is_some_and(|durable| durable <= due_ms);
            if covered {
                entry.early_since = entry.early_since.map(|_| now_ms);
            }
            covered
        };
        let mut state = self.state();
        let covered = state.entries.get_mut(tenant).is_some_and(covered);
        let first = covered && state.announce(tenant, due_ms);
        drop(state);
        if first {
            self.changed.notify_one();
        }
        covered
    }

    /// Takes down, in memory, that a tenant has work.
    fn announce(&self, tenant: &TenantId, due_ms: i64) {
        let first = self.state().announce(tenant, due_ms);
        if first {
            self.changed.notify_one();
        }
    }

    /// Whether nothing is due by then and no look is under way.
    #[cfg(test)]
    pub(super) fn is_quiet(&self, now_ms: i64) -> bool {
        let state = self.state();
        let looking = state.entries.values().any(|entry| entry.look.is_some());
        !looking && state.order.first().is_none_or(|(at, _)| *at > now_ms)
    }

    /// Has the scheduler look at its clock, which a test has set.
    #[cfg(test)]
    pub(super) fn wake(&self) {
        self.changed.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change under the lock leaves entries and order in step but for a panic of the
        // allocator's.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DueLog for DueIndex {
    fn expect(&self, tenant: &TenantId, due_ms: i64) -> Result<(), StoreError> {
        self.note(tenant, due_ms)
    }

    fn overdue(&self, tenant: &TenantId, due_ms: i64) {
        // Who knows of it runs it, or tries again later.
        let known =
            |entry: &Entry| entry.look.is_some() || entry.due.is_some_and(|known| known <= due_ms);
        if !self.state().entries.get(tenant).is_some_and(known) {
            self.announce(tenant, due_ms);
        }
    }

    fn found(&self, tenant: &TenantId, due_ms: i64) {
        // The look that opened it will learn more.
        let looking = |entry: &Entry| entry.look.is_some() && entry.durable.is_some();
        if self.state().entries.get(tenant).is_some_and(looking) {
            return;
        }
        if let Err(error) = self.note(tenant, due_ms) {
            tracing::warn!(%tenant, %error, "work that is due could not be noted in the control file; the next opening of the tenant tries again");
            self.announce(tenant, due_ms);
        }
    }

    fn forget(&self, tenant: &TenantId) {
        let mut state = self.state();
        if let Some(Entry { at: Some(at), .. }) = state.entries.remove(tenant) {
            state.order.remove(&(at, tenant.clone()));
        }
    }
}

impl State {
    /// Takes down that a tenant has work; whether it is now the first of all to be looked at.
    fn announce(&mut self, tenant: &TenantId, due_ms: i64) -> bool {
        let entry = self.entries.entry(tenant.clone()).or_default();
        entry.due = earlier(entry.due, Some(due_ms));
        if let Some(look) = &mut entry.look {
            look.since = earlier(look.since, Some(due_ms));
            return false;
        }
        let before = entry.at;
        entry.at = earlier(before, Some(due_ms));
        if entry.at == before {
            return false;
        }
        if let Some(before) = before {
            self.order.remove(&(before, tenant.clone()));
        }
        let place = (due_ms, tenant.clone());
        let first = self.order.first().is_none_or(|first| place < *first);
        self.order.insert(place);
        first
    }
}

impl Entry {
    /// Notes whether the control file's entry could be later.
    fn mark_early(&mut self, now_ms: i64) {
        let early = match (self.durable, self.due) {
            (Some(durable), Some(due)) => durable < rounded(due),
            (Some(_), None) => true,
            (None, _) => false,
        };
        // Nothing is left, and the control file has nothing: the entry goes with the next settling.
        let spent = self.is_spent();
        self.early_since = (early || spent).then(|| self.early_since.unwrap_or(now_ms));
    }

    fn is_spent(&self) -> bool {
        self.due.is_none() && self.durable.is_none() && self.look.is_none()
    }
}

/// Whether a clock that said `before` was set back by so much that it was wrong.
pub(super) fn is_set_back(before_ms: i64, now_ms: i64) -> bool {
    now_ms.saturating_add(CLOCK_SLACK_MS) < before_ms
}

fn earlier(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    [a, b].into_iter().flatten().min()
}

/// The full minute before.
fn rounded(due_ms: i64) -> i64 {
    due_ms.div_euclid(GRAIN_MS).saturating_mul(GRAIN_MS)
}

/// How long to wait after so many failures: a second, two, four, to five minutes.
fn backoff_ms(failures: u32) -> i64 {
    let doubled = 1_i64 << failures.saturating_sub(1).min(20);
    doubled.saturating_mul(1000).min(MAX_BACKOFF_MS)
}

/// How exact entries in the control file are.
const GRAIN_MS: i64 = 60 * 1000;
/// How long an entry in the control file stays too early: ten minutes.
const SETTLE_AFTER_MS: i64 = 10 * 60 * 1000;
/// How often work is tried at which the engine fails: with the waits between, over two minutes.
const MAX_TRIES: u32 = 8;
/// The longest wait between looks at a tenant that is in trouble: five minutes.
const MAX_BACKOFF_MS: i64 = 5 * 60 * 1000;
