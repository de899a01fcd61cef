//! What was committed, in one order over all tenants, until it is in a backup.
//!
//! The connection that commits puts the frames of its commit here before anybody is answered, with
//! the time: each beginning of this log is therefore an instant of the whole deployment. Nothing
//! has to wait for a checkpoint, and no file is held open for a tenant that is closed. Frames are
//! ciphertext. They lie in memory up to 16 MiB, beyond that in an unlinked temporary file, and
//! beyond what the operator allows they are dropped: then the backup begins afresh with a snapshot.
//!
//! **What frames build on.** Each file is known by a number, its *base*: the pages to which its
//! frames are applied in order. It is 0 for those of the snapshot from which the log goes on. A
//! file that the snapshot does not have (a new tenant, one under its next data key, one whose
//! tables were brought up to date) gets the next number; its pages are held as they are at that
//! moment ([`Ciphertext`]) until they are stored. A file under its next data key is begun before
//! anybody has it open; then it is held by the first who may write to it.
//!
//! **Frames may come twice, and none is left out.** A connection that has not followed its WAL
//! since the log was begun hands in all of it. Those frames that the base has already change
//! nothing, because all that follow them are applied as well.

mod entries;
mod follower;
mod spool;

pub use entries::{BegunBase, Boundary, Broken, Frames, Gone, Mark, Position, Shipping};
pub(super) use follower::Follower;

use std::{
    collections::{BTreeSet, HashMap},
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nimbus_manifests::TenantId;
use tokio::sync::Notify;

use super::captured::{Captured, manifest_of};
use super::room::Room;
use crate::clock;
use crate::data_dir;
use crate::metrics;
use crate::sqlcipher::Ciphertext;
use spool::Spool;

/// The log of one directory of tenants.
#[derive(Debug)]
pub struct CommitLog {
    dir: PathBuf,
    room: Arc<Room>,
    /// Whether commits are kept; changed under the lock of `state` alone.
    on: AtomicBool,
    state: Mutex<State>,
    /// Much is there to be shipped.
    woken: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Who ships, and whether the next moment of a snapshot begins the log.
    shipping: Option<Shipping>,
    armed: bool,
    /// Why commits are not kept any more.
    broken: Option<String>,
    /// No time that is given out is before this.
    last_ms: i64,
    next_base: u32,
    /// How many moments of snapshots there were.
    marks: u64,
    /// What the frames of a tenant build on.
    bases: HashMap<TenantId, Base>,
    spool: Spool,
    begun: Vec<BegunBase>,
    gone: Vec<Gone>,
    /// Files whose pages must be stored and that nobody had open, and what holds them since
    /// somebody has.
    unheld: HashMap<TenantId, (Weak<Mutex<Captured>>, Option<Ciphertext>)>,
}

#[derive(Debug, Clone, Copy)]
struct Base {
    number: u32,
    /// How many moments there were when it was begun.
    marks: u64,
}

impl CommitLog {
    pub(super) fn new(dir: PathBuf, room: Arc<Room>) -> Self {
        Self {
            dir,
            room,
            on: AtomicBool::new(false),
            state: Mutex::default(),
            woken: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// The next moment of a snapshot begins the log; no time in it is before `floor_ms`.
    pub fn arm(&self, shipping: Shipping, floor_ms: i64) {
        let mut state = self.state();
        state.shipping = Some(shipping);
        state.armed = true;
        state.last_ms = state.last_ms.max(floor_ms);
    }

    /// Keeps nothing any more.
    pub fn stop(&self) {
        let mut state = self.state();
        self.on.store(false, Ordering::Relaxed);
        let (last_ms, marks) = (state.last_ms, state.marks);
        *state = State {
            last_ms,
            marks,
            ..State::default()
        };
        tell(&state);
    }

    /// A moment of a snapshot, at which there are these tenants. No commit is under way.
    pub(super) fn mark(&self, known: &BTreeSet<TenantId>) -> Mark {
        let mut state = self.state();
        let at_ms = state.step();
        state.marks += 1;
        let afresh = std::mem::take(&mut state.armed);
        if afresh {
            let marks = state.marks;
            let base = |tenant: &TenantId| (tenant.clone(), Base { number: 0, marks });
            state.bases = known.iter().map(base).collect();
            state.next_base = state.next_base.max(1);
            state.broken = None;
            state.spool = Spool::default();
            (state.begun, state.gone) = (Vec::new(), Vec::new());
            state.unheld.clear();
            self.on.store(true, Ordering::Relaxed);
        }
        let shipping = state.shipping.filter(|_| self.is_on());
        let base = state.next_base;
        Mark {
            at_ms,
            position: shipping.map(|shipping| Position {
                shipping,
                base,
                afresh,
            }),
        }
    }

    /// Everything up to now must be shipped. Where commits are kept out meanwhile, it is an
    /// instant of all tenants and of what else they are kept out for.
    ///
    /// # Errors
    ///
    /// [`Broken`].
    pub fn boundary(&self) -> Result<Boundary, Broken> {
        let mut state = self.state();
        state.check_whole()?;
        let at_ms = state.step();
        Ok(Boundary {
            at_ms,
            upto: state.spool.given(),
            begun: std::mem::take(&mut state.begun),
            gone: std::mem::take(&mut state.gone),
        })
    }

    /// The next frames before a boundary, in their order, about as many bytes as `most`; none once
    /// all were taken. Blocks.
    ///
    /// # Errors
    ///
    /// [`Broken`].
    pub fn take(&self, upto: u64, most: u64) -> Result<Vec<Frames>, Broken> {
        let taken = {
            let mut state = self.state();
            state.check_whole()?;
            let taken = state.spool.take(upto, most);
            tell(&state);
            taken
        };
        let read = taken.into_iter().map(spool::SpooledFrames::read).collect();
        let read: io::Result<_> = read;
        read.map_err(|error| {
            let why = format!("what waited to be shipped cannot be read: {error}");
            self.break_off(&why);
            Broken(why)
        })
    }

    /// Whether anything waits to be shipped.
    #[must_use]
    pub fn waits(&self) -> bool {
        let mut state = self.state();
        state
            .unheld
            .retain(|_, (captured, _)| captured.strong_count() > 0);
        !state.spool.is_empty()
            || !state.begun.is_empty()
            || !state.gone.is_empty()
            || state.broken.is_some()
    }

    /// The next pack is formed.
    pub fn formed(&self, pack: u64) {
        if let Some(shipping) = &mut self.state().shipping {
            shipping.pack = pack;
        }
    }

    /// Ends once much waits to be shipped.
    pub async fn woken(&self) {
        self.woken.notified().await;
    }

    /// Since when the first of the files is held that were begun and are not being stored yet.
    #[must_use]
    pub fn held_since(&self) -> Option<Instant> {
        let state = self.state();
        state.begun.iter().map(|begun| begun.since).min()
    }

    /// When the first of what waits was committed.
    #[must_use]
    pub fn oldest_ms(&self) -> Option<i64> {
        self.state().spool.oldest_ms()
    }

    /// What was kept is dropped, and nothing is kept until the log is begun again.
    fn break_off(&self, why: &str) {
        let mut state = self.state();
        if !self.is_on() {
            return;
        }
        self.on.store(false, Ordering::Relaxed);
        state.broken = Some(why.to_owned());
        state.spool = Spool::default();
        state.bases.clear();
        (state.begun, state.gone) = (Vec::new(), Vec::new());
        state.unheld.clear();
        tell(&state);
        drop(state);
        self.woken.notify_one();
    }

    /// Keeps frames of a commit, each piece of whole frames; `false` when it is not known what they
    /// build on.
    fn keep(&self, tenant: &TenantId, pieces: Vec<Vec<u8>>) -> bool {
        let mut state = self.state();
        if !self.is_on() {
            return true;
        }
        let Some(Base { number: base, .. }) = state.bases.get(tenant).copied() else {
            return false;
        };
        let at_ms = state.now();
        let most = state.shipping.map_or(0, |shipping| shipping.most_bytes);
        let mut failed = None;
        for bytes in pieces {
            let frames = Frames {
                tenant: tenant.clone(),
                base,
                at_ms,
                bytes,
            };
            if state.spool.bytes() + frames.bytes.len() as u64 > most {
                failed = Some(
                    "more than --backup-max-lag-bytes waited to be shipped, and was dropped"
                        .to_owned(),
                );
                break;
            }
            if let Err(error) = state.spool.give(frames, &self.dir, &self.room) {
                failed = Some(format!("what waits to be shipped cannot be kept: {error}"));
                break;
            }
        }
        tell(&state);
        let much = state.spool.bytes() > MUCH;
        drop(state);
        if let Some(why) = failed {
            self.break_off(&why);
        } else if much {
            self.woken.notify_one();
        }
        true
    }

    /// Whether the pages that frames of `tenant` build on are known.
    fn has(&self, tenant: &TenantId) -> bool {
        self.state().bases.contains_key(tenant)
    }

    /// The file of `tenant` took the place of another just now, and nobody has it open. Blocks.
    pub(super) fn swapped(&self, tenant: &TenantId, dek_id: Option<String>) {
        self.state().bases.remove(tenant);
        if self.is_on() {
            self.begin(tenant, dek_id);
        }
    }

    /// The file of `tenant` was opened, and not written yet: pages that must be stored
    /// stay as they are. Blocks.
    fn hold(&self, tenant: &TenantId) {
        let is_unheld = |state: &State| {
            let of = state.unheld.get(tenant);
            of.is_some_and(|(captured, guard)| captured.strong_count() > 0 && guard.is_none())
        };
        if !is_unheld(&self.state()) {
            return;
        }
        let held = Ciphertext::open(&self.path(tenant)).and_then(|mut guard| {
            let is_held = guard.hold(PATIENCE)?;
            is_held
                .then_some(guard)
                .ok_or_else(|| io::Error::other("nobody has it open"))
        });
        match held {
            Ok(guard) => {
                if let Some((_, none)) = self.state().unheld.get_mut(tenant) {
                    *none = Some(guard);
                }
            }
            Err(error) => self.not_held(tenant, &error),
        }
    }

    fn not_held(&self, tenant: &TenantId, error: &io::Error) {
        tracing::warn!(%tenant, %error, "a tenant's file cannot be held for its backup");
        self.break_off(&format!(
            "the file of {tenant} could not be held for its backup: {error}"
        ));
    }

    fn path(&self, tenant: &TenantId) -> PathBuf {
        self.dir.join(data_dir::database_name(tenant))
    }

    /// The files of `tenant` are about to be removed.
    pub(super) fn gone(&self, tenant: &TenantId) {
        let mut state = self.state();
        if !self.is_on() {
            return;
        }
        state.bases.remove(tenant);
        let (at_ms, before) = (state.now(), state.next_base);
        state.gone.push(Gone {
            tenant: tenant.clone(),
            at_ms,
            before,
        });
    }

    /// A tenant was created and is open: it is in the log, or in the snapshot from which that goes
    /// on. Blocks.
    pub(super) fn created(&self, tenant: &TenantId) {
        let known = {
            let state = self.state();
            let base = state.bases.get(tenant);
            base.is_some_and(|base| base.number == 0 || base.marks == state.marks)
        };
        if self.is_on() && !known {
            self.begin(tenant, None);
        }
    }

    /// The file of `tenant`, to which nobody writes, is stored as it is now, and its frames build
    /// on that. Blocks.
    fn begin(&self, tenant: &TenantId, dek_id: Option<String>) {
        let (captured, is_held) = match self.capture(tenant) {
            Ok((captured, is_held)) => (Arc::new(Mutex::new(captured)), is_held),
            Err(error) => return self.not_held(tenant, &error),
        };
        let mut state = self.state();
        if !self.is_on() {
            return;
        }
        let (at_ms, number, marks) = (state.now(), state.next_base, state.marks);
        state.next_base += 1;
        state.bases.insert(tenant.clone(), Base { number, marks });
        if !is_held {
            let unheld = (Arc::downgrade(&captured), None);
            state.unheld.insert(tenant.clone(), unheld);
        }
        state.begun.push(BegunBase {
            tenant: tenant.clone(),
            number,
            at_ms,
            since: Instant::now(),
            dek_id,
            captured,
        });
    }

    /// The file as it is now, and whether its checkpoints are held off.
    fn capture(&self, tenant: &TenantId) -> io::Result<(Captured, bool)> {
        let path = self.path(tenant);
        let manifest = manifest_of(&path)?;
        let mut pages = Ciphertext::open(&path)?;
        let is_held = pages.hold(PATIENCE)?;
        pages.settle()?;
        pages.locate()?;
        Ok((Captured { manifest, pages }, is_held))
    }
}

impl State {
    /// The time now; commits of one millisecond have the same.
    fn now(&mut self) -> i64 {
        self.last_ms = self.last_ms.max(clock::now_ms());
        self.last_ms
    }

    /// A time after all that were given out.
    fn step(&mut self) -> i64 {
        self.last_ms = (self.last_ms + 1).max(clock::now_ms());
        self.last_ms
    }

    fn check_whole(&self) -> Result<(), Broken> {
        match &self.broken {
            Some(why) => Err(Broken(why.clone())),
            None => Ok(()),
        }
    }
}

fn tell(state: &State) {
    metrics::BACKUP_LAG.set(state.spool.bytes() as f64);
}

/// From here on the shipper is woken before its time: as many bytes as lie in memory. A thousand
/// tenants that are written each second stay below.
const MUCH: u64 = 16 << 20;
/// How long a checkpoint under way is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
