//! Tenants that go, and deletions that a later call finishes.

use std::sync::Arc;

use nimbus_manifests::TenantId;

use crate::data_dir::subject;
use crate::envelope::{Event, EventKind, EventOutcome};
use crate::failpoints::crash_point;
use crate::runtime::blocking;
use crate::tenants::StoreError;
use crate::tenants::backend::Backend;
use crate::tenants::shared::Shared;

/// What the audit log says of a deletion that a later call finished.
pub(super) const FINISHED_LATER: &str = "it was cut short; a later call finished it";

impl<B: Backend> Shared<B> {
    pub(super) async fn delete(self: Arc<Self>, tenant: TenantId) -> Result<(), StoreError> {
        self.catch_up().await?;
        if !self.exists(&tenant) {
            if self.is_condemned(&tenant) {
                return self.finish(&tenant, Some(FINISHED_LATER)).await;
            }
            return Err(StoreError::TenantNotFound { tenant });
        }
        let event = Event::new(EventKind::Delete, EventOutcome::Begun).about(&subject(&tenant));
        if self.envelope.keys().is_some() {
            self.record(&tenant, event, false).await?;
        }
        // From here on nobody opens it; should the tombstone not come to be, it is let go again
        // unharmed.
        let barred = self.registry.bar(&tenant);
        let (shared, condemned) = (Arc::clone(&self), tenant.clone());
        blocking(move || shared.deletions.begin_delete(&condemned)).await?;
        crash_point!("tenants::delete::condemned");
        {
            let mut known = self.known();
            known.tenants.remove(&tenant);
            known.condemned.insert(tenant.clone());
        }
        if let Err(error) = self.registry.cut_off(&tenant).await {
            tracing::debug!(%tenant, %error, "a tenant that is being deleted was not closed cleanly");
        }
        crash_point!("tenants::delete::closed");
        let result = self.finish(&tenant, None).await;
        drop(barred);
        result
    }

    /// A deletion of what is no tenant.
    pub(super) async fn erase_leftovers(
        self: Arc<Self>,
        tenant: TenantId,
    ) -> Result<(), StoreError> {
        self.catch_up().await?;
        if self.exists(&tenant) {
            return Err(StoreError::TenantExists { tenant });
        }
        let (shared, condemned) = (Arc::clone(&self), tenant.clone());
        blocking(move || shared.deletions.begin_delete(&condemned)).await?;
        self.known().condemned.insert(tenant.clone());
        self.finish(&tenant, None).await
    }

    async fn record(&self, tenant: &TenantId, event: Event, done: bool) -> Result<(), StoreError> {
        self.envelope
            .record(event)
            .await
            .map_err(|source| StoreError::Unaudited {
                tenant: tenant.clone(),
                done,
                source: Arc::new(source),
            })
    }

    /// Steps 3 to 6 of a deletion, whose tombstone is written; each can be done again. Whoever
    /// comes to the end records it, and whoever does not why; the tombstone goes after that, so
    /// that no deletion ends without its line.
    pub(in crate::tenants) async fn finish(
        self: &Arc<Self>,
        tenant: &TenantId,
        said: Option<&'static str>,
    ) -> Result<(), StoreError> {
        let (shared, condemned) = (Arc::clone(self), tenant.clone());
        let forgotten = blocking(move || shared.backend.forget(&condemned)).await;
        let mut recorded = Ok(());
        if self.envelope.keys().is_some() {
            let event = Event::new(EventKind::Delete, EventOutcome::Begun).about(&subject(tenant));
            let event = match (event.ended(&forgotten), said) {
                (event, Some(said)) if forgotten.is_ok() => event.saying(said),
                (event, _) => event,
            };
            recorded = self.record(tenant, event, forgotten.is_ok()).await;
        }
        // What is wrong with the deletion comes first.
        forgotten.and(recorded)?;
        crash_point!("tenants::delete::recorded");
        let (shared, condemned) = (Arc::clone(self), tenant.clone());
        blocking(move || shared.deletions.finish_delete(&condemned)).await?;
        self.due.forget(tenant);
        crash_point!("tenants::delete::finished");
        // The next tenant of this name is another one.
        self.envelope.unlock(tenant);
        self.known().condemned.remove(tenant);
        Ok(())
    }
}
