//! Tenants that several servers share: what a backend knows of what others do, and what the core
//! makes of it.

use std::fmt::Debug;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use nimbus_manifests::TenantId;

use super::StoreError;
use super::backend::Backend;
use super::shared::Shared;
use crate::envelope::{EnvelopeError, Trouble};
use crate::runtime::{blocking, short_task};

/// How a tenant stands that several servers share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedStanding {
    /// There is none.
    None,
    /// It may be used.
    There,
    /// It may not be used: an operator locked it.
    Locked,
    /// Its deletion has begun.
    Deleting,
}

/// What a server knows of tenants that it shares with others.
#[async_trait]
pub trait SharedTenants: Debug + Send + Sync {
    /// How a tenant stands, by what is in memory.
    fn standing(&self, tenant: &TenantId) -> SharedStanding;

    /// The tenants that exist, by what is in memory.
    fn list(&self) -> Vec<TenantId>;

    /// Whether what is in memory is young enough to go by.
    fn is_fresh(&self) -> bool;

    /// Has what is in memory be newer than this call.
    async fn refresh(&self) -> Result<(), StoreError>;

    /// Locks or unlocks a tenant for all servers; whether it was locked before. Blocks.
    fn set_locked(&self, tenant: &TenantId, locked: bool) -> Result<bool, StoreError>;

    /// Names who is told of what other servers did.
    fn tell(&self, listener: Weak<dyn SharedListener>);
}

/// Who is told of what other servers did.
pub trait SharedListener: Debug + Send + Sync {
    /// These tenants may not be used as they were: deleted, locked, or made anew. Does not block.
    fn ended(&self, tenants: Vec<TenantId>);

    /// The deletion of this tenant has gone on for so long that who began it may be gone.
    fn abandoned(&self, tenant: TenantId);
}

/// Whether due work of a tenant is to be run here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// It is.
    Free,
    /// Another server runs it at this moment.
    Taken,
    /// Another server ran it: the next is due then.
    Later(Option<i64>),
}

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
        let mut standing = others.standing(tenant);
        if standing == SharedStanding::None {
            // Another server may have made it just now.
            others.refresh().await?;
            standing = others.standing(tenant);
        }
        match standing {
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
