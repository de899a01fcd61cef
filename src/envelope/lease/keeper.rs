//! Renews leases ahead of their end, and closes what is not renewed.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt as _;
use nimbus_keyproviders::{FailureClass, ProviderError, Unwrapped};
use nimbus_manifests::KeyId;
use tokio::task::JoinSet;

use super::table::{Answer, Ended, Leased, Question};
use crate::clock::Moment;
use crate::envelope::hold::Revocation;
use crate::envelope::{Envelope, KeyRing, Terms};
use crate::error_chain::error_chain;
use crate::runtime::panic_point;

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
pub(super) const SHORTEST_PATIENCE: Duration = Duration::from_secs(1);
pub(super) const LONGEST_PATIENCE: Duration = Duration::from_secs(15);
/// How long nobody looks when no file is open under a remote key.
const IDLE: Duration = Duration::from_secs(3600);
/// How long nobody looks otherwise: sleep is measured by a clock that stands still while the
/// machine does.
const BEAT: Duration = Duration::from_secs(1);
const SHORTEST: Duration = Duration::from_millis(10);
/// For how long what ran out waits for whoever renews, in milliseconds.
pub(super) const ABANDONED_AFTER: u64 = 10_000;

impl Envelope {
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
    pub(super) fn enforce(&self) {
        // Those of a keeper that ended by a fault were cut off with it.
        self.leases.table().forget_rounds();
        self.leases.kept.store(true, Ordering::Relaxed);
    }

    /// Begins to ask for what is due now, and to close what ran out.
    pub(super) fn begin_rounds(&self, rounds: &mut JoinSet<()>) {
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
    pub(super) fn next_renewal(&self, asked: Moment, terms: Terms) -> Moment {
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
    pub(super) async fn close(&self, ended: Vec<Ended>) {
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
}
