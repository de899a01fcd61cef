//! What a server makes of what others do to the tenants that they share.

use std::sync::Arc;

use nimbus_manifests::TenantId;

use super::StoreError;
use super::backend::Backend;
use super::others::{SharedListener, SharedStanding};
use super::shared::Shared;
use crate::envelope::{EnvelopeError, Trouble};
use crate::runtime::{blocking, short_task};

impl<B: Backend> SharedListener for Shared<B> {
    fn ended(&self, affected: Vec<TenantId>) {
        let Some(shared) = self.myself.upgrade() else {
            return;
        };
        let _in_it = self.way.runtime.enter();
        drop(short_task(async move {
            for tenant in affected {
                shared.follow(&tenant).await;
            }
        }));
    }

    fn abandoned(&self, tenant: TenantId) {
        let Some(shared) = self.myself.upgrade() else {
            return;
        };
        let _in_it = self.way.runtime.enter();
        drop(short_task(async move {
            let finishing = tenant.clone();
            let finished = shared.in_task(&tenant, |shared, tenant| async move {
                match shared.standing(&tenant) {
                    Some(SharedStanding::Deleting) => {
                        shared.finish(&tenant, Some(FINISHED_HERE)).await
                    }
                    _ => Ok(()),
                }
            });
            if let Err(error) = finished.await {
                tracing::error!(tenant = %finishing, %error, "a deletion that another server began could not be finished; it is tried again");
            }
        }));
    }
}

impl<B: Backend> Shared<B> {
    /// How a tenant stands that others change, too.
    pub(super) fn standing(&self, tenant: &TenantId) -> Option<SharedStanding> {
        let others = self.others.as_ref()?;
        Some(others.standing(tenant))
    }

    /// Another server did something to a tenant.
    async fn follow(self: &Arc<Self>, tenant: &TenantId) {
        // What this server does to it comes to its end first.
        let guard = self.changing.lock(tenant).await;
        let closed = match self.standing(tenant) {
            // Perhaps another one of its name: work that was let in fails if it is.
            Some(SharedStanding::There) | None => self.registry.close(tenant).await,
            _ => self.registry.cut_off(tenant).await,
        };
        if let Err(error) = closed {
            tracing::debug!(%tenant, %error, "a tenant that another server changed was not closed cleanly");
        }
        if self.standing(tenant) == Some(SharedStanding::None) {
            let (shared, gone) = (Arc::clone(self), tenant.clone());
            // What only this server knows: whom its keys were used for.
            let forgotten = blocking(move || shared.deletions.begin_create(&gone)).await;
            if let Err(error) = forgotten {
                tracing::warn!(%tenant, %error, "what this server counted of a tenant that another one deleted is kept");
            }
            self.due.forget(tenant);
        }
        drop(guard);
    }

    /// Refuses a tenant that is not there, or that an operator locked on a server of the same
    /// database.
    pub(super) async fn require(&self, tenant: &TenantId) -> Result<(), StoreError> {
        let not_found = || StoreError::TenantNotFound {
            tenant: tenant.clone(),
        };
        let Some(others) = &self.others else {
            return self.exists(tenant).then_some(()).ok_or_else(not_found);
        };
        if !others.is_fresh() {
            others.refresh().await?;
        }
        let before = others.standing(tenant);
        let mut standing = before;
        if matches!(before, SharedStanding::None | SharedStanding::Deleting) {
            // Another server may have made it, or another one of its name, just now.
            others.refresh().await?;
            standing = others.standing(tenant);
        }
        match standing {
            // Who asks may have a key of the one before, which was still known when it was judged.
            SharedStanding::There if before == SharedStanding::Deleting => {
                Err(StoreError::Closed {
                    tenant: tenant.clone(),
                })
            }
            SharedStanding::There => Ok(()),
            SharedStanding::None | SharedStanding::Deleting => Err(not_found()),
            SharedStanding::Locked => Err(StoreError::Open {
                tenant: tenant.clone(),
                trouble: Trouble::Locked,
                exhausted: false,
                source: Arc::new(EnvelopeError::Locked {
                    tenant: tenant.clone(),
                }),
            }),
        }
    }

    /// Has this server know what others did before.
    pub(super) async fn catch_up(&self) -> Result<(), StoreError> {
        match &self.others {
            Some(others) => others.refresh().await,
            None => Ok(()),
        }
    }

    /// Whether the deletion of a tenant has begun and not ended.
    pub(super) fn is_condemned(&self, tenant: &TenantId) -> bool {
        match self.standing(tenant) {
            Some(standing) => standing == SharedStanding::Deleting,
            None => self.known().condemned.contains(tenant),
        }
    }
}

/// What the audit log says of a deletion that another server began.
const FINISHED_HERE: &str = "another server began it, and did not finish it; this one did";
