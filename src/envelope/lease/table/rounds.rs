//! Which leases are due, and what the answers mean for them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nimbus_keyproviders::{FailureClass, ProviderError};
use nimbus_manifests::KeyId;

use super::{Answer, Key, MARGIN, Open, PAUSE, Question};
use crate::clock::Moment;
use crate::envelope::lease::{Ended, LeaseTable, Leased, Terms};

impl LeaseTable {
    /// What must be asked now: of each key of which no round is under way, the files that are due,
    /// the one that was confirmed longest ago first.
    pub(in crate::envelope::lease) fn due(&mut self, now: Moment) -> Vec<(KeyId, Vec<Question>)> {
        let mut due: BTreeMap<KeyId, Vec<(Moment, u64)>> = BTreeMap::new();
        for (lease, open) in &self.files {
            let key = &open.file.wrap.key_id;
            if open.due <= now && self.may_be_asked(key, now) {
                let of_key = due.entry(key.clone()).or_default();
                of_key.push((open.confirmed, *lease));
            }
        }
        let mut rounds = Vec::new();
        for (id, mut files) in due {
            files.sort_unstable();
            let entry = self.keys.entry(id.clone()).or_default();
            entry.renewing = Some(now);
            if entry.again.take().is_some() {
                // Is it there again?
                files.truncate(1);
            }
            let question = |(_, lease): &(Moment, u64)| {
                let file = self.files.get(lease)?.file.clone();
                Some(Question {
                    lease: *lease,
                    file,
                })
            };
            rounds.push((id, files.iter().filter_map(question).collect()));
        }
        rounds
    }

    fn may_be_asked(&self, key: &KeyId, now: Moment) -> bool {
        let Some(key) = self.keys.get(key) else {
            return true;
        };
        !self.is_under_way(key, now) && key.again.is_none_or(|again| again <= now)
    }

    /// Whether a round of `key` is under way. One that takes longer than a lease is given up.
    fn is_under_way(&self, key: &Key, now: Moment) -> bool {
        let lasting = key
            .renewing
            .map(|since| now.saturating_duration_since(since));
        lasting.is_some_and(|lasting| lasting < self.terms.lease + MARGIN)
    }

    /// Notes the answers of a round that began at `began`, and by `next` when to ask again after a
    /// yes; gives the files that end by it.
    pub(in crate::envelope::lease) fn renewed(
        &mut self,
        key: &KeyId,
        began: Moment,
        answers: &[Answer],
        now: Moment,
        mut next: impl FnMut(Moment) -> Moment,
    ) -> Vec<Ended> {
        let (mut ended, mut silence) = (Vec::new(), None);
        for answer in answers {
            let Some(open) = self.files.get_mut(&answer.lease) else {
                continue;
            };
            let subject = open.file.subject.clone();
            match &answer.result {
                Ok(()) => {
                    open.confirmed = open.confirmed.max(answer.asked);
                    open.due = next(answer.asked);
                    open.use_until(open.confirmed + self.terms.lease);
                    self.confirm(key, &subject, answer.asked);
                }
                Err(why) => {
                    // A wrap that does not open any more, which did, is no yes either.
                    if why.class() != FailureClass::Denied {
                        silence = Some(why.clone());
                    }
                    ended.extend(self.refuse(key, &subject, why, now));
                }
            }
        }
        if ended.iter().any(|ended| !ended.why.concerns_key()) {
            // Others may be under the same condition of a policy: their turn comes now.
            for open in self.files.values_mut() {
                if open.file.wrap.key_id == *key && open.confirmed < began {
                    open.due = now;
                }
            }
        }
        if let Some(entry) = self.keys.get_mut(key) {
            entry.renewing = None;
        }
        if let Some(why) = silence {
            ended.extend(self.bear(key, &why, now));
        }
        ended
    }

    /// There was no answer: files go on until their grace ends, as long as the key is asked again
    /// and again. Gives those whose grace has ended.
    fn bear(&mut self, key: &KeyId, why: &Arc<ProviderError>, now: Moment) -> Vec<Ended> {
        let Terms { lease, grace } = self.terms;
        let end = |open: &Open| open.confirmed + lease + grace;
        let over: Vec<u64> = self
            .files
            .iter()
            .filter(|(_, open)| open.file.wrap.key_id == *key && end(open) <= now)
            .map(|(lease, _)| *lease)
            .collect();
        let ended = over.into_iter().filter_map(|lease| self.take(lease, why));
        let ended = ended.collect();
        // Asked for a last time when a grace ends, and not some seconds after it.
        let mut again = now + (lease / 10).max(PAUSE);
        for open in self.files.values() {
            if open.file.wrap.key_id == *key {
                again = again.min(end(open));
                open.use_until(end(open).min(now + lease));
            }
        }
        if let Some(entry) = self.keys.get_mut(key) {
            entry.again = Some(again);
        }
        ended
    }

    /// A round ended by a fault, without a result.
    pub(in crate::envelope::lease) fn failed(&mut self, key: &KeyId, now: Moment) {
        if let Some(entry) = self.keys.get_mut(key) {
            (entry.renewing, entry.again) = (None, Some(now + PAUSE));
        }
    }

    /// No round is under way any more: whoever waited for them ended by a fault.
    pub(in crate::envelope::lease) fn forget_rounds(&mut self) {
        for key in self.keys.values_mut() {
            key.renewing = None;
        }
    }

    /// The files that may not be used any more although nobody said no, and of which nobody is
    /// about to ask.
    pub(in crate::envelope::lease) fn run_out(&mut self, now: Moment) -> Vec<Ended> {
        let is_out = |open: &Open| open.until.load(Ordering::Relaxed) <= now.milliseconds();
        let asked = |key: &KeyId| {
            let key = self.keys.get(key);
            key.is_some_and(|key| self.is_under_way(key, now))
        };
        let out: Vec<u64> = self
            .files
            .iter()
            .filter(|(_, open)| is_out(open) && !asked(&open.file.wrap.key_id))
            .map(|(lease, _)| *lease)
            .collect();
        let why = Arc::new(ProviderError::LeaseRanOut);
        let ended = out.into_iter().filter_map(|lease| self.take(lease, &why));
        ended.collect()
    }

    /// Takes a file out of the table.
    fn take(&mut self, lease: u64, why: &Arc<ProviderError>) -> Option<Ended> {
        let open = self.files.remove(&lease)?;
        // Whoever has it open still does not use it any more.
        open.until.store(0, Ordering::Relaxed);
        Some(Ended {
            subject: open.file.subject,
            key: open.file.wrap.key_id,
            why: why.clone(),
        })
    }

    pub(super) fn end(
        &mut self,
        key: &KeyId,
        why: &Arc<ProviderError>,
        which: impl Fn(&Leased) -> bool,
    ) -> Vec<Ended> {
        let ending: Vec<u64> = self
            .files
            .iter()
            .filter(|(_, open)| open.file.wrap.key_id == *key && which(&open.file))
            .map(|(lease, _)| *lease)
            .collect();
        let ended = ending.into_iter().filter_map(|lease| self.take(lease, why));
        ended.collect()
    }

    /// When to ask next; `None` while there is nothing to ask.
    pub(in crate::envelope::lease) fn next_due(&self) -> Option<Moment> {
        let waiting =
            self.files
                .values()
                .filter_map(|open| match self.keys.get(&open.file.wrap.key_id) {
                    Some(key) if key.renewing.is_some() => None,
                    Some(Key {
                        again: Some(again), ..
                    }) => Some(open.due.max(*again)),
                    _ => Some(open.due),
                });
        waiting.min()
    }
}
