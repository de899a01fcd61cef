//! `shred`: a tenant is erased by destroying its keys, and then its files.
//!
//! The order is that of a deletion (`tenants`), with one step before it: where the tenant has a key
//! file of its own, that goes first. A crash after it leaves a tenant that does not open; running
//! it again goes on.

mod erasure;
mod error;
mod request;
mod rows;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nimbus_keyproviders::key_dir;
use nimbus_manifests::TenantId;

use crate::backup::{self, BackupError, Location, S3Settings};
use crate::data_dir;
use crate::envelope::{Envelope, Event, EventKind, EventOutcome};
use crate::error_chain::error_chain;
use crate::failpoints::crash_point;
use crate::runtime::blocking;
use crate::tenants::{StoreError, TenantProvider};
use erasure::{erase, key_dirs};

pub use erasure::Remains;
pub use error::ShredError;
pub use request::{LeftIn, LivingKey, OwnKey, Request, Shredded};
pub use rows::{require_sealed, shred_row};

/// Whether there is anything of `tenant` to destroy: files, a copy of its manifest, or a key file
/// of its own.
///
/// # Errors
///
/// [`StoreError`] when the tenants cannot be listed.
pub async fn is_there(
    envelope: &Envelope,
    tenants: &dyn TenantProvider,
    dir: &Path,
    tenant: &TenantId,
) -> Result<bool, StoreError> {
    tenants.require_files(NO_KEYS)?;
    if tenants.list_tenants().await?.contains(tenant) {
        return Ok(true);
    }
    let subject = data_dir::subject(tenant);
    let mut keys_of_its_own: Vec<PathBuf> = Vec::new();
    if let Some(keys) = envelope.keys() {
        let dirs = key_dirs(keys.providers());
        keys_of_its_own.extend(dirs.map(|dir| key_dir::path_for(dir, &subject)));
    }
    let (looked, tenant, envelope) = (dir.to_owned(), tenant.clone(), envelope.clone());
    let there = blocking(move || {
        let there = |path: &PathBuf| std::fs::symlink_metadata(path).is_ok();
        let files = data_dir::of_tenant(&looked, &tenant)?;
        // Of a deletion that was begun, it may be all that is left.
        let copies = envelope.copies_of(&looked.join(subject.file_name()), &subject);
        Ok(!files.is_empty() || !copies.is_empty() || keys_of_its_own.iter().any(there))
    });
    there.await.map_err(|source| StoreError::Io {
        action: "list",
        path: dir.to_owned(),
        source: Arc::new(source),
    })
}

/// Finishes the deletion of a tenant that [is not there](is_there), if one was cut short.
///
/// # Errors
///
/// [`ShredError::NoTenant`] when none was.
pub async fn finish(
    tenants: &dyn TenantProvider,
    tenant: &TenantId,
) -> Result<Shredded, ShredError> {
    match tenants.delete_tenant(tenant).await {
        Err(StoreError::TenantNotFound { tenant }) => return Err(ShredError::NoTenant { tenant }),
        deleted => deleted?,
    }
    Ok(Shredded::nothing_of(tenant))
}

/// Shreds a tenant here, in the repositories `from`, and in that which is shipped to. Where it is
/// none any more, only in those.
///
/// # Errors
///
/// As [`shred`].
pub async fn shred_everywhere(
    shredding: Shredding<'_>,
    tenant: &TenantId,
    begun: Option<Remains>,
) -> Result<Shredded, ShredError> {
    let Shredding {
        envelope,
        tenants,
        dir,
        disable_kms_key,
        from,
        ships_to,
        s3,
    } = shredding;
    let mut shredded = match shred(envelope, tenants, dir, tenant, disable_kms_key, begun).await {
        Err(ShredError::NoTenant { .. }) if !from.is_empty() => Shredded::nothing_of(tenant),
        shredded => shredded?,
    };
    crash_point!("shred::here");
    let subject = data_dir::subject(tenant);
    let ships_to = ships_to.filter(|to| !from.contains(to) && !shredded.plaintext);
    for location in from.iter().chain(ships_to) {
        let event = Event::new(EventKind::Shred, EventOutcome::Begun)
            .about(&subject)
            .saying(format!("in the repository {location}"));
        envelope.record(event.clone()).await?;
        let done = backup::shred::shred(envelope, location, s3, tenant).await;
        let ended = match &done {
            Ok(done) => Event {
                outcome: EventOutcome::Done,
                ..event
            }
            .saying(format!(
                "in the repository {location}: {} objects removed, {} kept by locks",
                done.objects,
                done.kept.len()
            )),
            Err(_) => event.ended(&done),
        };
        envelope.record(ended).await?;
        match done {
            Ok(done) => shredded.repositories.push(done),
            // Nothing was shipped yet.
            Err(BackupError::NoRepository { .. }) if ships_to == Some(location) => {}
            Err(error) => shredded.left.push(LeftIn {
                repository: location.to_string(),
                why: error_chain(&error),
            }),
        }
    }
    Ok(shredded)
}

/// With what, and where, a tenant is shredded.
#[derive(Debug, Clone, Copy)]
pub struct Shredding<'a> {
    /// The core.
    pub envelope: &'a Envelope,
    /// The tenants.
    pub tenants: &'a dyn TenantProvider,
    /// Their directory.
    pub dir: &'a Path,
    /// Whether a KMS key of the tenant's own is disabled.
    pub disable_kms_key: bool,
    /// The repositories that it goes from, too.
    pub from: &'a [Location],
    /// The repository that commits are shipped to.
    pub ships_to: Option<&'a Location>,
    /// How buckets are reached.
    pub s3: &'a S3Settings,
}

/// Destroys the key file of `tenant`, where it has one, then its manifest, every other file that
/// was ever derived from its name, and the copy of its manifest.
///
/// `begun` is what was known of a tenant whose deletion had begun already, from before the
/// `tenants` were opened, which ends it.
///
/// # Errors
///
/// [`ShredError`] names what is left.
pub async fn shred(
    envelope: &Envelope,
    tenants: &dyn TenantProvider,
    dir: &Path,
    tenant: &TenantId,
    disable_kms_key: bool,
    begun: Option<Remains>,
) -> Result<Shredded, ShredError> {
    let subject = data_dir::subject(tenant);
    let manifests = match begun {
        Some(remains) => remains,
        None if is_there(envelope, tenants, dir, tenant).await? => {
            let (envelope, dir, subject) = (envelope.clone(), dir.to_owned(), subject.clone());
            blocking(move || Remains::of(&envelope, &dir, &subject)).await
        }
        None => return finish(tenants, tenant).await,
    };
    let mut event = Event::new(EventKind::Shred, EventOutcome::Begun).about(&subject);
    if let Some(sealed) = &manifests.in_use {
        event = event.of(sealed.claims());
    }
    envelope.record(event.clone()).await?;
    let erased = erase(
        envelope,
        tenants,
        tenant,
        &subject,
        &manifests,
        disable_kms_key,
    )
    .await;
    let receipt = match &erased {
        Ok(shredded) => {
            let (destroyed, alive) = (shredded.destroyed_keys.len(), shredded.alive.len());
            event.ended(&erased).saying(format!(
                "key files destroyed: {destroyed}; keys by which earlier copies still open: {alive}"
            ))
        }
        Err(_) => event.ended(&erased),
    };
    envelope.record(receipt).await?;
    erased
}

/// What is said where there is no key to destroy.
const NO_KEYS: &str = "there is no key to destroy, for the tenant is not sealed; delete the tenant with DELETE /api/tenants/{t}, and its copies in dumps, WAL and replicas with the database's own means";
