//! `shred`: a tenant is erased by destroying its keys, and then its files.
//!
//! The order is that of a deletion (`tenants`), with one step before it: where the tenant has a key
//! file of its own, that goes first. A crash after it leaves a tenant that does not open; running
//! it again goes on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use nimbus_keyproviders::{KeyFileError, KeyProvider, ProviderError, key_dir, keyfile};
use nimbus_manifests::{ProviderKind, SealedManifest, Subject, TenantId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::backup::shred::RepositoryShredded;
use crate::backup::{self, BackupError, Location, S3Settings};
use crate::envelope::{
    Envelope, EnvelopeError, Event, EventKind, EventOutcome, FileKind, classify, manifest_path,
    read_manifest,
};
use crate::error_chain::error_chain;
use crate::failpoints::crash_point;
use crate::runtime::blocking;
use crate::tenants::{StoreError, TenantProvider};
use crate::{as_text, data_dir, schemas};

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
    /// Nothing is there to be destroyed.
    #[error(
        "there is no tenant {tenant}, nor anything left of one; `nimbus encryption status` lists what is there"
    )]
    NoTenant {
        /// The tenant.
        tenant: TenantId,
    },
    /// The tenants cannot be listed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The deletion failed; the next start finishes one that has begun.
    #[error("{source}. {worth}")]
    Halfway {
        /// Why.
        source: StoreError,
        /// What copies of its files are still worth.
        worth: String,
    },
}

/// Erase a tenant: destroy its keys, then its files
#[derive(Debug, Clone, Args, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Shred, description = "The flags of `nimbus encryption shred`")]
pub struct Request {
    /// The tenant
    #[arg(long, value_name = "TENANT")]
    #[serde(with = "as_text")]
    #[schema(value_type = schemas::TenantId)]
    pub tenant_id: TenantId,

    /// Needed: nobody can undo it
    #[arg(long, required = true)]
    #[serde(skip)]
    #[schema(ignore)]
    pub yes: bool,

    /// Disable the tenant's AWS KMS key, too, where it has one of its own
    /// (--encryption-aws-kms-key-map)
    #[arg(long)]
    #[serde(default)]
    #[schema(required = false)]
    pub disable_kms_key: bool,

    /// Backup repositories that it is removed from, too: directories by their paths from the root,
    /// or s3://bucket/prefix.
    #[arg(
        long,
        value_name = "R",
        value_parser = Location::from_flag,
        help = "A backup repository that its keys and pages are removed from, too; can be given several times"
    )]
    #[serde(
        default,
        serialize_with = "as_text::list::serialize",
        deserialize_with = "as_text::list::deserialize::<_, MAX_REPOSITORIES, _>"
    )]
    #[schema(value_type = Vec<String>, required = false, max_items = 16)]
    pub from: Vec<Location>,
}

/// From how many repositories a tenant goes at once.
const MAX_REPOSITORIES: usize = 16;

/// What was destroyed, and what opens copies that were made before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Shredded {
    /// The tenant.
    #[schema(value_type = schemas::TenantId)]
    pub tenant: String,
    /// Key files that were destroyed: no copy of the tenant opens by them any more.
    pub destroyed_keys: Vec<String>,
    /// Keys that were not this tenant's alone: who has one, and copies of sidecar and data, still
    /// opens those.
    pub alive: Vec<LivingKey>,
    /// The KMS key that was this tenant's alone, if it had one.
    #[serde(default)]
    #[schema(required)]
    pub own_kms_key: Option<OwnKey>,
    /// Whether a manifest, or its copy in the control file, could be read: where not, it is not
    /// known which keys wrapped it.
    pub manifest_read: bool,
    /// Whether the database was plaintext: no key was needed for it.
    #[serde(default)]
    #[schema(required)]
    pub plaintext: bool,
    /// Whether anything of it was there besides what is in repositories.
    #[serde(default)]
    #[schema(required)]
    pub was_here: bool,
    /// What was removed of it from backup repositories.
    #[serde(default)]
    #[schema(required)]
    pub repositories: Vec<RepositoryShredded>,
    /// Repositories that it could not be removed from.
    #[serde(default)]
    #[schema(required)]
    pub left: Vec<LeftIn>,
}

/// A repository that a tenant could not be removed from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeftIn {
    /// The repository.
    pub repository: String,
    /// Why.
    pub why: String,
}

impl Shredded {
    /// There is nothing of it here.
    fn nothing_of(tenant: &TenantId) -> Self {
        Self {
            tenant: tenant.to_string(),
            destroyed_keys: Vec::new(),
            alive: Vec::new(),
            own_kms_key: None,
            manifest_read: false,
            plaintext: false,
            was_here: false,
            repositories: Vec::new(),
            left: Vec::new(),
        }
    }

    /// What copies of its files made elsewhere are still worth, and what ends that: a sentence or
    /// two for each key.
    #[must_use]
    pub fn worth(&self) -> Vec<String> {
        let mut said: Vec<String> = self
            .destroyed_keys
            .iter()
            .map(|key| {
                format!(
                    "Its key file {key} is destroyed: copies of its sidecar and data are dead, unless someone has a copy of that key."
                )
            })
            .collect();
        if self.plaintext {
            said.push(
                "It was not encrypted: copies of its data made before can be read by whoever has them, and no key ends that."
                    .to_owned(),
            );
        } else if self.was_here && !self.manifest_read {
            said.push(
                "No manifest of it could be read: which keys open copies made before is not known."
                    .to_owned(),
            );
        }
        if let Some(key) = self.own_kms_key.as_ref().filter(|key| key.disabled) {
            let key = &key.key_id;
            said.push(format!(
                "Its own KMS key {key} is disabled: copies of its sidecar and data are dead until it is enabled again. To end that for good: \
                 `aws kms schedule-key-deletion --key-id {key}`."
            ));
        }
        said.extend(self.alive.iter().map(|key| self.worth_under(key)));
        said.extend(self.repositories.iter().flat_map(RepositoryShredded::said));
        said.extend(self.left.iter().map(|left| {
            let LeftIn { repository, why } = left;
            format!(
                "LEFT in {repository}: {why}. `nimbus encryption shred --tenant-id {} --yes --from {repository}` goes on there.",
                self.tenant
            )
        }));
        let nowhere = self.repositories.is_empty() && self.left.is_empty();
        if nowhere && !self.alive.is_empty() {
            said.push(format!(
                "Backup repositories still hold its wrapped key and its pages: `nimbus encryption shred --tenant-id {} --yes --from <repository>` \
                 removes them there.",
                self.tenant
            ));
        }
        said
    }

    fn worth_under(&self, key: &LivingKey) -> String {
        let LivingKey { provider, key_id } = key;
        let own = self.own_kms_key.as_ref();
        if own.is_some_and(|own| own.key_id == *key_id) {
            return format!(
                "Copies of its sidecar and data made before still open with its own KMS key {key_id}. To end that: \
                 `aws kms disable-key --key-id {key_id}`, and for good `aws kms schedule-key-deletion --key-id {key_id}`."
            );
        }
        match provider.as_str() {
            "age" => format!(
                "Copies of its sidecar and data made before still open with the identity of recovery recipient {key_id}."
            ),
            provider => format!(
                "Copies of its sidecar and data made before still open with {provider} key {key_id}. To end that: move all others to a \
                 new key (`nimbus encryption rotate-kek --path <data directory> --all --new-…`), then destroy this one."
            ),
        }
    }
}

/// A KMS key that wrapped for one tenant and for nobody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OwnKey {
    /// Its ARN.
    pub key_id: String,
    /// Whether it was disabled: copies are dead until it is enabled again, and for good once it is
    /// deleted.
    pub disabled: bool,
}

/// A key by which copies still open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LivingKey {
    /// The kind of provider.
    pub provider: String,
    /// Its id, or the recovery recipient.
    pub key_id: String,
}

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

/// Every manifest of a tenant that can be read: each names keys by which copies still open.
#[derive(Debug)]
pub struct Remains {
    in_use: Option<SealedManifest>,
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
/// What is said where there is no key to destroy.
pub const NO_KEYS: &str = "there is no key to destroy; delete the tenant with DELETE /api/tenants/{t}, and its copies in dumps, WAL and replicas with the database's own means";
