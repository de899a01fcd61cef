//! One moment of all tenants, for a backup.
//!
//! A commit passes a gate. Who takes it alone waits for the commits under way, a flush each, and
//! has all tenants between two commits: a moment at which each database is noted as it is
//! committed, by a look at the index of its WAL. Nothing is opened, read or asked for a key
//! meanwhile.
//!
//! From then on what was noted must stay until it is read. The tenants that were open have their
//! checkpoints held off (`Ciphertext`) since before the moment. The others are noted when they are
//! read; one that is opened or deleted before its turn is held and noted first, by whoever opens or
//! deletes it. So the cost of the moment grows with the open tenants alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use nimbus_manifests::TenantId;
use tokio::{sync::Notify, time::timeout};

use super::captured::{Captured, manifest_of};
use super::commit_log::{CommitLog, Mark};
use super::room::Room;
use crate::data_dir;
use crate::envelope::{FileKind, classify};
use crate::sqlcipher::Ciphertext;

/// What commits and backups of one directory share.
#[derive(Debug)]
pub struct Instants {
    gate: RwLock<()>,
    capture: ArcSwapOption<Capture>,
    log: Arc<CommitLog>,
}

/// The tenants at one moment, until they were all read.
#[derive(Debug)]
pub struct Capture {
    dir: PathBuf,
    state: Mutex<State>,
    /// Told when a tenant was read.
    read: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Whether the moment has come.
    noted: bool,
    held: BTreeMap<TenantId, HeldTenant>,
    /// The tenants that there were at the moment, and that were not read yet.
    due: BTreeSet<TenantId>,
    /// Those of them that were opened since the moment: they cost descriptors until they are read.
    opened: BTreeSet<TenantId>,
}

impl State {
    /// Whether to open a tenant costs nothing more, or little is held yet.
    fn admits(&self, tenant: &TenantId) -> bool {
        let is_held_anew = self.due.contains(tenant) && !self.held.contains_key(tenant);
        !is_held_anew || self.opened.len() < most_opened()
    }
}

#[derive(Debug)]
struct HeldTenant {
    /// Locked by who reads it, for as long as that takes.
    captured: Arc<Mutex<Captured>>,
    /// Whether its checkpoints are held off.
    is_held: bool,
    /// Holds them off since it was opened by somebody.
    guard: Option<Ciphertext>,
}

/// Has the capture end, however the backup does.
#[derive(Debug)]
pub struct Capturing {
    instants: Arc<Instants>,
    /// What is captured.
    pub(crate) capture: Arc<Capture>,
}

#[cfg(test)]
impl Default for Instants {
    fn default() -> Self {
        Self::new(".".into(), Arc::default())
    }
}

impl Instants {
    /// Those of the tenants in `dir`.
    pub(super) fn new(dir: PathBuf, room: Arc<Room>) -> Self {
        Self {
            gate: RwLock::default(),
            capture: ArcSwapOption::empty(),
            log: Arc::new(CommitLog::new(dir, room)),
        }
    }

    /// What was committed, for who ships it.
    #[must_use]
    pub fn log(&self) -> &Arc<CommitLog> {
        &self.log
    }

    /// No commit is under way, and none begins, while the answer is held. Blocks.
    pub fn between_commits(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passed by each commit.
    pub(super) fn commit(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a backup is under way, so that [`before_use`](Self::before_use) has something to do.
    pub(super) fn is_capturing(&self) -> bool {
        self.capture.load().is_some()
    }

    /// Called before the files of a tenant are opened for writing, or removed; and once they are
    /// open, before anything is written: until then its checkpoints cannot be held off. Blocks.
    pub(in crate::tenants) fn before_use(&self, tenant: &TenantId) {
        let Some(capture) = self.capture.load_full() else {
            return;
        };
        if let Err(error) = capture.hold(tenant, PATIENCE) {
            // Its turn fails again, and the backup leaves it out.
            tracing::warn!(%tenant, %error, "a tenant cannot be held for the backup under way");
        }
    }

    /// Waits, while a backup is under way, until few tenants are held that were opened before their
    /// turn: each takes two descriptors.
    pub(super) async fn admit(&self, tenant: &TenantId) {
        if let Some(capture) = self.capture.load_full() {
            capture.admit(tenant).await;
        }
    }

    /// Begins a capture of the tenants in `dir`: those that are opened from here on are held.
    pub(in crate::tenants) fn begin(self: &Arc<Self>, dir: PathBuf) -> Capturing {
        let capture = Arc::new(Capture {
            dir,
            state: Mutex::default(),
            read: Notify::new(),
        });
        self.capture.store(Some(Arc::clone(&capture)));
        Capturing {
            instants: Arc::clone(self),
            capture,
        }
    }

    /// The moment: no commit is under way. `rest` freezes what else belongs to it; `tenants` says
    /// which there are, and which of them are open. Answers where the log of commits is, and how
    /// long commits waited. Blocks.
    pub(in crate::tenants) fn freeze<T>(
        &self,
        capture: &Capture,
        tenants: impl FnOnce() -> (BTreeSet<TenantId>, Vec<TenantId>),
        rest: impl FnOnce() -> T,
    ) -> (T, Mark, Duration) {
        let gate = self.between_commits();
        let since = Instant::now();
        let rest = rest();
        let (known, open) = tenants();
        for tenant in &open {
            // Opened just now; all others are held already.
            if let Err(error) = capture.hold(tenant, NO_PATIENCE) {
                tracing::warn!(%tenant, %error, "a tenant cannot be held for the backup under way");
            }
        }
        let mark = self.log.mark(&known);
        let mut state = capture.state();
        state.due = known;
        state.noted = true;
        for (tenant, held) in &state.held {
            if let Err(error) = locked(&held.captured).pages.settle() {
                tracing::warn!(%tenant, %error, "a tenant cannot be noted for the backup under way");
            }
        }
        drop(state);
        drop(gate);
        (rest, mark, since.elapsed())
    }
}

impl Drop for Capturing {
    fn drop(&mut self) {
        self.instants.capture.store(None);
        // Whoever still has it finds nothing to hold.
        let mut state = self.capture.state();
        state.due.clear();
        state.held.clear();
        state.opened.clear();
        state.noted = true;
        drop(state);
        self.capture.read.notify_waiters();
    }
}

impl Capture {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tenants that must be read.
    pub(crate) fn due(&self) -> Vec<TenantId> {
        self.state().due.iter().cloned().collect()
    }

    /// Takes the next of `rest` to be read: one that was opened before its turn, if there is any.
    pub(crate) fn next(&self, rest: &mut BTreeSet<TenantId>) -> Option<TenantId> {
        let opened = {
            let state = self.state();
            let mut opened = state.opened.iter();
            opened.find(|tenant| rest.contains(*tenant)).cloned()
        };
        match opened {
            Some(tenant) => rest.take(&tenant),
            None => rest.pop_first(),
        }
    }

    /// Waits until a tenant may be opened, if that is before its turn. A backup that does not go on
    /// is not waited for long.
    async fn admit(&self, tenant: &TenantId) {
        let admitted = async {
            loop {
                let read = self.read.notified();
                tokio::pin!(read);
                let _is_told = read.as_mut().enable();
                if self.state().admits(tenant) {
                    return;
                }
                read.await;
            }
        };
        if timeout(PATIENCE, admitted).await.is_err() {
            tracing::warn!(%tenant, "opened although the backup under way holds many tenants already");
        }
    }

    /// How long its database is now, for progress.
    pub(crate) fn length(&self, tenant: &TenantId) -> u64 {
        std::fs::metadata(self.path(tenant)).map_or(0, |file| file.len())
    }

    /// Keeps what `tenant` is, or was at the moment; a checkpoint under way is waited for as long
    /// as `patience`. Blocks.
    fn hold(&self, tenant: &TenantId, patience: Duration) -> io::Result<()> {
        let mut guard = self.state();
        let state = &mut *guard;
        if state.noted && !state.due.contains(tenant) {
            return Ok(());
        }
        if let Some(held) = state.held.get_mut(tenant) {
            if !held.is_held {
                let guard = match &mut held.guard {
                    Some(guard) => guard,
                    none => none.insert(Ciphertext::open(&self.path(tenant))?),
                };
                held.is_held = guard.hold(patience)?;
            }
            return Ok(());
        }
        let mut captured = self.open(tenant)?;
        let is_held = captured.pages.hold(patience)?;
        if state.noted {
            captured.pages.settle()?;
            captured.pages.locate()?;
            state.opened.insert(tenant.clone());
        }
        let held = HeldTenant::new(captured, is_held);
        drop(state.held.insert(tenant.clone(), held));
        Ok(())
    }

    /// The tenant, to be read until [`done`](Self::done). Blocks.
    ///
    /// # Errors
    ///
    /// Whatever keeps its files from being read.
    pub(crate) fn take(&self, tenant: &TenantId) -> io::Result<Arc<Mutex<Captured>>> {
        let captured = {
            let mut state = self.state();
            match state.held.get(tenant) {
                Some(held) => Arc::clone(&held.captured),
                None => {
                    // Nobody has had it open since the moment.
                    let mut captured = self.open(tenant)?;
                    let is_held = captured.pages.has_wal() && captured.pages.hold(PATIENCE)?;
                    captured.pages.settle()?;
                    let held = HeldTenant::new(captured, is_held);
                    let captured = Arc::clone(&held.captured);
                    drop(state.held.insert(tenant.clone(), held));
                    captured
                }
            }
        };
        locked(&captured).pages.locate()?;
        Ok(captured)
    }

    /// The tenant was read: it is let go.
    pub(crate) fn done(&self, tenant: &TenantId) {
        let mut state = self.state();
        state.due.remove(tenant);
        drop(state.held.remove(tenant));
        state.opened.remove(tenant);
        drop(state);
        self.read.notify_waiters();
    }

    fn path(&self, tenant: &TenantId) -> PathBuf {
        self.dir.join(data_dir::database_name(tenant))
    }

    fn open(&self, tenant: &TenantId) -> io::Result<Captured> {
        let path = self.path(tenant);
        match classify(&path)? {
            FileKind::Other => {}
            FileKind::PlainSqlite | FileKind::PlainRedb => {
                return Err(io::Error::other(
                    "it is in plaintext, which no backup takes: finish its migration with `nimbus encryption migrate --in-place`",
                ));
            }
            FileKind::Absent => return Err(io::ErrorKind::NotFound.into()),
            FileKind::Empty => return Err(io::Error::other("it is empty")),
            FileKind::NotAFile => return Err(io::Error::other("it is no regular file")),
        }
        Ok(Captured {
            manifest: manifest_of(&path)?,
            pages: Ciphertext::open(&path)?,
        })
    }
}

impl HeldTenant {
    fn new(captured: Captured, is_held: bool) -> Self {
        Self {
            captured: Arc::new(Mutex::new(captured)),
            is_held,
            guard: None,
        }
    }
}

fn locked(captured: &Mutex<Captured>) -> MutexGuard<'_, Captured> {
    captured.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many tenants that were opened before their turn are held at once, but for those that are
/// being opened already.
fn most_opened() -> usize {
    ::fail::fail_point!("capture::most-opened", |_| 4);
    256
}

/// How long a checkpoint under way is waited for, and a turn to be opened.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same while no commit passes.
const NO_PATIENCE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tenants_that_would_be_held_anew_wait_for_others_to_be_read() {
        let tenant = |number: usize| format!("t-{number}").parse::<TenantId>().unwrap();
        let mut state = State {
            due: (0..=most_opened()).map(tenant).collect(),
            ..State::default()
        };
        assert!(state.admits(&tenant(0)));
        state.opened = (1..=most_opened()).map(tenant).collect();
        assert!(!state.admits(&tenant(0)));
        // Made since the moment, or read already.
        assert!(state.admits(&tenant(most_opened() + 1)));
        state.opened.remove(&tenant(1));
        assert!(state.admits(&tenant(0)));
    }
}
