//! What is asked of a shredding, and what became of it.

use clap::Args;
use nimbus_manifests::TenantId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::backup::Location;
use crate::backup::shred::RepositoryShredded;
use crate::{as_text, schemas};

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
    /// Whether it was sealed in a database.
    #[serde(default)]
    #[schema(required)]
    pub in_database: bool,
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
    pub(super) fn nothing_of(tenant: &TenantId) -> Self {
        Self {
            tenant: tenant.to_string(),
            destroyed_keys: Vec::new(),
            alive: Vec::new(),
            own_kms_key: None,
            manifest_read: false,
            plaintext: false,
            was_here: false,
            in_database: false,
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
        if self.in_database {
            said.push(
                "Dumps, the log and replicas of the database have its wrapped key and its sealed rows until they go by the database's own means."
                    .to_owned(),
            );
        } else if nowhere && !self.alive.is_empty() {
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
