//! Leases: a data key that a remote provider unwrapped is held for as long as that provider goes on saying yes.
//!
//! | the provider says | a file that is open | who asks for one that is not |
//! | --- | --- | --- |
//! | yes | goes on; asked again before the lease ends | gets it |
//! | no, of the key (disabled, pending deletion, gone) | every file under the key is closed at once | the same no; one asks each second, and the first yes ends it |
//! | no, of this file (a policy on its encryption context) | it is closed, and all others of the key are asked for at once | the same, for this file |
//! | nothing (unreachable, throttled, timed out) | goes on until lease and grace have passed since the last yes, then is closed | the failure; one asks each second |
//!
//! A round asks for the data keys of at most 50 files of each key, in turn, by the operation that opened them: a real decryption of the file's
//! own wrap under its own encryption context. What comes of it is wiped.

mod book;

use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nimbus_keyproviders::{FailureClass, ProviderError, Unwrapped};
use nimbus_manifests::{KeyId, Manifest, SealedManifest, Subject, Wrap, WrapContext};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::hold::Withdrawal;
use super::{Envelope, EnvelopeError, Event, EventKind, EventOutcome, KeyRing};
use crate::chain::chain;
use crate::runtime::{panic_point, short_task};
use book::{Answer, Book, Ended, Leased, Question};

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

/// Every lease of this process.
#[derive(Debug)]
pub(super) struct Leases {
    book: Mutex<Book>,
    /// A file was opened, or the terms changed.
    changed: Notify,
}

/// Held with a file that is open under a remote key. Dropped with it.
#[derive(Debug)]
pub(super) struct LeaseGuard {
    leases: Weak<Leases>,
    lease: u64,
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        if let Some(leases) = self.leases.upgrade() {
            leases.book().close(self.lease);
        }
    }
}

/// The right to ask for a data key, of a key that may be in trouble.
pub(super) struct Admitted<'a> {
    leases: &'a Leases,
    key: KeyId,
    subject: &'a Subject,
    asked: Instant,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.leases.book().asked(&self.key, self.subject);
    }
}

impl Admitted<'_> {
    /// The answer was yes.
    pub(super) fn confirm(&self) {
        let mut book = self.leases.book();
        book.confirm(&self.key, self.subject, self.asked);
    }
}

impl Leases {
    pub(super) fn new() -> Self {
        Self {
            book: Mutex::new(Book::new(Terms::default())),
            changed: Notify::new(),
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
        now: Instant,
    ) -> Result<Admitted<'a>, Arc<ProviderError>> {
        self.book().admit(key, subject, now)?;
        Ok(Admitted {
            leases: self,
            key: key.clone(),
            subject,
            asked: now,
        })
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Every change under the lock is made by code that has nothing to panic on.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Envelope {
    /// The same core, holding what remote providers unwrap on these terms.
    #[must_use]
    pub fn with_lease_terms(self, terms: Terms) -> Self {
        self.leases.book().agree(terms);
        self
    }

    /// How many files are open under remote keys, and which of these are in trouble.
    #[must_use]
    pub fn leases(&self) -> LeaseReport {
        let book = self.leases.book();
        LeaseReport {
            files: book.open_files(),
            troubles: book.troubles(self.clock.instant()),
        }
    }

    /// Renews leases ahead of their ends, for ever. A server runs this once; files of which no lease is renewed are not closed by themselves.
    pub async fn keep_leases(self) -> Infallible {
        loop {
            panic_point!("leases::keep");
            let changed = self.leases.changed.notified();
            let pause = self.renew_leases().await;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // The first file under a key may be due sooner than anything before it.
                () = changed => {}
            }
        }
    }

    /// Asks for what is due now, closes what was denied or not answered for too long, and says how long there is nothing to ask.
    pub async fn renew_leases(&self) -> Duration {
        let now = self.clock.instant();
        let rounds = self.leases.book().due(now);
        let mut renewing = JoinSet::new();
        for (key, questions) in rounds {
            let core = self.clone();
            drop(renewing.spawn(async move { core.renew(&key, questions).await }));
        }
        // A round that panicked has said so; its key stays marked as being renewed, so nothing else is to be done about it here.
        while renewing.join_next().await.is_some() {}
        let next = self.leases.book().next_due();
        let now = self.clock.instant();
        next.map_or(IDLE, |due| due.saturating_duration_since(now))
            .clamp(SHORTEST, IDLE)
    }

    /// One round for one key.
    async fn renew(&self, key: &KeyId, questions: Vec<Question>) {
        let answers = self.ask_all(questions).await;
        let troubled = self.leases.book().trouble_class(key);
        let (ended, now_troubled) = {
            let now = self.clock.instant();
            let mut book = self.leases.book();
            let next = self.next_renewal(now, book.terms());
            let ended = book.renewed(key, &answers, now, next);
            (ended, book.trouble_class(key))
        };
        if let (Some(FailureClass::Unavailable), None) = (now_troubled, troubled) {
            let grace = self.leases.book().terms().grace;
            let why = answers
                .iter()
                .find_map(|answer| answer.result.clone().err());
            let why = why.map(|why| chain(&*why)).unwrap_or_default();
            tracing::warn!(%key, ?grace, why, "a key provider does not answer; what is open under its key is served on until the grace ends");
        }
        let of_one_file = ended.iter().any(|ended| !ended.why.concerns_key());
        self.close(ended).await;
        if of_one_file {
            // Others may be under the same condition of a policy: their turn comes now.
            let rest = self.leases.book().questions(key);
            let answers = self.ask_all(rest).await;
            let ended = {
                let now = self.clock.instant();
                let mut book = self.leases.book();
                let next = self.next_renewal(now, book.terms());
                book.renewed(key, &answers, now, next)
            };
            self.close(ended).await;
        }
    }

    /// Between a half and two thirds of the lease from now, so that keys do not come due together, nor servers.
    fn next_renewal(&self, now: Instant, terms: Terms) -> Instant {
        let mut drawn = [0; 2];
        // Without randomness there is no jitter, and nothing else is lost.
        drop(self.random.fill(&mut drawn));
        let jitter = terms.lease / 6 * u32::from(u16::from_be_bytes(drawn)) / (1 << 16);
        now + terms.lease / 2 + jitter
    }

    async fn ask_all(&self, questions: Vec<Question>) -> Vec<Answer> {
        let Some(keys) = self.keys() else {
            return Vec::new();
        };
        let mut answers = Vec::with_capacity(questions.len());
        let mut asking = JoinSet::new();
        let mut waiting = questions.into_iter();
        loop {
            while asking.len() < AT_ONCE
                && let Some(question) = waiting.next()
            {
                let (keys, asked) = (keys.clone(), self.clock.instant());
                drop(asking.spawn(async move {
                    Answer {
                        lease: question.lease,
                        asked,
                        result: ask(&keys, &question.file).await.map_err(Arc::new),
                    }
                }));
            }
            match asking.join_next().await {
                None => return answers,
                Some(answer) => answers.extend(answer),
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
                    error = chain(&error),
                    "a revocation is not in the audit log"
                );
            }
            self.end(ended).await;
        }
    }

    async fn end(&self, Ended { subject, why, .. }: Ended) {
        self.withdraw(subject.tenant(), &Withdrawal::Refused(why))
            .await;
        tracing::warn!(%subject, "a file was closed and its key wiped: its lease was not renewed");
    }

    /// Whether `key` may be asked now for a data key of `subject`.
    pub(super) fn admit<'a>(
        &'a self,
        key: &KeyId,
        subject: &'a Subject,
    ) -> Result<Admitted<'a>, Arc<ProviderError>> {
        self.leases.admit(key, subject, self.clock.instant())
    }

    /// Notes a failure of a remote key, and closes what ends by it without being waited for.
    pub(super) fn refused(&self, admitted: &Admitted<'_>, why: &Arc<ProviderError>) {
        let now = self.clock.instant();
        let mut book = self.leases.book();
        let ended = book.refuse(&admitted.key, admitted.subject, why, now);
        drop(book);
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
        let mut book = self.leases.book();
        let due = self.next_renewal(admitted.asked, book.terms());
        let lease = book.open(file, admitted.asked, due)?;
        drop(book);
        self.leases.changed.notify_one();
        Ok(LeaseGuard {
            leases: Arc::downgrade(&self.leases),
            lease,
        })
    }

    /// Moves the leases of a file whose manifest was wrapped anew: from here on its new key is asked.
    pub(super) fn move_leases(&self, keys: &KeyRing, sealed: &SealedManifest) {
        let manifest = sealed.claims();
        let Some(entry) = manifest.deks().first() else {
            return;
        };
        let wrap = entry.wraps.iter().find(|wrap| keys.is_remote(wrap));
        let now = self.clock.instant();
        let mut book = self.leases.book();
        let due = self.next_renewal(now, book.terms());
        book.rewrapped(manifest.subject(), entry.id, wrap, now, due);
    }

    /// Why a file that was closed under somebody is not to be had now, where that is known without asking.
    pub(crate) fn withheld(&self, path: &Path, manifest: &Manifest) -> Option<EnvelopeError> {
        let subject = manifest.subject();
        if let Some(tenant) = subject.tenant()
            && self.is_locked(tenant)
        {
            let tenant = tenant.clone();
            return Some(EnvelopeError::Locked { tenant });
        }
        let book = self.leases.book();
        let mut wraps = manifest.deks().iter().flat_map(|dek| &dek.wraps);
        let source = wraps.find_map(|wrap| book.known_refusal(&wrap.key_id, subject))?;
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
            .saying(chain(&*self.why))
    }
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
/// How long nobody looks when no file is open under a remote key.
const IDLE: Duration = Duration::from_secs(3600);
const SHORTEST: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests;
