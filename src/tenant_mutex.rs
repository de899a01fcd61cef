//! Mutual exclusion per tenant: what is done to one tenant is done one at a time, and to different
//! tenants at once.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nimbus_manifests::TenantId;
use tokio::sync::Notify;

/// A mutex for each tenant that is worked on now.
#[derive(Debug, Default)]
pub(crate) struct TenantMutex {
    taken: Mutex<HashSet<TenantId>>,
    /// A guard was dropped.
    ended: Notify,
}

/// Keeps everybody else from its tenant, until dropped.
#[derive(Debug)]
pub(crate) struct TenantGuard<'a> {
    mutex: &'a TenantMutex,
    tenant: TenantId,
}

impl TenantMutex {
    /// Waits until nobody else has `tenant`, and takes it.
    pub(crate) async fn lock(&self, tenant: &TenantId) -> TenantGuard<'_> {
        loop {
            tokio::pin! { let ended = self.ended.notified(); }
            // From here on no end is missed.
            let _registered = ended.as_mut().enable();
            if self.taken().insert(tenant.clone()) {
                return TenantGuard {
                    mutex: self,
                    tenant: tenant.clone(),
                };
            }
            ended.await;
        }
    }

    /// Waits until nobody has any tenant.
    pub(crate) async fn wait_idle(&self) {
        loop {
            tokio::pin! { let ended = self.ended.notified(); }
            let _registered = ended.as_mut().enable();
            if self.taken().is_empty() {
                return;
            }
            ended.await;
        }
    }

    fn taken(&self) -> MutexGuard<'_, HashSet<TenantId>> {
        // Every change under the lock is complete in itself.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for TenantGuard<'_> {
    fn drop(&mut self) {
        self.mutex.taken().remove(&self.tenant);
        self.mutex.ended.notify_waiters();
    }
}
