//! The lease table: which files are open under which remote key, the last answer for each key, and
//! when to ask again. Plain data; the caller passes the time, and nothing here does I/O.

mod rounds;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nimbus_keyproviders::{FailureClass, ProviderError};
use nimbus_manifests::{Cipher, DekId, FileId, KeyId, Subject, Wrap, WrapContext};

use super::{Terms, Trouble};
use crate::clock::Moment;

/// Everything that is known.
#[derive(Debug)]
pub(super) struct LeaseTable {
    terms: Terms,
    keys: BTreeMap<KeyId, Key>,
    files: BTreeMap<u64, Open>,
    /// Subjects whose own wraps were denied by a key that serves others.
    denied: HashMap<Subject, Refusal>,
    next: u64,
}

/// One remote key.
#[derive(Debug, Default)]
struct Key {
    /// Not asked before then: there was no answer, or a round ended by a fault. The next round
    /// asks for one file.
    again: Option<Moment>,
    /// Since when a round is under way.
    renewing: Option<Moment>,
    trouble: Option<Refusal>,
}

/// Why a key is not asked by every request, and until when.
#[derive(Debug)]
struct Refusal {
    why: Arc<ProviderError>,
    since: Moment,
    again: Moment,
    /// Somebody asks just now; all others go by the last answer.
    asking: bool,
}

/// A file that is open under a remote key.
#[derive(Debug)]
struct Open {
    file: Leased,
    /// When it was asked for the last time and the answer was yes.
    confirmed: Moment,
    /// When to ask again.
    due: Moment,
    until: Until,
}

/// Until when a file may be used, in milliseconds of a [`Moment`]; shared with whoever has it open.
pub(super) type Until = Arc<AtomicU64>;

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
    pub(super) asked: Moment,
    pub(super) result: Result<(), Arc<ProviderError>>,
}

/// A file that must be closed.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) subject: Subject,
    pub(super) key: KeyId,
    pub(super) why: Arc<ProviderError>,
}

impl LeaseTable {
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

    /// Whether `key` may be asked for `subject`'s data key now. Where the last answer was no, or
    /// none, one asks each [`PAUSE`] and the others get that answer again.
    pub(super) fn admit(
        &mut self,
        key: &KeyId,
        subject: &Subject,
        now: Moment,
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

    /// Notes a yes to a question that was asked at `asked`. One that is older than a no says
    /// nothing any more.
    pub(super) fn confirm(&mut self, key: &KeyId, subject: &Subject, asked: Moment) {
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
    }

    /// Notes that `why` was the answer for `subject`; gives the files that end by it.
    pub(super) fn refuse(
        &mut self,
        key: &KeyId,
        subject: &Subject,
        why: &Arc<ProviderError>,
        now: Moment,
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
    fn trouble(&mut self, key: &KeyId, why: &Arc<ProviderError>, now: Moment) {
        let entry = self.keys.entry(key.clone()).or_default();
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
        asked: Moment,
        due: Moment,
    ) -> Result<(u64, Until), Arc<ProviderError>> {
        let key = self.keys.entry(file.wrap.key_id.clone()).or_default();
        if let Some(trouble) = &key.trouble
            && trouble.why.class() == FailureClass::Denied
        {
            return Err(trouble.why.clone());
        }
        let lease = self.next;
        self.next += 1;
        let open = Open {
            file,
            confirmed: asked,
            due,
            until: Until::default(),
        };
        open.use_until(asked + self.terms.lease);
        let until = open.until.clone();
        drop(self.files.insert(lease, open));
        Ok((lease, until))
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
        now: Moment,
        due: Moment,
    ) {
        let leases: Vec<u64> = self
            .files
            .iter()
            .filter(|(_, open)| open.file.subject == *subject)
            .map(|(lease, _)| *lease)
            .collect();
        for lease in leases {
            let Some(wrap) = wrap else {
                if let Some(open) = self.files.get(&lease) {
                    // Nobody can take it back any more.
                    open.until.store(u64::MAX, Ordering::Relaxed);
                }
                self.close(lease);
                continue;
            };
            let Some(open) = self.files.get(&lease) else {
                continue;
            };
            let open = Open {
                file: Leased {
                    dek_id,
                    wrap: wrap.clone(),
                    ..open.file.clone()
                },
                confirmed: now,
                due,
                until: open.until.clone(),
            };
            open.use_until(now + self.terms.lease);
            self.close(lease);
            self.keys.entry(wrap.key_id.clone()).or_default();
            drop(self.files.insert(lease, open));
        }
    }

    pub(super) fn terms(&self) -> Terms {
        self.terms
    }

    /// Why the data key of `subject` is not available, where that is known.
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
    pub(super) fn troubles(&self, now: Moment) -> Vec<Trouble> {
        let troubled = self.keys.iter().filter_map(|(id, key)| {
            let refusal = key.trouble.as_ref()?;
            let files = self.files.values();
            let files = files.filter(|open| open.file.wrap.key_id == *id);
            let first = files.clone().map(|open| open.confirmed).min();
            let end = |confirmed| confirmed + self.terms.lease + self.terms.grace;
            Some(Trouble {
                key: id.clone(),
                class: refusal.why.class(),
                lasting: now.saturating_duration_since(refusal.since),
                files: files.count(),
                left: first.map(|first| end(first).saturating_duration_since(now)),
            })
        });
        troubled.collect()
    }
}

impl Open {
    /// It may be used until `end`, and for as long after that as a renewal may be late.
    fn use_until(&self, end: Moment) {
        let end = end + MARGIN;
        self.until.store(end.milliseconds(), Ordering::Relaxed);
    }
}

impl Refusal {
    fn new(why: &Arc<ProviderError>, now: Moment) -> Self {
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
/// How late a renewal may be on a machine that is busy. No file is used for longer than its lease
/// and this.
pub(super) const MARGIN: Duration = Duration::from_secs(5);
