//! The keys a running configuration holds: one that wraps, older ones still accepted, and recovery
//! recipients.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nimbus_keyproviders::{KeyProvider, recovery::Recipient};
use nimbus_manifests::{Subject, Wrap};

/// What a rotation to another key does with tenants that a key map names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapped {
    /// They stay under the keys that the map names.
    Stay,
    /// They move with all others.
    Move,
}

/// Who wraps new data keys, and who else may unwrap.
#[derive(Debug)]
pub struct KeyRing {
    generation: Generation,
    current: Arc<dyn KeyProvider>,
    /// After a rotation to another key: whose key map still says who wraps for the tenants that it
    /// names. It is among the previous ones.
    keeping: Option<Arc<dyn KeyProvider>>,
    previous: Vec<Arc<dyn KeyProvider>>,
    recipients: Vec<Recipient>,
}

/// Tells one key ring of this process from every other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Generation(u64);

impl Generation {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl KeyRing {
    /// A ring whose `current` provider wraps; `previous` ones are tried after it when a file is
    /// opened.
    #[must_use]
    pub fn new(
        current: Arc<dyn KeyProvider>,
        previous: Vec<Arc<dyn KeyProvider>>,
        recipients: Vec<Recipient>,
    ) -> Self {
        Self {
            generation: Generation::next(),
            current,
            keeping: None,
            previous,
            recipients,
        }
    }

    /// The same keys with `current` before them: it wraps from now on, the others are still
    /// accepted. Tenants that a key map names stay under their own keys, unless these are to move,
    /// too.
    #[must_use]
    pub fn moved_to(&self, current: Arc<dyn KeyProvider>, mapped: Mapped) -> Self {
        let mut previous = vec![self.current.clone()];
        previous.extend(self.previous.iter().cloned());
        let map = self.keeping.as_ref().unwrap_or(&self.current);
        Self {
            generation: Generation::next(),
            current,
            keeping: (mapped == Mapped::Stay).then(|| map.clone()),
            previous,
            recipients: self.recipients.clone(),
        }
    }

    /// The same keys, and `other` accepted, too.
    #[must_use]
    pub fn also_accepting(&self, other: Arc<dyn KeyProvider>) -> Self {
        let mut previous = self.previous.clone();
        previous.push(other);
        Self {
            generation: Generation::next(),
            current: self.current.clone(),
            keeping: self.keeping.clone(),
            previous,
            recipients: self.recipients.clone(),
        }
    }

    /// Which ring this is.
    pub(super) fn generation(&self) -> Generation {
        self.generation
    }

    /// The provider that wraps new data keys, but for tenants with a key of their own: see
    /// [`wraps_for`](Self::wraps_for).
    #[must_use]
    pub fn current(&self) -> &dyn KeyProvider {
        &*self.current
    }

    /// The provider that wraps new data keys of `subject`.
    #[must_use]
    pub fn wraps_for(&self, subject: &Subject) -> &dyn KeyProvider {
        let keeping = self.keeping.as_ref().filter(|map| map.is_mapped(subject));
        &**keeping.unwrap_or(&self.current)
    }

    /// Whether a key map names a key for `subject`, which wraps for it.
    #[must_use]
    pub fn is_mapped(&self, subject: &Subject) -> bool {
        self.wraps_for(subject).is_mapped(subject)
    }

    /// Every provider that may unwrap, in the order in which they are tried.
    pub fn providers(&self) -> impl Iterator<Item = &dyn KeyProvider> {
        std::iter::once(&self.current)
            .chain(&self.previous)
            .map(|provider| &**provider)
    }

    /// The recovery recipients that each new data key is also wrapped to.
    #[must_use]
    pub fn recipients(&self) -> &[Recipient] {
        &self.recipients
    }

    /// Whether a provider that made `wrap` is a remote one.
    pub(super) fn is_remote(&self, wrap: &Wrap) -> bool {
        self.providers()
            .any(|provider| provider.is_remote() && provider.kind() == wrap.provider)
    }

    /// `<provider> <key id>` of each provider, for messages.
    pub(super) async fn describe(&self, subject: &Subject) -> Vec<String> {
        let mut all = Vec::new();
        for provider in self.providers() {
            all.push(match provider.key_id(subject).await {
                Ok(id) => format!("{} {id}", provider.kind()),
                Err(error) => format!("{} ({error})", provider.kind()),
            });
        }
        all
    }
}
