//! What the provider and its open tenants share.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use nimbus_manifests::TenantId;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::backend::{Backend, Storage};
use super::open_tenant::OpenTenant;
use super::others::SharedTenants;
use super::readers::{GiveWay, ReaderLimits};
use super::registry::Registry;
use super::{DeletionLog, DueLog, StoreError};
use crate::envelope::Envelope;
use crate::tenant_mutex::TenantMutex;

/// What the provider and its open tenants share.
#[derive(Debug)]
pub(super) struct Shared<B: Backend> {
    pub(super) backend: Arc<B>,
    pub(super) envelope: Envelope,
    pub(super) deletions: Arc<dyn DeletionLog>,
    pub(super) due: Arc<dyn DueLog>,
    pub(super) readers: ReaderLimits,
    pub(super) registry: Arc<Registry<OpenTenant<B::Storage>>>,
    /// Makes way for connections of open tenants.
    pub(super) way: Arc<IdleTenants<B::Storage>>,
    /// What is known of the tenants where other servers change them, too; `known.tenants` does not
    /// count then.
    pub(super) others: Option<Arc<dyn SharedTenants>>,
    pub(super) myself: Weak<Self>,
    pub(super) known: Mutex<KnownTenants>,
    /// Creation, deletion and new keys of each tenant: one at a time.
    pub(super) changing: TenantMutex,
}

#[derive(Debug, Default)]
pub(super) struct KnownTenants {
    pub(super) tenants: BTreeSet<TenantId>,
    /// Tenants whose deletion could not be carried to its end yet.
    pub(super) condemned: HashSet<TenantId>,
    /// Tenants that somebody waits to delete: a new key is not made to its end.
    pub(super) awaited: HashSet<TenantId>,
    /// The provider is being closed.
    pub(super) closing: bool,
}

/// Closes tenants that nobody uses.
#[derive(Debug)]
pub(super) struct IdleTenants<S: Storage> {
    pub(super) registry: Weak<Registry<OpenTenant<S>>>,
    pub(super) runtime: Handle,
}

impl<S: Storage> GiveWay for IdleTenants<S> {
    fn give_way(&self, tenant: &TenantId, error: &StoreError) -> bool {
        let Some(registry) = self.registry.upgrade() else {
            return false;
        };
        let made = async {
            // Two whose callers have gone may wait for each other.
            let way = registry.give_way(tenant, error);
            timeout(WAY_PATIENCE, way).await.unwrap_or(false)
        };
        self.runtime.block_on(made)
    }
}

/// How long the closing of an idle tenant is waited for.
const WAY_PATIENCE: Duration = Duration::from_secs(5);
