//! Keys of their own for some tenants, beside the one for all: so that a customer holds, and
//! revokes, the key of its own tenant.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use nimbus_manifests::{KeyId, ProviderKind, Subject, TenantId, Wrap, WrapContext};

use super::{AwsKms, KmsConfig, KmsError, SharedCredentialsProvider, client, same_key};
use crate::error::ProviderError;
use crate::keys::Dek;
use crate::provider::{KeyProvider, OwnKeys, Unwrapped, Wrapped};

/// One KMS key for everything, but for the tenants that have another.
pub struct KmsKeyMap {
    shared: AwsKms,
    own: BTreeMap<TenantId, Arc<AwsKms>>,
}

impl KmsKeyMap {
    /// The keys that `tenants` names, reached as `config` says; those of one region share a client.
    ///
    /// # Errors
    /// As [`AwsKms::connect`].
    pub async fn connect(
        config: KmsConfig,
        tenants: &BTreeMap<TenantId, String>,
    ) -> Result<Self, KmsError> {
        Self::connect_as(config, tenants, None).await
    }

    /// As [`connect`](Self::connect), with `credentials` instead of the chain's if there are any.
    ///
    /// # Errors
    /// As `connect`.
    pub async fn connect_as(
        config: KmsConfig,
        tenants: &BTreeMap<TenantId, String>,
        credentials: Option<SharedCredentialsProvider>,
    ) -> Result<Self, KmsError> {
        let region = config.region.clone();
        let shared = AwsKms::connect_as(config, credentials.clone()).await?;
        let mut elsewhere: BTreeMap<String, Arc<AwsKms>> = BTreeMap::new();
        let mut keys: BTreeMap<String, Arc<AwsKms>> = BTreeMap::new();
        let mut own = BTreeMap::new();
        for (tenant, id) in tenants {
            let id = client::localised(id, region.as_deref());
            let key = match keys.get(&id) {
                Some(key) => key.clone(),
                None => match shared.foreign_region(&id) {
                    None => Arc::new(shared.beside(&id)?),
                    Some(region) => match elsewhere.get(region) {
                        Some(there) => Arc::new(there.beside(&id)?),
                        None => {
                            let config = KmsConfig {
                                key_id: id.clone(),
                                region: None,
                                ..shared.config.clone()
                            };
                            let there =
                                Arc::new(AwsKms::connect_as(config, credentials.clone()).await?);
                            drop(elsewhere.insert(region.to_owned(), there.clone()));
                            there
                        }
                    },
                },
            };
            drop(keys.insert(id, key.clone()));
            drop(own.insert(tenant.clone(), key));
        }
        Ok(Self { shared, own })
    }

    fn own(&self, subject: &Subject) -> Option<&AwsKms> {
        self.own.get(subject.tenant()?).map(|key| &**key)
    }

    /// The key that wraps for `subject` now.
    fn key(&self, subject: &Subject) -> &AwsKms {
        self.own(subject).unwrap_or(&self.shared)
    }

    /// The subject's own key, if nobody else is under it.
    async fn sole(&self, subject: &Subject) -> Result<Option<(&AwsKms, KeyId)>, ProviderError> {
        let Some(key) = self.own(subject) else {
            return Ok(None);
        };
        let arn = key.arn().await?;
        let others = self
            .own
            .iter()
            .filter(|(tenant, _)| Some(*tenant) != subject.tenant())
            .map(|(_, key)| &**key)
            .chain([&self.shared]);
        for other in others {
            if same_key(other.arn().await?, arn) {
                return Ok(None);
            }
        }
        Ok(Some((key, arn.clone())))
    }
}

#[async_trait]
impl KeyProvider for KmsKeyMap {
    fn kind(&self) -> ProviderKind {
        ProviderKind::AwsKms
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn is_mapped(&self, subject: &Subject) -> bool {
        self.own(subject).is_some()
    }

    async fn key_id(&self, subject: &Subject) -> Result<KeyId, ProviderError> {
        self.key(subject).key_id(subject).await
    }

    async fn generate(&self, context: &WrapContext<'_>) -> Result<(Dek, Wrapped), ProviderError> {
        self.key(context.subject).generate(context).await
    }

    async fn wrap(&self, dek: &Dek, context: &WrapContext<'_>) -> Result<Wrapped, ProviderError> {
        self.key(context.subject).wrap(dek, context).await
    }

    /// By the subject's own key or by the shared one: a tenant that got its own later is under the
    /// shared one until it is moved.
    async fn unwrap(
        &self,
        wrap: &Wrap,
        context: &WrapContext<'_>,
    ) -> Result<Unwrapped, ProviderError> {
        let first = match self.own(context.subject) {
            Some(own) => own.unwrap(wrap, context).await,
            None => Ok(Unwrapped::NotMine),
        };
        // A key of its own that cannot even be looked up does not stand in the way of the one that
        // wraps.
        match first {
            Ok(Unwrapped::Key(dek)) => Ok(Unwrapped::Key(dek)),
            first => match self.shared.unwrap(wrap, context).await {
                Ok(Unwrapped::NotMine) => first,
                second => second,
            },
        }
    }

    /// Of the shared key: a tenant's own is that tenant's trouble.
    async fn check(&self) -> Result<(), ProviderError> {
        self.shared.check().await
    }

    fn own_keys(&self) -> Option<&dyn OwnKeys> {
        Some(self)
    }
}

#[async_trait]
impl OwnKeys for KmsKeyMap {
    async fn own_key(&self, subject: &Subject) -> Result<Option<KeyId>, ProviderError> {
        Ok(self.sole(subject).await?.map(|(_, arn)| arn))
    }

    async fn disable_own_key(&self, subject: &Subject) -> Result<Option<KeyId>, ProviderError> {
        let Some((key, arn)) = self.sole(subject).await? else {
            return Ok(None);
        };
        key.disable().await?;
        Ok(Some(arn))
    }
}

impl fmt::Debug for KmsKeyMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KmsKeyMap")
            .field("shared", &self.shared)
            .field("own", &self.own)
            .finish()
    }
}
