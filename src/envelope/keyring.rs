//! The keys a running configuration holds: one that wraps, older ones still accepted, and recovery recipients.

use std::sync::Arc;

use nimbus_keyproviders::{KeyProvider, recovery::Recipient};
use nimbus_manifests::{Subject, Wrap};

/// Who wraps new data keys, and who else may unwrap.
#[derive(Debug)]
pub struct KeyRing {
    current: Arc<dyn KeyProvider>,
    previous: Vec<Arc<dyn KeyProvider>>,
    recipients: Vec<Recipient>,
}

impl KeyRing {
    /// A ring whose `current` provider wraps; `previous` ones are tried after it when a file is opened.
    #[must_use]
    pub fn new(
        current: Arc<dyn KeyProvider>,
        previous: Vec<Arc<dyn KeyProvider>>,
        recipients: Vec<Recipient>,
    ) -> Self {
        Self {
            current,
            previous,
            recipients,
        }
    }

    /// The same keys with `current` before them: it wraps from now on, the others are still accepted.
    #[must_use]
    pub fn moved_to(&self, current: Arc<dyn KeyProvider>) -> Self {
        let mut previous = vec![self.current.clone()];
        previous.extend(self.previous.iter().cloned());
        Self {
            current,
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
            current: self.current.clone(),
            previous,
            recipients: self.recipients.clone(),
        }
    }

    /// The provider that wraps new data keys, to be held apart from this ring.
    #[must_use]
    pub fn current_shared(&self) -> Arc<dyn KeyProvider> {
        self.current.clone()
    }

    /// The provider that wraps new data keys.
    #[must_use]
    pub fn current(&self) -> &dyn KeyProvider {
        &*self.current
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
