//! The erasure itself: manifests and files, then the keys.

use std::path::Path;

use nimbus_keyproviders::{KeyProvider, key_dir, keyfile};
use nimbus_manifests::{ProviderKind, SealedManifest, Subject, TenantId};

use super::{LivingKey, OwnKey, ShredError, Shredded};
use crate::data_dir;
use crate::envelope::{
    Envelope, Event, EventKind, EventOutcome, FileKind, classify, manifest_path, read_manifest,
};
use crate::failpoints::crash_point;
use crate::runtime::blocking;
use crate::tenants::{StoreError, TenantProvider};

/// Every manifest of a tenant that can be read: each names keys by which copies still open.
#[derive(Debug)]
pub struct Remains {
    pub(super) in_use: Option<SealedManifest>,
    /// In the control file.
    copies: Vec<SealedManifest>,
    /// Set aside, or of copies of the database.
    others: Vec<SealedManifest>,
    plaintext: bool,
}

impl Remains {
    /// What there is now. Blocks.
    #[must_use]
    pub fn of(envelope: &Envelope, dir: &Path, subject: &Subject) -> Self {
        let path = dir.join(subject.file_name());
        let read = |path: &Path| read_manifest(path).ok().flatten();
        let files = subject
            .tenant()
            .map(|tenant| data_dir::of_tenant(dir, tenant));
        let files = files.and_then(Result::ok).into_iter().flatten();
        let others = files
            .filter(|(kind, _)| *kind == data_dir::Kind::Manifest)
            .filter_map(|(_, path)| read(&path))
            .collect();
        let kind = classify(&path);
        Self {
            in_use: read(&manifest_path(&path)),
            copies: envelope.copies_of(&path, subject),
            others,
            plaintext: matches!(kind, Ok(FileKind::PlainSqlite | FileKind::PlainRedb)),
        }
    }
}

impl Remains {
    /// Of a tenant whose manifest is a row of a database.
    pub(super) fn of_row(manifest: Option<SealedManifest>) -> Self {
        Self {
            in_use: manifest,
            copies: Vec::new(),
            others: Vec::new(),
            plaintext: false,
        }
    }
}

/// The directories of keys that are one subject's each.
pub(super) fn key_dirs<'a>(
    providers: impl Iterator<Item = &'a dyn KeyProvider>,
) -> impl Iterator<Item = &'a Path> {
    providers
        .filter(|provider| provider.kind() == ProviderKind::KeyDir)
        .filter_map(KeyProvider::path)
}

pub(super) async fn erase(
    envelope: &Envelope,
    tenants: &dyn TenantProvider,
    tenant: &TenantId,
    subject: &Subject,
    manifests: &Remains,
    disable_kms_key: bool,
) -> Result<Shredded, ShredError> {
    let wraps = manifests
        .in_use
        .iter()
        .chain(&manifests.copies)
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
        manifest_read: manifests.in_use.is_some() || !manifests.copies.is_empty(),
        plaintext: manifests.plaintext,
        was_here: true,
        in_database: false,
        repositories: Vec::new(),
        left: Vec::new(),
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
    let deleted = match tenants.delete_tenant(tenant).await {
        // A creation that was cut short, what is left of a migration, or only a key.
        Err(StoreError::TenantNotFound { .. }) => tenants.erase_leftovers(tenant).await,
        deleted => deleted,
    };
    match deleted {
        Ok(()) => Ok(shredded),
        Err(source) => Err(ShredError::Halfway {
            source,
            worth: shredded.worth().join(" "),
        }),
    }
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
    let Some(own_keys) = keys.wraps_for(subject).own_keys() else {
        return Ok(None);
    };
    let found = match disable {
        true => own_keys.disable_own_key(subject).await,
        false => own_keys.own_key(subject).await,
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

/// Destroys the subject's file in every key directory in force; answers which were there, and
/// whether there is such a directory.
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
