//! A backend as the core drives it.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use nimbus_manifests::TenantId;

use super::storage::{Opened, Storage};
use crate::control::{AccessKeyId, KeyRecord};
use crate::envelope::{Intent, KeyedFile};
use crate::runtime::Progress;
use crate::tenants::StoreError;
use crate::tenants::error::NoRoom;
use crate::tenants::open_tenant::OpenTenant;
use crate::tenants::others::{Claim, SharedTenants};
use crate::tenants::sqlite::instant::Instants;

/// A tenant that comes from elsewhere.
#[derive(Debug)]
pub struct Arrival<S, A> {
    /// Where it goes.
    pub storage: S,
    /// What makes it a tenant.
    pub arriving: A,
}

/// An engine that keeps tenants.
#[async_trait]
pub trait Backend: Debug + Send + Sync + 'static {
    /// An open tenant.
    type Storage: Storage;
    /// A tenant that arrives.
    type Arriving: Debug + Send;

    /// The tenants that exist, and those that are `known` to exist, whatever is left of them.
    /// Blocks.
    fn list(&self, known: BTreeSet<TenantId>) -> Result<BTreeSet<TenantId>, StoreError>;

    /// Whether [`Backend::list`] would name a tenant that is not known otherwise. Blocks.
    fn exists(&self, tenant: &TenantId) -> bool;

    /// Whether nothing of its storage is there. Blocks.
    fn is_lost(&self, _tenant: &TenantId) -> bool {
        false
    }

    /// Opens a tenant, or creates it.
    async fn open(
        &self,
        tenant: &TenantId,
        intent: Intent,
    ) -> Result<Opened<Self::Storage>, StoreError>;

    /// Removes what is stored of a tenant, its key first: after a crash in between, nothing that is
    /// left can be read. Doing it again goes on from there. Blocks.
    fn forget(&self, tenant: &TenantId) -> Result<(), StoreError>;

    /// A tenant was created, and is open; nobody uses it yet. Blocks.
    fn created(&self, _tenant: &TenantId) {}

    /// Gives an open tenant a new data key while it is used, until `progress` says that it is to
    /// stop. A tenant that gets none goes on under the key that it has.
    async fn rekey(
        &self,
        tenant: &TenantId,
        _open: &OpenTenant<Self::Storage>,
        _progress: Progress,
    ) -> Result<(), StoreError> {
        Err(StoreError::no_data_keys(tenant))
    }

    /// Makes a tenant of the database of a backup, under a data key of its own. After an error, or
    /// a crash in between, it is none.
    async fn adopt(
        &self,
        tenant: &TenantId,
        _source: KeyedFile,
        _progress: Progress,
    ) -> Result<(), StoreError> {
        Err(StoreError::adopts_none(tenant))
    }

    /// A place for a tenant that comes from elsewhere, which is no tenant until it
    /// [has arrived](Self::arrived). What an earlier one left under its name is removed.
    async fn arrive(
        &self,
        tenant: &TenantId,
    ) -> Result<Arrival<Self::Storage, Self::Arriving>, StoreError>;

    /// Makes a tenant of what arrived, whose connections are closed, with these access keys where
    /// the backend has them. After an error, or a crash in between, it is none, or whole.
    async fn arrived(
        &self,
        tenant: &TenantId,
        arriving: Self::Arriving,
        keys: &[(AccessKeyId, KeyRecord)],
    ) -> Result<(), StoreError>;

    /// Removes what has arrived so far.
    async fn turn_away(
        &self,
        tenant: &TenantId,
        arriving: Self::Arriving,
    ) -> Result<(), StoreError>;

    /// What freezes a moment of all tenants, and the directory of their files; `None` where they
    /// are not files.
    fn instants(&self) -> Option<(Arc<Instants>, PathBuf)> {
        None
    }

    /// What is known of the tenants, where other servers change them, too.
    fn shared(&self) -> Option<Arc<dyn SharedTenants>> {
        None
    }

    /// Whether due work of a tenant is to be run here, before the tenant is opened for it. Blocks.
    fn claim(&self, _tenant: &TenantId, _now_ms: i64) -> Result<Claim, StoreError> {
        Ok(Claim::Free)
    }

    /// Why no tenant can be created, if none can.
    fn no_room(&self) -> Option<NoRoom>;

    /// Whether the place where tenants are kept can be reached.
    async fn check(&self) -> Result<(), StoreError>;
}
