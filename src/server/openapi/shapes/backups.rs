//! The bodies of `/api/admin/backups`.

use utoipa::ToSchema;

use super::TenantId;

/// As the flags of `nimbus backup create`.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct NewBackup {
    /// A directory by its path from the root, or s3://bucket/prefix.
    to: String,
    tenant_id: Option<TenantId>,
}

/// A snapshot that was made.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct BackupCreated {
    snapshot: u64,
    repository: String,
    taken: String,
    tenants: u64,
    bytes: u64,
    added: u64,
    held_up_us: u64,
    missing: Vec<MissingTenant>,
}

/// A tenant that could not be read.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct MissingTenant {
    tenant: String,
    why: String,
}
