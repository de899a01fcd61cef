//! Who has files open, so that they can be closed from here; and the tenants that an operator
//! locked.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use nimbus_keyproviders::ProviderError;
use nimbus_manifests::TenantId;

use super::Envelope;
use crate::tenant_mutex::{TenantGuard, TenantMutex};

/// Who has files open, and closes them when the core says so.
#[async_trait]
pub trait Holder: Debug + Send + Sync {
    /// Closes the files of `tenant`, or without one the control file, in use or not. Their keys are
    /// wiped when this returns, or with the last request that was using them. Files that are not
    /// its own are none of its business.
    async fn revoke(&self, tenant: Option<&TenantId>, why: &Revocation);
}

/// Why a file must be closed.
#[derive(Debug, Clone)]
pub enum Revocation {
    /// An operator locked the tenant.
    Locked,
    /// The provider did not go on saying yes.
    Refused(Arc<ProviderError>),
}

/// Shared by all clones of a core.
#[derive(Debug, Default)]
pub(super) struct Holders {
    holders: Mutex<Vec<Weak<dyn Holder>>>,
    locked: Mutex<BTreeSet<TenantId>>,
    /// Locking and unlocking of each tenant: one at a time.
    changing: TenantMutex,
}

impl Holders {
    fn locked(&self) -> MutexGuard<'_, BTreeSet<TenantId>> {
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Envelope {
    /// From now on `holder` is called when a file must be closed.
    pub fn held_by(&self, holder: Weak<dyn Holder>) {
        let mut holders = self
            .holders
            .holders
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        holders.retain(|holder| holder.strong_count() > 0);
        holders.push(holder);
    }

    /// Waits until nobody locks or unlocks `tenant`, and keeps everybody else from it until
    /// dropped.
    pub(crate) async fn lock_turn(&self, tenant: &TenantId) -> TenantGuard<'_> {
        self.holders.changing.lock(tenant).await
    }

    /// Locks a tenant: its files are closed, and opened by nobody until [`unlock`](Self::unlock).
    /// That it outlives this process is the caller's to see to, before.
    pub async fn lock(&self, tenant: &TenantId) {
        self.holders.locked().insert(tenant.clone());
        self.revoke(Some(tenant), &Revocation::Locked).await;
    }

    /// Locks tenants that were locked when the last process ended; nothing of theirs is open yet.
    pub fn keep_locked(&self, tenants: impl IntoIterator<Item = TenantId>) {
        self.holders.locked().extend(tenants);
    }

    /// Ends a lock; whether there was one.
    pub fn unlock(&self, tenant: &TenantId) -> bool {
        self.holders.locked().remove(tenant)
    }

    /// Whether an operator locked the tenant.
    #[must_use]
    pub fn is_locked(&self, tenant: &TenantId) -> bool {
        self.holders.locked().contains(tenant)
    }

    /// Has every holder close what belongs to `tenant`, or the control file.
    pub(super) async fn revoke(&self, tenant: Option<&TenantId>, why: &Revocation) {
        let holders: Vec<_> = {
            let holders = self.holders.holders.lock();
            let holders = holders.unwrap_or_else(PoisonError::into_inner);
            holders.iter().filter_map(Weak::upgrade).collect()
        };
        for holder in holders {
            holder.revoke(tenant, why).await;
        }
    }
}
