//! Tenants that come to be: created, or adopted from a backup.

use std::sync::Arc;

use nimbus_manifests::TenantId;

use super::deletion::FINISHED_LATER;
use crate::envelope::{Intent, KeyedFile};
use crate::failpoints::crash_point;
use crate::metrics;
use crate::runtime::{Progress, blocking};
use crate::tenants::StoreError;
use crate::tenants::backend::Backend;
use crate::tenants::shared::Shared;

impl<B: Backend> Shared<B> {
    /// What a creation begins with: there is no tenant of the name, and room for one; what is kept
    /// of an earlier one goes.
    pub(super) async fn begin_create(
        self: &Arc<Self>,
        tenant: &TenantId,
    ) -> Result<(), StoreError> {
        self.catch_up().await?;
        let (exists, condemned) = (self.exists(tenant), self.is_condemned(tenant));
        let of = tenant.clone();
        if exists {
            return Err(StoreError::TenantExists { tenant: of });
        }
        if self.others.is_some()
            && let Err(error) = self.registry.cut_off(tenant).await
        {
            tracing::debug!(%tenant, %error, "a tenant that another server deleted was not closed cleanly");
        }
        if let Some(what) = self.backend.no_room() {
            metrics::REFUSED_DISK_RESERVE.increment(1);
            return Err(StoreError::NoRoom { tenant: of, what });
        }
        if condemned {
            self.finish(tenant, Some(FINISHED_LATER)).await?;
        }
        let shared = Arc::clone(self);
        blocking(move || shared.deletions.begin_create(&of)).await
    }

    /// A creation failed, maybe so late (a disk that got full, say) that the next start would list
    /// the tenant: then it is one from now on, and is not reported to exist while it cannot be
    /// found. Answers whether it is.
    async fn came_to_be(self: &Arc<Self>, tenant: &TenantId) -> bool {
        let (shared, new) = (Arc::clone(self), tenant.clone());
        let is_one = blocking(move || shared.is_tenant(&new)).await;
        if is_one {
            self.known().tenants.insert(tenant.clone());
        }
        is_one
    }

    /// A creation out of a database that there is. Its first opening finds what it has due.
    pub(super) async fn adopt(
        self: Arc<Self>,
        tenant: TenantId,
        source: KeyedFile,
        progress: Progress,
    ) -> Result<(), StoreError> {
        let (shared, lost) = (Arc::clone(&self), tenant.clone());
        if self.exists(&tenant) && blocking(move || shared.backend.is_lost(&lost)).await {
            // Only what is known of it is left, and would keep another one from having its name.
            Arc::clone(&self).delete(tenant.clone()).await?;
        }
        self.begin_create(&tenant).await?;
        let (shared, going) = (Arc::clone(&self), tenant.clone());
        let progress: Progress =
            Arc::new(move |done, total| progress(done, total) && !shared.is_awaited(&going));
        if let Err(error) = self.backend.adopt(&tenant, source, progress).await {
            let _is_one = self.came_to_be(&tenant).await;
            return Err(error);
        }
        self.known().tenants.insert(tenant.clone());
        let opener = self.opener(&tenant, Intent::Open);
        self.registry.open(&tenant, opener).await.map(drop)
    }

    pub(super) async fn create(self: Arc<Self>, tenant: TenantId) -> Result<(), StoreError> {
        self.begin_create(&tenant).await?;
        let open = loop {
            let opener = self.opener(&tenant, Intent::Create);
            match self.registry.open(&tenant, opener).await {
                Ok(handle) => break handle,
                // Not this opening's answer, but one's that began before the tenant was deleted and
                // was met under way.
                Err(StoreError::TenantNotFound { .. }) => {}
                Err(error) => {
                    let _is_one = self.came_to_be(&tenant).await;
                    return Err(error);
                }
            }
        };
        crash_point!("tenants::create::opened");
        let (shared, new) = (Arc::clone(&self), tenant.clone());
        blocking(move || shared.backend.created(&new)).await;
        self.known().tenants.insert(tenant);
        drop(open);
        Ok(())
    }
}
