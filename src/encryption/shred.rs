//! `shred`: a tenant is erased by destroying its keys, and then its files.
//!
//! The order is that of a deletion (`tenants`), with one step before it: where the tenant has a key file of its own, that goes first. A crash
//! after it leaves a tenant that does not open; running it again goes on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nimbus_keyproviders::{KeyFileError, KeyProvider, ProviderError, key_dir, keyfile};
use nimbus_manifests::{ProviderKind, SealedManifest, Subject, TenantId};
use serde::{Deserialize, Serialize};

use crate::data_dir;
use crate::envelope::{
    Envelope, EnvelopeError, Event, EventKind, EventOutcome, blocking, manifest_path, read_manifest,
};
use crate::failpoints::crash_point;
use crate::tenants::{StoreError, TenantProvider};

/// Why a tenant was not shredded, or not to the end: run it again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShredError {
    /// Its key file could not be destroyed.
    #[error("the key file of tenant {tenant} could not be destroyed; nothing else was done")]
    KeyFile {
        /// The tenant.
        tenant: TenantId,
        /// Why.
        source: KeyFileError,
    },
    /// The audit log cannot be written.
    #[error(transparent)]
    Audit(#[from] EnvelopeError),
    /// The KMS key that is the tenant's own could not be found out, or not disabled.
    #[error(
        "the KMS key of tenant {tenant} could not be disabled; of the data nothing was removed. Without --disable-kms-key it is shredded all the same"
    )]
    KmsKey {
        /// The tenant.
        tenant: TenantId,
        /// Why.
        source: ProviderError,
    },
    /// The deletion failed; the next start finishes one that has begun.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was destroyed, and what opens copies that were made before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shredded {
    /// The tenant.
    pub tenant: String,
    /// Key files that were destroyed: no copy of the tenant opens by them any more.
    pub destroyed_keys: Vec<String>,
    /// Keys that were not this tenant's alone: who has one, and copies of sidecar and data, still opens those.
    pub alive: Vec<LivingKey>,
    /// The KMS key that was this tenant's alone, if it had one.
    #[serde(default)]
    pub own_kms_key: Option<OwnKey>,
    /// Whether the manifest could be read: where not, it is not known which keys wrapped it.
    pub manifest_read: bool,
}

/// A KMS key that wrapped for one tenant and for nobody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnKey {
    /// Its ARN.
    pub key_id: String,
    /// Whether it was disabled: copies are dead until it is enabled again, and for good once it is deleted.
    pub disabled: bool,
}

/// A key by which copies still open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LivingKey {
    /// The kind of provider.
    pub provider: String,
    /// Its id, or the recovery recipient.
    pub key_id: String,
}

/// Whether there is anything of `tenant` to destroy: files, or a key file of its own.
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
    if tenants.list_tenants().await?.contains(tenant) {
        return Ok(true);
    }
    let subject = data_dir::subject(tenant);
    let mut keys_of_its_own: Vec<PathBuf> = Vec::new();
    if let Some(keys) = envelope.keys() {
        let dirs = key_dirs(keys.providers());
        keys_of_its_own.extend(dirs.map(|dir| key_dir::path_for(dir, &subject)));
    }
    let (looked, tenant) = (dir.to_owned(), tenant.clone());
    let there = blocking(move || {
        let there = |path: &PathBuf| std::fs::symlink_metadata(path).is_ok();
        let files = data_dir::of_tenant(&looked, &tenant)?;
        Ok(!files.is_empty() || keys_of_its_own.iter().any(there))
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
/// [`StoreError::TenantNotFound`] when none was.
pub async fn finish(
    tenants: &dyn TenantProvider,
    tenant: &TenantId,
) -> Result<Shredded, StoreError> {
    tenants.delete_tenant(tenant).await?;
    Ok(Shredded {
        tenant: tenant.to_string(),
        destroyed_keys: Vec::new(),
        alive: Vec::new(),
        own_kms_key: None,
        manifest_read: false,
    })
}

/// Destroys the key file of `tenant`, where it has one, then its manifest, every other file that was ever derived from its name, and the
/// copy of its manifest.
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
) -> Result<Shredded, ShredError> {
    if !is_there(envelope, tenants, dir, tenant).await? {
        return Ok(finish(tenants, tenant).await?);
    }
    let subject = data_dir::subject(tenant);
    let manifests = blocking({
        let (envelope, dir, subject) = (envelope.clone(), dir.to_owned(), subject.clone());
        move || Manifests::of(&envelope, &dir, &subject)
    })
    .await;
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

/// Every manifest of a tenant that can be read: each names keys by which copies still open.
struct Manifests {
    in_use: Option<SealedManifest>,
    /// Set aside, of copies, and those in the control file.
    others: Vec<SealedManifest>,
}

impl Manifests {
    fn of(envelope: &Envelope, dir: &Path, subject: &Subject) -> Self {
        let path = dir.join(subject.file_name());
        let read = |path: &Path| read_manifest(path).ok().flatten();
        let files = subject
            .tenant()
            .map(|tenant| data_dir::of_tenant(dir, tenant));
        let files = files.and_then(Result::ok).into_iter().flatten();
        let mut others: Vec<_> = files
            .filter(|(kind, _)| *kind == data_dir::Kind::Manifest)
            .filter_map(|(_, path)| read(&path))
            .collect();
        others.extend(envelope.copies_of(&path, subject));
        Self {
            in_use: read(&manifest_path(&path)),
            others,
        }
    }
}

/// The directories of keys that are one subject's each.
fn key_dirs<'a>(
    providers: impl Iterator<Item = &'a dyn KeyProvider>,
) -> impl Iterator<Item = &'a Path> {
    providers
        .filter(|provider| provider.kind() == ProviderKind::KeyDir)
        .filter_map(KeyProvider::path)
}

async fn erase(
    envelope: &Envelope,
    tenants: &dyn TenantProvider,
    tenant: &TenantId,
    subject: &Subject,
    manifests: &Manifests,
    disable_kms_key: bool,
) -> Result<Shredded, ShredError> {
    let wraps = manifests
        .in_use
        .iter()
        .chain(&manifests.others)
        .flat_map(|sealed| sealed.claims().deks())
        .flat_map(|dek| &dek.wraps);
    let (destroyed_keys, in_key_dir) = destroy_keys(envelope, tenant, subject).await?;
    let own_kms_key = own_key(envelope, tenant, subject, disable_kms_key).await?;
    let mut shredded = Shredded {
        tenant: tenant.to_string(),
        destroyed_keys,
        alive: Vec::new(),
        own_kms_key,
        manifest_read: manifests.in_use.is_some(),
    };
    crash_point!("shred::key-destroyed");
    for wrap in wraps {
        let key = LivingKey {
            provider: wrap.provider.to_string(),
            key_id: wrap.key_id.to_string(),
        };
        // Destroyed now, or by an earlier run that was cut short.
        let gone = wrap.provider == ProviderKind::KeyDir && in_key_dir;
        let own = shredded.own_kms_key.as_ref();
        let gone = gone || own.is_some_and(|own| own.disabled && own.key_id == key.key_id);
        if !gone && !shredded.alive.contains(&key) {
            shredded.alive.push(key);
        }
    }
    match tenants.delete_tenant(tenant).await {
        // A creation that was cut short, what is left of a migration, or only a key.
        Err(StoreError::TenantNotFound { .. }) => tenants.erase_leftovers(tenant).await?,
        deleted => deleted?,
    }
    Ok(shredded)
}

/// Finds the KMS key that is this tenant's alone, and disables it if that was asked for.
async fn own_key(
    envelope: &Envelope,
    tenant: &TenantId,
    subject: &Subject,
    disable: bool,
) -> Result<Option<OwnKey>, ShredError> {
    let Some(keys) = envelope.keys() else {
        return Ok(None);
    };
    let found = match disable {
        true => keys.wraps_for(subject).disable_own_key(subject).await,
        false => keys.wraps_for(subject).own_key(subject).await,
    };
    match found {
        Ok(key) => {
            if let (Some(key), true) = (&key, disable) {
                // Not done yet: only the receipt says that.
                let event = Event::new(EventKind::Shred, EventOutcome::Begun).about(subject);
                envelope.note(event.under(key).saying("the KMS key is disabled"));
            }
            Ok(key.map(|key| OwnKey {
                key_id: key.to_string(),
                disabled: disable,
            }))
        }
        // What it would say is for a message alone.
        Err(_unknown) if !disable => Ok(None),
        Err(source) => Err(ShredError::KmsKey {
            tenant: tenant.clone(),
            source,
        }),
    }
}

/// Destroys the subject's file in every key directory in force; answers which were there, and whether there is such a directory.
async fn destroy_keys(
    envelope: &Envelope,
    tenant: &TenantId,
    subject: &Subject,
) -> Result<(Vec<String>, bool), ShredError> {
    let (mut destroyed, mut any_dir) = (Vec::new(), false);
    let Some(keys) = envelope.keys() else {
        return Ok((destroyed, any_dir));
    };
    for dir in key_dirs(keys.providers()) {
        any_dir = true;
        let key = key_dir::path_for(dir, subject);
        let shown = key.display().to_string();
        let was_there = blocking(move || keyfile::destroy(&key)).await;
        let was_there = was_there.map_err(|source| ShredError::KeyFile {
            tenant: tenant.clone(),
            source,
        })?;
        if was_there {
            destroyed.push(shown);
        }
    }
    Ok((destroyed, any_dir))
}
