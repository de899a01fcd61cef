//! Leases: a data key that a remote provider unwrapped is held for as long as that provider goes on
//! saying yes.
//!
//! | the provider says | a file that is open | who asks for one that is not |
//! | --- | --- | --- |
//! | yes | goes on; asked again before the lease ends | gets it |
//! | no, of the key (disabled, pending deletion, gone) | every file under the key is closed at once | the same no; one asks each second, and the first yes ends it |
//! | no, of this file (a policy on its encryption context) | it is closed, and all others of the key are asked for at once | the same, for this file |
//! | nothing (unreachable, throttled, timed out) | goes on until lease and grace have passed since the last yes, then is closed | the failure; one asks each second |
//!
//! Each file is asked for once a lease, by the operation that opened it: a real decryption of the
//! file's own wrap under its own encryption context. What comes of it is wiped. Each key has rounds
//! of its own, so that one that does not answer holds up no other; each question has a time of its
//! own. Whoever uses a file looks at its lease ([`LeaseStanding`]): should nobody renew any more,
//! for whatever reason, nothing is served beyond lease and margin.

mod keeper;
mod table;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use nimbus_keyproviders::{FailureClass, ProviderError};
use nimbus_manifests::{KeyId, Manifest, SealedManifest, Subject, Wrap, WrapContext};
use tokio::sync::Notify;

use super::{Clock, Envelope, EnvelopeError, Event, EventKind, EventOutcome, KeyRing};
use crate::clock::Moment;
use crate::error_chain::error_chain;
use crate::runtime::short_task;
use keeper::{ABANDONED_AFTER, LONGEST_PATIENCE, SHORTEST_PATIENCE};
use table::{Ended, LeaseTable, Leased, Until};

/// How long a yes of a remote provider counts, and how long its silence is ridden out after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// The lease.
    pub lease: Duration,
    /// The grace.
    pub grace: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(60),
            grace: Duration::from_secs(3600),
        }
    }
}

/// A remote key that does not answer, or answers no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// The key.
    pub key: KeyId,
    /// Whether it is a no, or no answer.
    pub class: FailureClass,
    /// For how long.
    pub lasting: Duration,
    /// Files that are open under it all the same.
    pub files: usize,
    /// How long these are still served, if it lasts.
    pub left: Option<Duration>,
}

/// What [`Envelope::leases`] answers: for `/ready` and for metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaseReport {
    /// Files that are open under remote keys.
    pub files: usize,
    /// Keys in trouble.
    pub troubles: Vec<Trouble>,
}

impl Terms {
    /// How long one question may take: with it, the answer comes before the lease ends.
    fn patience(self) -> Duration {
        (self.lease / 4).clamp(SHORTEST_PATIENCE, LONGEST_PATIENCE)
    }
}

/// Every lease of this process.
#[derive(Debug)]
pub(super) struct Leases {
    table: Mutex<LeaseTable>,
    /// A file was opened, or the lease of one that is used has run out.
    changed: Notify,
    /// Whether somebody renews leases: a server does, a command holds a key for as long as it
    /// runs.
    kept: Arc<AtomicBool>,
}

/// Whether what is held under a lease may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeaseStanding {
    /// It may.
    Good,
    /// The lease ran out; the key is about to be asked for.
    RanOut,
    /// The lease ran out a while ago, and nobody asks: it must be closed.
    Abandoned,
}

/// Held with a file that is open under a remote key. Dropped with it.
#[derive(Debug)]
pub(super) struct LeaseGuard {
    leases: Weak<Leases>,
    lease: u64,
    until: Until,
    kept: Arc<AtomicBool>,
    clock: Arc<dyn Clock>,
}

impl LeaseGuard {
    /// Whether what is held under it may be used now.
    pub(super) fn standing(&self) -> LeaseStanding {
        if !self.kept.load(Ordering::Relaxed) {
            return LeaseStanding::Good;
        }
        let until = self.until.load(Ordering::Relaxed);
        let now = self.clock.moment().milliseconds();
        if now < until {
            return LeaseStanding::Good;
        }
        if let Some(leases) = self.leases.upgrade() {
            leases.changed.notify_one();
        }
        match now - until < ABANDONED_AFTER {
            true => LeaseStanding::RanOut,
            false => LeaseStanding::Abandoned,
        }
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        if let Some(leases) = self.leases.upgrade() {
            leases.table().close(self.lease);
        }
    }
}

/// The right to ask for a data key, of a key that may be in trouble.
pub(super) struct Admitted<'a> {
    leases: &'a Leases,
    key: KeyId,
    subject: &'a Subject,
    asked: Moment,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.leases.table().asked(&self.key, self.subject);
    }
}

impl Admitted<'_> {
    /// The answer was yes.
    pub(super) fn confirm(&self) {
        let mut table = self.leases.table();
        table.confirm(&self.key, self.subject, self.asked);
    }
}

impl Leases {
    pub(super) fn new() -> Self {
        Self {
            table: Mutex::new(LeaseTable::new(Terms::default())),
            changed: Notify::new(),
            kept: Arc::default(),
        }
    }

    /// Whether `key` may be asked for a data key of `subject` now.
    ///
    /// # Errors
    ///
    /// The answer that somebody else got a moment ago.
    fn admit<'a>(
        &'a self,
        key: &KeyId,
        subject: &'a Subject,
        now: Moment,
    ) -> Result<Admitted<'a>, Arc<ProviderError>> {
        self.table().admit(key, subject, now)?;
        Ok(Admitted {
            leases: self,
            key: key.clone(),
            subject,
            asked: now,
        })
    }

    fn table(&self) -> MutexGuard<'_, LeaseTable> {
        // Every change under the lock is made by code that has nothing to panic on.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Envelope {
    /// The same core, holding what remote providers unwrap on these terms.
    #[must_use]
    pub fn with_lease_terms(self, terms: Terms) -> Self {
        self.leases.table().agree(terms);
        self
    }

    /// How many files are open under remote keys, and which of these are in trouble.
    #[must_use]
    pub fn leases(&self) -> LeaseReport {
        let table = self.leases.table();
        LeaseReport {
            files: table.open_files(),
            troubles: table.troubles(self.clock.moment()),
        }
    }

    /// Whether `key` may be asked now for a data key of `subject`.
    pub(super) fn admit<'a>(
        &'a self,
        key: &KeyId,
        subject: &'a Subject,
    ) -> Result<Admitted<'a>, Arc<ProviderError>> {
        self.leases.admit(key, subject, self.clock.moment())
    }

    /// Notes a failure of a remote key, and closes what ends by it without being waited for.
    pub(super) fn refused(&self, admitted: &Admitted<'_>, why: &Arc<ProviderError>) {
        let now = self.clock.moment();
        let mut table = self.leases.table();
        let ended = table.refuse(&admitted.key, admitted.subject, why, now);
        drop(table);
        if !ended.is_empty() {
            let core = self.clone();
            drop(short_task(async move { core.close(ended).await }));
        }
    }

    /// Puts a file under a lease that was unwrapped from `wrap`.
    ///
    /// # Errors
    ///
    /// The no that came while it was being opened.
    pub(super) fn leased(
        &self,
        context: &WrapContext<'_>,
        wrap: &Wrap,
        admitted: &Admitted<'_>,
    ) -> Result<LeaseGuard, Arc<ProviderError>> {
        let file = Leased {
            subject: context.subject.clone(),
            file_id: context.file_id,
            cipher: context.cipher,
            dek_id: context.dek_id,
            wrap: wrap.clone(),
        };
        let mut table = self.leases.table();
        let due = self.next_renewal(admitted.asked, table.terms());
        let (lease, until) = table.open(file, admitted.asked, due)?;
        drop(table);
        self.leases.changed.notify_one();
        Ok(LeaseGuard {
            leases: Arc::downgrade(&self.leases),
            lease,
            until,
            kept: self.leases.kept.clone(),
            clock: self.clock.clone(),
        })
    }

    /// Moves the leases of a file whose manifest was wrapped anew: from here on its new key is
    /// asked.
    pub(super) fn move_leases(&self, keys: &KeyRing, sealed: &SealedManifest) {
        let manifest = sealed.claims();
        let Some(entry) = manifest.deks().first() else {
            return;
        };
        let wrap = entry.wraps.iter().find(|wrap| keys.is_remote(wrap));
        let now = self.clock.moment();
        let mut table = self.leases.table();
        let due = self.next_renewal(now, table.terms());
        table.rewrapped(manifest.subject(), entry.id, wrap, now, due);
    }

    /// Why a file that was closed while in use is not available now, where that is known without
    /// asking.
    pub(crate) fn withheld(&self, path: &Path, manifest: &Manifest) -> Option<EnvelopeError> {
        let subject = manifest.subject();
        if let Some(tenant) = subject.tenant()
            && self.is_locked(tenant)
        {
            let tenant = tenant.clone();
            return Some(EnvelopeError::Locked { tenant });
        }
        let table = self.leases.table();
        let mut wraps = manifest.deks().iter().flat_map(|dek| &dek.wraps);
        let source = wraps.find_map(|wrap| table.known_refusal(&wrap.key_id, subject))?;
        Some(EnvelopeError::Unwrap {
            path: path.to_owned(),
            source,
        })
    }
}

impl Ended {
    fn event(&self) -> Event {
        Event::new(EventKind::Revocation, EventOutcome::Done)
            .about(&self.subject)
            .under(&self.key)
            .saying(error_chain(&*self.why))
    }
}

#[cfg(test)]
mod tests;
