//! The keys a running configuration holds: one that wraps, older ones still accepted, and recovery recipients.

use std::path::Path;
use std::sync::Arc;

use nimbus_keyproviders::{Dek, KeyProvider, ProviderError, Unwrapped, recovery::Recipient};
use nimbus_manifests::{DekEntry, Subject, Timestamp, Wrap, WrapContext};

use super::EnvelopeError;

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

    /// A fresh data key, wrapped by the current provider and to every recipient.
    pub(super) async fn generate(
        &self,
        context: &WrapContext<'_>,
        now: Timestamp,
    ) -> Result<(Dek, Vec<Wrap>), ProviderError> {
        let (dek, wrapped) = self.current.generate(context).await?;
        let mut wraps = vec![wrapped.at(now)];
        for recipient in &self.recipients {
            wraps.push(recipient.wrap(&dek, context)?.at(now));
        }
        Ok((dek, wraps))
    }

    /// The data key of `entry`, by the first configured key that a wrap of it names.
    ///
    /// A wrap that names a configured key and fails does not end the search: another wrap may still open. Its failure is what is
    /// reported when none does.
    pub(super) async fn unwrap(
        &self,
        path: &Path,
        entry: &DekEntry,
        context: &WrapContext<'_>,
    ) -> Result<Dek, EnvelopeError> {
        let mut failure = None;
        for provider in self.providers() {
            for wrap in &entry.wraps {
                if wrap.provider != provider.kind() {
                    continue;
                }
                match provider.unwrap(wrap, context).await {
                    Ok(Unwrapped::Key(dek)) => return Ok(dek),
                    Ok(Unwrapped::NotMine) => {}
                    Err(error) => failure = failure.or(Some(error)),
                }
            }
        }
        Err(match failure {
            Some(source) => EnvelopeError::Unwrap {
                path: path.to_owned(),
                source,
            },
            None => EnvelopeError::NoMatchingKey {
                path: path.to_owned(),
                wrapped_by: entry
                    .wraps
                    .iter()
                    .map(|wrap| format!("{} {}", wrap.provider, wrap.key_id))
                    .collect(),
                configured: self.describe(context.subject).await,
            },
        })
    }

    /// `<provider> <key id>` of each provider, for messages.
    async fn describe(&self, subject: &Subject) -> Vec<String> {
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
