//! Shredding of a tenant that is sealed in a database: its own key goes first, then, in one
//! transaction, the manifest with all wraps of its data key, then its tables.

use std::sync::Arc;

use nimbus_manifests::{SealedManifest, Subject, TenantId};

use super::erasure::{Remains, erase};
use super::{NO_KEYS, ShredError, Shredded};
use crate::envelope::{Envelope, Event, EventKind, EventOutcome, ManifestRows};
use crate::runtime::blocking;
use crate::tenants::{StoreError, TenantProvider};

/// The manifest of a tenant that is there, if it is sealed; whether it is there at all.
async fn manifest_of(
    rows: &Arc<dyn ManifestRows>,
    tenant: &TenantId,
) -> Result<Option<Option<Vec<u8>>>, StoreError> {
    let (rows, tenant) = (Arc::clone(rows), tenant.clone());
    let listed = blocking(move || rows.list().map(|listed| (listed, tenant))).await;
    let (listed, tenant) = listed.map_err(|source| StoreError::Provider { source })?;
    let row = listed.into_iter().find(|(there, _)| *there == tenant);
    Ok(row.map(|(_, manifest)| manifest))
}

/// Refuses a tenant that is there and not sealed.
///
/// # Errors
///
/// [`StoreError::NotInFiles`].
pub async fn require_sealed(
    rows: &Arc<dyn ManifestRows>,
    tenant: &TenantId,
) -> Result<(), StoreError> {
    match manifest_of(rows, tenant).await? {
        Some(None) => Err(StoreError::NotInFiles { instead: NO_KEYS }),
        Some(Some(_)) | None => Ok(()),
    }
}

/// Shreds a sealed tenant.
///
/// # Errors
///
/// [`ShredError::Store`] with [`StoreError::NotInFiles`] for one that is not sealed: it has no key.
pub async fn shred_row(
    envelope: &Envelope,
    tenants: &dyn TenantProvider,
    rows: &Arc<dyn ManifestRows>,
    tenant: &TenantId,
    disable_kms_key: bool,
) -> Result<Shredded, ShredError> {
    let manifest = match manifest_of(rows, tenant).await? {
        Some(Some(manifest)) => manifest,
        Some(None) => return Err(StoreError::NotInFiles { instead: NO_KEYS }.into()),
        // Its deletion was cut short, or there is none.
        None => return super::finish(tenants, tenant).await,
    };
    let subject = Subject::external_tenant(tenant);
    let sealed = SealedManifest::parse(&manifest).ok();
    let mut event = Event::new(EventKind::Shred, EventOutcome::Begun).about(&subject);
    if let Some(sealed) = &sealed {
        event = event.of(sealed.claims());
    }
    envelope.record(event.clone()).await?;
    let remains = Remains::of_row(sealed);
    let erased = erase(
        envelope,
        tenants,
        tenant,
        &subject,
        &remains,
        disable_kms_key,
    );
    let erased = erased.await.map(|shredded| Shredded {
        in_database: true,
        ..shredded
    });
    envelope.record(event.ended(&erased)).await?;
    erased
}
