//! What a server is asked about backups; the command line shares what it can.

use clap::Args;
use nimbus_manifests::TenantId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Location;
use super::create::What;
use crate::{as_text, schemas};

/// Make a snapshot of everything at one instant: all tenants, the control file and the audit log
#[derive(Debug, Clone, Args, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewBackup, description = "The flags of `nimbus backup create`")]
pub struct CreateBackup {
    /// A directory by its path from the root, or s3://bucket/prefix.
    #[arg(long, value_name = "R", value_parser = Location::from_flag, help = "The repository")]
    #[serde(with = "as_text")]
    #[schema(value_type = String)]
    pub to: Location,

    /// Save one tenant alone, with the control file and the audit log
    #[arg(long, value_name = "TENANT")]
    #[serde(default, with = "as_text::option")]
    #[schema(value_type = Option<schemas::TenantId>)]
    pub tenant_id: Option<TenantId>,

    /// Go on in the place of the deployment that this one was restored from
    #[arg(long)]
    #[serde(default)]
    #[schema(required = false)]
    pub take_over: bool,

    /// Read and hash every page, also of files that did not change
    #[arg(long)]
    #[serde(default)]
    #[schema(required = false)]
    pub read_all: bool,
}

impl CreateBackup {
    /// Where to, and what.
    #[must_use]
    pub fn split(self) -> (Location, What) {
        let what = What {
            only: self.tenant_id,
            take_over: self.take_over,
            read_all: self.read_all,
        };
        (self.to, what)
    }
}

/// Which tenant to restore beside those that are there.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RestoreTenant, description = "The flags of `nimbus backup restore --tenant-id`")]
pub struct RestoreRequest {
    /// A directory by its path from the root, or s3://bucket/prefix; the repository of --backup-to
    /// by default.
    #[serde(default, with = "as_text::option")]
    #[schema(value_type = Option<String>)]
    pub from: Option<Location>,
    /// The tenant in the snapshot.
    #[serde(with = "as_text")]
    #[schema(value_type = schemas::TenantId)]
    pub tenant_id: TenantId,
    /// Its new id; unchanged by default.
    #[serde(default, rename = "as", with = "as_text::option")]
    #[schema(value_type = Option<schemas::TenantId>)]
    pub new_id: Option<TenantId>,
    /// The snapshot; by default the newest that holds the tenant.
    #[serde(default)]
    pub snapshot: Option<u64>,
    /// An instant, as 2026-11-30T14:03:07Z, instead of a snapshot.
    #[serde(default)]
    pub at: Option<String>,
    /// Restore it even if it was shredded after the snapshot.
    #[serde(default)]
    #[schema(required = false)]
    pub as_it_was: bool,
    /// Only answer what would be done.
    #[serde(default)]
    #[schema(required = false)]
    pub dry_run: bool,
}

/// What to verify.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = VerifyBackups, description = "The flags of `nimbus backup verify`")]
pub struct VerifyRequest {
    /// A directory by its path from the root, or s3://bucket/prefix; the repository of --backup-to
    /// by default.
    #[serde(default, with = "as_text::option")]
    #[schema(value_type = Option<String>)]
    pub from: Option<Location>,
    /// Only this snapshot.
    #[serde(default)]
    pub snapshot: Option<u64>,
    /// Restore it into a scratch directory, and open every tenant there.
    #[serde(default)]
    #[schema(required = false)]
    pub deep: bool,
}
