//! The core: from a subject to its key, and nothing else holds keys.
//!
//! A protected file and its manifest go through states that a crash can cut short. The sequence of
//! a creation, and what the next start finds after a kill between two steps:
//!
//! | step | on disk after it | next start |
//! | --- | --- | --- |
//! | 1. manifest `new` published | manifest `new`, no file | [`Prepared::Keyed`] in [`Stage::Initialise`]: initialise again, same key |
//! | 2. file initialised and flushed | manifest `new`, file | the same |
//! | 3. manifest `ready` mirrored | manifest `new`, file, mirror `ready` | [`Stage::Initialised`]: it exists; the first opening goes on with 4 |
//! | 4. manifest `ready` published | manifest `ready`, file | open |
//!
//! The mirror is always written before the sidecar, so that a durable sidecar never lacks one;
//! `new` manifests, whose files hold nothing, are not mirrored. So a copy in the mirror proves that
//! a file exists, and which of its manifests is the newest: see `standing`.

mod audit;
mod clock;
mod creation;
mod error;
mod file;
mod hold;
mod keyring;
mod lease;
mod metered;
mod mirror;
mod mirroring;
mod opening;
mod probe;
mod publishing;
mod rekey;
mod rewrap;
mod rows;
mod standing;
mod store;
mod table;
mod unwrap;

use std::sync::{Arc, PoisonError, RwLock};

use arc_swap::ArcSwap;
use nimbus_keyproviders::{OsRandom, SecureRandom};

use hold::Holders;
use lease::Leases;
use mirror::Mirror;
use publishing::Published;

pub use audit::{AuditError, AuditSink, Event, EventKind, EventOutcome};
pub(crate) use error::migrate_command;
pub use error::{EnvelopeError, Trouble};
pub(crate) use file::HeldLease;
pub use file::{KeyedFile, Opened, PlainFile, Prepared, Stage};
pub use hold::{Holder, Revocation};
pub use keyring::{KeyRing, Mapped};
pub(crate) use lease::LeaseStanding;
pub use lease::{LeaseReport, Terms, Trouble as KeyTrouble};
pub use metered::metered;
pub(crate) use probe::SQLITE_MAGIC as PLAIN_SQLITE;
pub use probe::{FileKind, classify};
pub use rewrap::{Recipients, Rewrap, Rewrapped};
pub use rows::{Draft, ManifestRow, ManifestRows, RowRewrap, RowsError};
pub(crate) use store::CUT_SHORT;
pub use store::{ReadError, manifest_path, read as read_manifest};
pub use table::Intent;

pub use clock::{Clock, SystemClock};
pub use mirror::{Copies, ManifestMirror, MirrorError};
pub(crate) use publishing::restore_manifest;

/// The core: opens and creates protected files under the configured keys, or plaintext ones when
/// encryption is off.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// Shared by all clones: a rotation changes it under a running server.
    keys: Option<Arc<ArcSwap<KeyRing>>>,
    /// Held shared by whoever writes one manifest, alone by who replaces many: see [`rewrap`].
    publishing: Arc<RwLock<()>>,
    mirror: Option<Mirror>,
    published: Arc<Published>,
    audit: Arc<dyn AuditSink>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn SecureRandom>,
    leases: Arc<Leases>,
    holders: Arc<Holders>,
}

impl Envelope {
    /// A core that encrypts every file under `keys`.
    #[must_use]
    pub fn new(keys: KeyRing) -> Self {
        Self::with(Some(keys), Arc::new(SystemClock), Arc::new(OsRandom))
    }

    /// A core for `--encryption-key-provider none`: it makes and opens plaintext files, and refuses
    /// encrypted ones.
    #[must_use]
    pub fn plaintext() -> Self {
        Self::with(None, Arc::new(SystemClock), Arc::new(OsRandom))
    }

    /// A core with its clock and randomness given.
    #[must_use]
    pub fn with(
        keys: Option<KeyRing>,
        clock: Arc<dyn Clock>,
        random: Arc<dyn SecureRandom>,
    ) -> Self {
        Self {
            keys: keys.map(|keys| Arc::new(ArcSwap::from_pointee(keys))),
            publishing: Arc::default(),
            mirror: None,
            published: Arc::default(),
            audit: Arc::new(audit::TraceAlone),
            clock,
            random,
            leases: Arc::new(Leases::new()),
            holders: Arc::default(),
        }
    }

    /// The same core, whose key events go to `audit`.
    #[must_use]
    pub fn with_audit(self, audit: Arc<dyn AuditSink>) -> Self {
        Self { audit, ..self }
    }

    /// Records a key event, durably, before what it is about is done.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError::Audit`]: it must not be done then.
    pub async fn record(&self, event: Event) -> Result<(), EnvelopeError> {
        self.record_all(vec![event]).await
    }

    /// As [`Envelope::record`], for many with one flush.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError::Audit`].
    pub async fn record_all(&self, events: Vec<Event>) -> Result<(), EnvelopeError> {
        self.audit
            .record(events)
            .await
            .map_err(EnvelopeError::Audit)
    }

    /// Has a key event recorded soon: one that changes nothing.
    pub fn note(&self, event: Event) {
        self.audit.note(event);
    }

    /// The keys in force; `None` when encryption is off.
    #[must_use]
    pub fn keys(&self) -> Option<Arc<KeyRing>> {
        self.keys.as_ref().map(|keys| keys.load_full())
    }

    /// From now on `keys` are in force, for every clone of this core. Nothing happens when
    /// encryption is off.
    pub fn use_keys(&self, keys: KeyRing) {
        // Whoever publishes under the keys before has done so when this returns.
        let _alone = self
            .publishing
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(in_force) = &self.keys {
            in_force.store(Arc::new(keys));
        }
    }
}

#[cfg(test)]
mod tests;
