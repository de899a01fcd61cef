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

mod table;

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt as _;
use nimbus_keyproviders::{FailureClass, ProviderError, Unwrapped};
use nimbus_manifests::{KeyId, Manifest, SealedManifest, Subject, Wrap, WrapContext};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::hold::Revocation;
use super::{Clock, Envelope, EnvelopeError, Event, EventKind, EventOutcome, KeyRing};
use crate::clock::Moment;
use crate::error_chain::error_chain;
use crate::runtime::{panic_point, short_task};
use table::{Answer, Ended, LeaseTable, Leased, Question, Until};

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
    /// Whether somebody renews leases: a server does, a command holds a key for as long as it runs.
    kept: Arc<AtomicBool>,
}

/// Whether what is held under a lease may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeaseStanding {
    /// It may.
    Good,
    /// The lease ran out; the key is about to be asked for.
    RanOut,
    /// The lease ran out a while ago, and nobody asks: it is to be closed.
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

    /// Renews leases ahead of their ends, for ever. A server runs this once; from then on nothing
    /// is used whose lease ran out.
    pub async fn keep_leases(self) -> Infallible {
        self.enforce();
        let mut rounds = JoinSet::new();
        loop {
            panic_point!("leases::keep");
            let changed = self.leases.changed.notified();
            self.begin_rounds(&mut rounds);
            tokio::select! {
                () = tokio::time::sleep(self.pause()) => {}
                // The first file under a key may be due sooner than anything before it.
                () = changed => {}
                Some(_ended) = rounds.join_next() => {}
            }
        }
    }

    /// How long there is nothing to ask.
    fn pause(&self) -> Duration {
        let (next, files) = {
            let table = self.leases.table();
            (table.next_due(), table.open_files())
        };
        let now = self.clock.moment();
        let longest = if files == 0 { IDLE } else { BEAT };
        let pause = next.map_or(longest, |due| due.saturating_duration_since(now));
        pause.clamp(SHORTEST, longest)
    }

    /// From here on nothing is used whose lease ran out.
    fn enforce(&self) {
        // Those of a keeper that ended by a fault were cut off with it.
        self.leases.table().forget_rounds();
        self.leases.kept.store(true, Ordering::Relaxed);
    }

    /// Begins to ask for what is due now, and to close what ran out.
    fn begin_rounds(&self, rounds: &mut JoinSet<()>) {
        let now = self.clock.moment();
        let (due, ended) = {
            let mut table = self.leases.table();
            (table.due(now), table.run_out(now))
        };
        for (key, questions) in due {
            let core = self.clone();
            drop(rounds.spawn(async move { core.round(&key, questions).await }));
        }
        if !ended.is_empty() {
            let core = self.clone();
            drop(rounds.spawn(async move { core.close(ended).await }));
        }
    }

    /// One round for one key. A fault in it closes nothing and extends nothing: what it asked for
    /// is closed when it runs out.
    async fn round(&self, key: &KeyId, questions: Vec<Question>) {
        let renewing = AssertUnwindSafe(self.renew(key, questions));
        if renewing.catch_unwind().await.is_err() {
            self.leases.table().failed(key, self.clock.moment());
            tracing::error!(%key, "renewing leases ended by a fault; it is tried again, and what is not renewed is closed");
        }
    }

    async fn renew(&self, key: &KeyId, questions: Vec<Question>) {
        let began = self.clock.moment();
        let answers = self.ask_all(questions).await;
        let troubled = self.leases.table().trouble_class(key);
        let (ended, now_troubled) = {
            let now = self.clock.moment();
            let mut table = self.leases.table();
            let terms = table.terms();
            let next = |asked| self.next_renewal(asked, terms);
            let ended = table.renewed(key, began, &answers, now, next);
            (ended, table.trouble_class(key))
        };
        if let (Some(FailureClass::Unavailable), None) = (now_troubled, troubled) {
            let grace = self.leases.table().terms().grace;
            let why = answers
                .iter()
                .find_map(|answer| answer.result.clone().err());
            let why = why.map(|why| error_chain(&*why)).unwrap_or_default();
            tracing::warn!(%key, ?grace, why, "a key provider does not answer; what is open under its key is served on until the grace ends");
        }
        self.close(ended).await;
    }

    /// Between a half and two thirds of the lease from when it was asked, so that files do not come
    /// due together, nor servers.
    fn next_renewal(&self, asked: Moment, terms: Terms) -> Moment {
        let mut drawn = [0; 2];
        // Without randomness there is no jitter, and nothing else is lost.
        drop(self.random.fill(&mut drawn));
        let jitter = terms.lease / 6 * u32::from(u16::from_be_bytes(drawn)) / (1 << 16);
        asked + terms.lease / 2 + jitter
    }

    /// Asks until all have answered, or one answer holds for all: the key does not answer, or says
    /// no.
    async fn ask_all(&self, questions: Vec<Question>) -> Vec<Answer> {
        let Some(keys) = self.keys() else {
            return Vec::new();
        };
        let patience = self.leases.table().terms().patience();
        let mut answers = Vec::with_capacity(questions.len());
        let mut asking = JoinSet::new();
        let mut waiting = questions.into_iter();
        let mut known = false;
        loop {
            while !known
                && asking.len() < AT_ONCE
                && let Some(question) = waiting.next()
            {
                let (keys, asked) = (keys.clone(), self.clock.moment());
                drop(asking.spawn(async move {
                    Answer {
                        lease: question.lease,
                        asked,
                        result: ask_within(patience, &keys, &question.file).await,
                    }
                }));
            }
            match asking.join_next().await {
                None => return answers,
                Some(Ok(answer)) => {
                    let why = answer.result.as_ref().err();
                    known |= why.is_some_and(|why| why.concerns_key());
                    answers.push(answer);
                }
                Some(Err(error)) => {
                    if let Ok(panic) = error.try_into_panic() {
                        resume_unwind(panic);
                    }
                }
            }
        }
    }

    /// Has what ended closed, and its keys wiped.
    async fn close(&self, ended: Vec<Ended>) {
        let of_tenant = |ended: &Ended| ended.subject.tenant().is_some();
        let (tenants, control): (Vec<_>, Vec<_>) = ended.into_iter().partition(of_tenant);
        let mut closing = JoinSet::new();
        for ended in tenants {
            self.note(ended.event());
            let core = self.clone();
            drop(closing.spawn(async move { core.end(ended).await }));
        }
        while closing.join_next().await.is_some() {}
        // Last: the end of the audit log's chain stands in the control file.
        for ended in control {
            if let Err(error) = self.record(ended.event()).await {
                tracing::warn!(
                    error = error_chain(&error),
                    "a revocation is not in the audit log"
                );
            }
            self.end(ended).await;
        }
    }

    async fn end(&self, Ended { subject, why, .. }: Ended) {
        self.revoke(subject.tenant(), &Revocation::Refused(why))
            .await;
        tracing::warn!(%subject, "a file was closed and its key wiped: its lease was not renewed");
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

    /// Why a file that was closed under somebody is not to be had now, where that is known without
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

/// Asks for a file's data key once more. No answer in time is one.
async fn ask_within(
    patience: Duration,
    keys: &KeyRing,
    file: &Leased,
) -> Result<(), Arc<ProviderError>> {
    let asked = tokio::time::timeout(patience, ask(keys, file)).await;
    asked
        .unwrap_or_else(|_elapsed| {
            Err(ProviderError::NotRenewed {
                provider: file.wrap.provider,
                key_id: file.wrap.key_id.clone(),
                within: patience,
            })
        })
        .map_err(Arc::new)
}

/// Asks for a file's data key once more, and wipes it.
async fn ask(keys: &KeyRing, file: &Leased) -> Result<(), ProviderError> {
    for provider in keys.providers() {
        if provider.kind() == file.wrap.provider
            && let Unwrapped::Key(_wiped) = provider.unwrap(&file.wrap, &file.context()).await?
        {
            return Ok(());
        }
    }
    Err(ProviderError::NotConfigured {
        provider: file.wrap.provider,
        key_id: file.wrap.key_id.clone(),
    })
}

/// How many questions of one key are under way at once: openings come first.
const AT_ONCE: usize = 8;
/// A question has at least this long, also under a short lease, and at most as long as a provider
/// has.
const SHORTEST_PATIENCE: Duration = Duration::from_secs(1);
const LONGEST_PATIENCE: Duration = Duration::from_secs(15);
/// How long nobody looks when no file is open under a remote key.
const IDLE: Duration = Duration::from_secs(3600);
/// How long nobody looks otherwise: sleep is measured by a clock that stands still while the
/// machine does.
const BEAT: Duration = Duration::from_secs(1);
const SHORTEST: Duration = Duration::from_millis(10);
/// For how long what ran out waits for whoever renews, in milliseconds.
const ABANDONED_AFTER: u64 = 10_000;

#[cfg(test)]
mod tests;
