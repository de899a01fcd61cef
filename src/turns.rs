//! Turns: what is done to one tenant is done one at a time, and of different tenants at once.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nimbus_manifests::TenantId;
use tokio::sync::Notify;

/// Who has a turn now.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    taken: Mutex<HashSet<TenantId>>,
    /// Some turn has ended.
    ended: Notify,
}

/// The only turn of its tenant, until dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    tenant: TenantId,
}

impl Turns {
    /// Waits until nobody has the turn of `tenant`, and takes it.
    pub(crate) async fn take(&self, tenant: &TenantId) -> Turn<'_> {
        loop {
            tokio::pin! { let ended = self.ended.notified(); }
            // From here on no end is missed.
            let _registered = ended.as_mut().enable();
            if self.taken().insert(tenant.clone()) {
                return Turn {
                    turns: self,
                    tenant: tenant.clone(),
                };
            }
            ended.await;
        }
    }

    /// Waits until nobody has a turn.
    pub(crate) async fn quiet(&self) {
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

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let _was_there = self.turns.taken().remove(&self.tenant);
        self.turns.ended.notify_waiters();
    }
}
