//! A key provider whose calls are counted and timed.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use nimbus_keyproviders::{
    Dek, FailureClass, KeyProvider, OwnKeys, ProviderError, Unwrapped, Wrapped,
};
use nimbus_manifests::{KeyId, ProviderKind, Subject, Wrap, WrapContext};

use crate::metrics;

/// The same provider, counted. To be put round each provider once, where it is connected.
#[must_use]
pub fn metered(provider: Arc<dyn KeyProvider>) -> Arc<dyn KeyProvider> {
    Arc::new(Metered(provider))
}

#[derive(Debug)]
struct Metered(Arc<dyn KeyProvider>);

impl Metered {
    fn count<T>(
        &self,
        operation: &'static str,
        started: Instant,
        result: Result<T, ProviderError>,
    ) -> Result<T, ProviderError> {
        let outcome = match &result {
            Ok(_) => "ok",
            Err(error) => match error.class() {
                FailureClass::Denied => "denied",
                FailureClass::Unavailable => "unavailable",
                FailureClass::Invalid => "invalid",
            },
        };
        metrics::key_operation(
            self.0.kind().as_str(),
            operation,
            outcome,
            started.elapsed(),
        );
        result
    }
}

// A method left to the trait's default would answer for the provider within: that it is not remote,
// and needs no lease.
#[deny(
    clippy::missing_trait_methods,
    reason = "every call is passed on, also those that the trait gets later"
)]
#[async_trait]
impl KeyProvider for Metered {
    fn kind(&self) -> ProviderKind {
        self.0.kind()
    }

    async fn key_id(&self, subject: &Subject) -> Result<KeyId, ProviderError> {
        self.0.key_id(subject).await
    }

    async fn generate(&self, context: &WrapContext<'_>) -> Result<(Dek, Wrapped), ProviderError> {
        let started = Instant::now();
        self.count("generate", started, self.0.generate(context).await)
    }

    async fn wrap(&self, dek: &Dek, context: &WrapContext<'_>) -> Result<Wrapped, ProviderError> {
        let started = Instant::now();
        self.count("wrap", started, self.0.wrap(dek, context).await)
    }

    async fn unwrap(
        &self,
        wrap: &Wrap,
        context: &WrapContext<'_>,
    ) -> Result<Unwrapped, ProviderError> {
        let started = Instant::now();
        let result = self.0.unwrap(wrap, context).await;
        // Nobody was called for a wrap that is somebody else's.
        if matches!(result, Ok(Unwrapped::NotMine)) {
            return result;
        }
        self.count("unwrap", started, result)
    }

    async fn check(&self) -> Result<(), ProviderError> {
        let started = Instant::now();
        self.count("check", started, self.0.check().await)
    }

    fn is_remote(&self) -> bool {
        self.0.is_remote()
    }

    fn is_mapped(&self, subject: &Subject) -> bool {
        self.0.is_mapped(subject)
    }

    fn own_keys(&self) -> Option<&dyn OwnKeys> {
        self.0.own_keys().map(|_keys| self as &dyn OwnKeys)
    }

    fn path(&self) -> Option<&Path> {
        self.0.path()
    }
}

#[async_trait]
impl OwnKeys for Metered {
    async fn own_key(&self, subject: &Subject) -> Result<Option<KeyId>, ProviderError> {
        match self.0.own_keys() {
            Some(keys) => keys.own_key(subject).await,
            None => Ok(None),
        }
    }

    async fn disable_own_key(&self, subject: &Subject) -> Result<Option<KeyId>, ProviderError> {
        let Some(keys) = self.0.own_keys() else {
            return Ok(None);
        };
        let started = Instant::now();
        self.count("disable", started, keys.disable_own_key(subject).await)
    }
}
