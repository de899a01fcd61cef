//! Tenants that several servers share: what a backend knows of what others do. What the core makes
//! of it is in `following.rs`.

use std::fmt::Debug;
use std::sync::Weak;

use async_trait::async_trait;
use nimbus_manifests::TenantId;

use super::StoreError;

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
