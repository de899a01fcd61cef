//! The books of the leases: which files are open under which remote key, what was last heard of each key, and when to ask again. Plain
//! data, and time as it is given: everything here is decided without asking anybody.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nimbus_keyproviders::{FailureClass, ProviderError};
use nimbus_manifests::{Cipher, DekId, FileId, KeyId, Subject, Wrap, WrapContext};

use super::{Terms, Trouble};

/// Everything that is known.
#[derive(Debug)]
pub(super) struct Book {
    terms: Terms,
    keys: BTreeMap<KeyId, Key>,
    files: BTreeMap<u64, Open>,
    /// Subjects whose own wraps were denied by a key that serves others.
    denied: HashMap<Subject, Refusal>,
    next: u64,
}

/// One remote key.
#[derive(Debug)]
struct Key {
    /// When it was asked for the last time and said yes.
    confirmed: Instant,
    /// When to ask again.
    due: Instant,
    renewing: bool,
    trouble: Option<Refusal>,
}

/// Why a key is not asked by every request, and until when.
#[derive(Debug)]
struct Refusal {
    why: Arc<ProviderError>,
    since: Instant,
    again: Instant,
    /// Somebody asks just now; all others go by the last answer.
    asking: bool,
}

/// A file that is open under a remote key.
#[derive(Debug)]
struct Open {
    file: Leased,
    asked: Instant,
}

/// What it takes to ask for a file's key again.
#[derive(Debug, Clone)]
pub(super) struct Leased {
    pub(super) subject: Subject,
    pub(super) file_id: FileId,
    pub(super) cipher: Cipher,
    pub(super) dek_id: DekId,
    pub(super) wrap: Wrap,
}

impl Leased {
    pub(super) fn context(&self) -> WrapContext<'_> {
        WrapContext {
            subject: &self.subject,
            file_id: self.file_id,
            cipher: self.cipher,
            dek_id: self.dek_id,
        }
    }
}

/// A file's key, to be asked for.
#[derive(Debug, Clone)]
pub(super) struct Question {
    pub(super) lease: u64,
    pub(super) file: Leased,
}

/// What came of a question, and when it was asked.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) lease: u64,
    pub(super) asked: Instant,
    pub(super) result: Result<(), Arc<ProviderError>>,
}

/// A file that is to be closed.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) subject: Subject,
    pub(super) key: KeyId,
    pub(super) why: Arc<ProviderError>,
}

impl Book {
    pub(super) fn new(terms: Terms) -> Self {
        Self {
            terms,
            keys: BTreeMap::new(),
            files: BTreeMap::new(),
            denied: HashMap::new(),
            next: 0,
        }
    }

    pub(super) fn agree(&mut self, terms: Terms) {
        self.terms = terms;
    }

    /// Whether `key` may be asked for `subject`'s data key now. Where the last answer was no, or none, one asks each [`PAUSE`] and the
    /// others get that answer again.
    pub(super) fn admit(
        &mut self,
        key: &KeyId,
        subject: &Subject,
        now: Instant,
    ) -> Result<(), Arc<ProviderError>> {
        let trouble = self.keys.get(key).and_then(|key| key.trouble.as_ref());
        for refusal in trouble.into_iter().chain(self.denied.get(subject)) {
            if refusal.asking || now < refusal.again {
                return Err(refusal.why.clone());
            }
        }
        for refusal in self.refusals(key, subject) {
            refusal.asking = true;
        }
        Ok(())
    }

    /// Notes that who was admitted has asked, or went away without.
    pub(super) fn asked(&mut self, key: &KeyId, subject: &Subject) {
        for refusal in self.refusals(key, subject) {
            refusal.asking = false;
        }
    }

    fn refusals(&mut self, key: &KeyId, subject: &Subject) -> impl Iterator<Item = &mut Refusal> {
        let trouble = self.keys.get_mut(key).and_then(|key| key.trouble.as_mut());
        trouble.into_iter().chain(self.denied.get_mut(subject))
    }

    /// Notes a yes to a question that was asked at `asked`. One that is older than a no says nothing any more.
    pub(super) fn confirm(&mut self, key: &KeyId, subject: &Subject, asked: Instant) {
        if self.denied.get(subject).is_some_and(|no| no.since <= asked) {
            drop(self.denied.remove(subject));
        }
        let Some(entry) = self.keys.get_mut(key) else {
            return;
        };
        if entry.trouble.as_ref().is_some_and(|no| no.since <= asked) {
            entry.trouble = None;
            tracing::info!(%key, "the key provider answers for this key again");
        }
        entry.confirmed = entry.confirmed.max(asked);
    }

    /// Notes that `why` was the answer for `subject`; gives the files that end by it.
    pub(super) fn refuse(
        &mut self,
        key: &KeyId,
        subject: &Subject,
        why: &Arc<ProviderError>,
        now: Instant,
    ) -> Vec<Ended> {
        match why.class() {
            FailureClass::Denied if why.concerns_key() => {
                self.trouble(key, why, now);
                self.end(key, why, |_| true)
            }
            FailureClass::Denied => {
                let refusal = Refusal::new(why, now);
                drop(self.denied.insert(subject.clone(), refusal));
                self.end(key, why, |file| file.subject == *subject)
            }
            FailureClass::Unavailable => {
                self.trouble(key, why, now);
                Vec::new()
            }
            FailureClass::Invalid => Vec::new(),
        }
    }

    /// Notes what keeps a key from being used. An outage does not lift a denial.
    fn trouble(&mut self, key: &KeyId, why: &Arc<ProviderError>, now: Instant) {
        let entry = self.keys.entry(key.clone()).or_insert_with(|| Key {
            confirmed: now,
            due: now,
            renewing: false,
            trouble: None,
        });
        match &mut entry.trouble {
            Some(trouble)
                if trouble.why.class() == why.class() || why.class() != FailureClass::Denied =>
            {
                trouble.again = now + PAUSE;
                if trouble.why.class() == why.class() {
                    trouble.why = why.clone();
                }
            }
            trouble => *trouble = Some(Refusal::new(why, now)),
        }
    }

    /// Takes up a file whose key was given out for a question of `asked`.
    ///
    /// # Errors
    ///
    /// The no that came meanwhile.
    pub(super) fn open(
        &mut self,
        file: Leased,
        asked: Instant,
        first_due: Instant,
    ) -> Result<u64, Arc<ProviderError>> {
        let key = self
            .keys
            .entry(file.wrap.key_id.clone())
            .or_insert_with(|| Key {
                confirmed: asked,
                due: first_due,
                renewing: false,
                trouble: None,
            });
        if let Some(trouble) = &key.trouble
            && trouble.why.class() == FailureClass::Denied
        {
            return Err(trouble.why.clone());
        }
        let lease = self.next;
        self.next += 1;
        drop(self.files.insert(lease, Open { file, asked }));
        Ok(lease)
    }

    /// A file was closed.
    pub(super) fn close(&mut self, lease: u64) {
        if let Some(open) = self.files.remove(&lease) {
            let key = open.file.wrap.key_id;
            let used = self.files.values().any(|open| open.file.wrap.key_id == key);
            if !used && self.keys.get(&key).is_some_and(|key| key.trouble.is_none()) {
                drop(self.keys.remove(&key));
            }
        }
    }

    /// A file's data key is wrapped by `wrap` from now on; by no remote key without one.
    pub(super) fn rewrapped(
        &mut self,
        subject: &Subject,
        dek_id: DekId,
        wrap: Option<&Wrap>,
        now: Instant,
        due: Instant,
    ) {
        let leases: Vec<u64> = self
            .files
            .iter()
            .filter(|(_, open)| open.file.subject == *subject)
            .map(|(lease, _)| *lease)
            .collect();
        for lease in leases {
            let Some(wrap) = wrap else {
                self.close(lease);
                continue;
            };
            let Some(open) = self.files.get(&lease) else {
                continue;
            };
            let file = Leased {
                dek_id,
                wrap: wrap.clone(),
                ..open.file.clone()
            };
            self.close(lease);
            let _new = self.keys.entry(wrap.key_id.clone()).or_insert(Key {
                confirmed: now,
                due,
                renewing: false,
                trouble: None,
            });
            drop(self.files.insert(lease, Open { file, asked: now }));
        }
    }

    /// What is to be asked now: of each key that is due, the files that were not asked for longest.
    pub(super) fn due(&mut self, now: Instant) -> Vec<(KeyId, Vec<Question>)> {
        let due: Vec<KeyId> = self
            .keys
            .iter()
            .filter(|(_, key)| !key.renewing && key.due <= now)
            .map(|(id, _)| id.clone())
            .collect();
        let mut rounds = Vec::new();
        for id in due {
            let mut questions = self.questions(&id);
            questions.truncate(A_ROUND);
            let Some(key) = self.keys.get_mut(&id) else {
                continue;
            };
            if questions.is_empty() {
                // Nobody has a file open under it: whoever opens one asks by that.
                key.due = now + self.terms.lease;
                continue;
            }
            key.renewing = true;
            for question in &questions {
                if let Some(open) = self.files.get_mut(&question.lease) {
                    open.asked = now;
                }
            }
            rounds.push((id, questions));
        }
        rounds
    }

    /// All files under a key, the one that was not asked for longest first.
    pub(super) fn questions(&self, key: &KeyId) -> Vec<Question> {
        let mut open: Vec<_> = self
            .files
            .iter()
            .filter(|(_, open)| open.file.wrap.key_id == *key)
            .collect();
        open.sort_by_key(|(lease, open)| (open.asked, **lease));
        open.into_iter()
            .map(|(lease, open)| Question {
                lease: *lease,
                file: open.file.clone(),
            })
            .collect()
    }

    /// Notes the answers of a round and when to ask next; gives the files that end by it.
    pub(super) fn renewed(
        &mut self,
        key: &KeyId,
        answers: &[Answer],
        now: Instant,
        next: Instant,
    ) -> Vec<Ended> {
        let mut ended = Vec::new();
        let mut heard = false;
        for answer in answers {
            let Some(open) = self.files.get(&answer.lease) else {
                continue;
            };
            let subject = open.file.subject.clone();
            match &answer.result {
                Ok(()) => {
                    heard = true;
                    self.confirm(key, &subject, answer.asked);
                }
                Err(why) => {
                    heard |= why.class() == FailureClass::Denied;
                    ended.extend(self.refuse(key, &subject, why, now));
                }
            }
        }
        let retry = now + self.retry();
        let Some(entry) = self.keys.get_mut(key) else {
            return ended;
        };
        entry.renewing = false;
        let end = entry.confirmed + self.terms.lease + self.terms.grace;
        // Asked for a last time when the grace ends, and not some seconds after it.
        let retry = if now < end { retry.min(end) } else { retry };
        entry.due = if heard { next } else { retry };
        if !heard && now >= end {
            // A wrap that does not open any more, which did, is no yes either.
            let why = answers
                .iter()
                .find_map(|answer| answer.result.clone().err());
            ended.extend(
                why.map(|why| self.end(key, &why, |_| true))
                    .unwrap_or_default(),
            );
        }
        ended
    }

    fn end(
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
        ending
            .into_iter()
            .filter_map(|lease| self.files.remove(&lease))
            .map(|open| Ended {
                subject: open.file.subject,
                key: key.clone(),
                why: why.clone(),
            })
            .collect()
    }

    /// When the next key is due; `None` while no file is open.
    pub(super) fn next_due(&self) -> Option<Instant> {
        if self.files.is_empty() {
            return None;
        }
        let waiting = self.keys.values().filter(|key| !key.renewing);
        waiting.map(|key| key.due).min()
    }

    pub(super) fn terms(&self) -> Terms {
        self.terms
    }

    /// Why the data key of `subject` is not to be had, where that is known.
    pub(super) fn known_refusal(
        &self,
        key: &KeyId,
        subject: &Subject,
    ) -> Option<Arc<ProviderError>> {
        let trouble = self.keys.get(key).and_then(|key| key.trouble.as_ref());
        let refusal = trouble.or(self.denied.get(subject))?;
        Some(refusal.why.clone())
    }

    pub(super) fn trouble_class(&self, key: &KeyId) -> Option<FailureClass> {
        let trouble = self.keys.get(key)?.trouble.as_ref()?;
        Some(trouble.why.class())
    }

    pub(super) fn open_files(&self) -> usize {
        self.files.len()
    }

    /// Every key that does not answer, or answers no.
    pub(super) fn troubles(&self, now: Instant) -> Vec<Trouble> {
        let troubled = self.keys.iter().filter_map(|(id, key)| {
            let refusal = key.trouble.as_ref()?;
            let files = self.files.values();
            let files = files.filter(|open| open.file.wrap.key_id == *id).count();
            let end = key.confirmed + self.terms.lease + self.terms.grace;
            Some(Trouble {
                key: id.clone(),
                class: refusal.why.class(),
                lasting: now.saturating_duration_since(refusal.since),
                files,
                left: (files > 0).then(|| end.saturating_duration_since(now)),
            })
        });
        troubled.collect()
    }

    /// How soon to ask again where there was no answer.
    fn retry(&self) -> Duration {
        (self.terms.lease / 10).max(PAUSE)
    }
}

impl Refusal {
    fn new(why: &Arc<ProviderError>, now: Instant) -> Self {
        Self {
            why: why.clone(),
            since: now,
            again: now + PAUSE,
            asking: false,
        }
    }
}

/// Between two questions for a key that was refused, however many requests want it.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// How many files of a key are asked for in one round. Up to so many open files each has its own answer every lease; of more, they take turns,
/// and a round still proves the key itself.
pub(super) const A_ROUND: usize = 50;
