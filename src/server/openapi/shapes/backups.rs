//! The bodies of `/api/admin/backups`.

use std::collections::BTreeMap;

use utoipa::{IntoParams, ToSchema};

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
    /// What is not right in the repository.
    findings: Vec<String>,
}

/// A tenant that could not be read.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct MissingTenant {
    tenant: String,
    why: String,
}

/// As the flags of `nimbus backup restore --tenant-id`.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct RestoreTenant {
    /// A directory by its path from the root, or s3://bucket/prefix; without it, that of --backup-to.
    from: Option<String>,
    tenant_id: TenantId,
    /// What it is called from then on; without it, as it was.
    r#as: Option<TenantId>,
    /// Without it, the newest that holds the tenant.
    snapshot: Option<u64>,
    /// An instant, as 2026-11-30T14:03:07Z, in the place of a snapshot.
    at: Option<String>,
    /// Restore it although it was shredded after the snapshot.
    #[schema(required = false)]
    as_it_was: bool,
    /// Answer what would be done.
    #[schema(required = false)]
    dry_run: bool,
}

/// A tenant that was restored.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct TenantRestored {
    repository: String,
    snapshot: u64,
    taken: String,
    /// How many packs lead from the snapshot to the instant.
    packs: u64,
    tenant: String,
    restored_as: String,
    file_id: String,
    bytes: u64,
    objects: u64,
    read_bytes: u64,
    later: Vec<String>,
    /// What is not right between the snapshot and the newest one.
    faults: Vec<String>,
}

/// As the flags of `nimbus backup verify`.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct VerifyBackups {
    /// A directory by its path from the root, or s3://bucket/prefix; without it, that of --backup-to.
    from: Option<String>,
    /// One snapshot alone.
    snapshot: Option<u64>,
    /// Restore it into a scratch directory, and open every tenant there.
    #[schema(required = false)]
    deep: bool,
}

/// What a look at a repository found.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct BackupsVerified {
    snapshots: Vec<u64>,
    objects: u64,
    bytes: u64,
    damage: Vec<String>,
    /// What could not be proven, because its key is not at hand.
    unproven: Vec<String>,
    findings: Vec<String>,
    shredded: Vec<String>,
    #[schema(required)]
    restored: Option<u64>,
    restored_packs: u64,
    packs: u64,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::server) struct Listing {
    /// A directory by its path from the root, or s3://bucket/prefix; without it, that of --backup-to.
    #[param(nullable = false)]
    from: Option<String>,
}

/// What a repository holds.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct BackupList {
    repository: String,
    snapshots: Vec<ListedSnapshot>,
    ranges: Vec<InstantRange>,
    /// By the tenant, when it was last restored and proven.
    proofs: BTreeMap<String, ProvenRestore>,
}

/// A snapshot, by its catalogue.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct ListedSnapshot {
    snapshot: u64,
    taken: String,
    #[schema(required)]
    tenant: Option<String>,
    tenants: u64,
    bytes: u64,
    added: u64,
    missing: Vec<String>,
    #[schema(required)]
    file_id: Option<String>,
}

/// Instants that follow each other: each of them can be restored.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct InstantRange {
    from: String,
    to: String,
    epoch: u64,
    snapshot: u64,
    packs: u64,
}

/// A tenant that was restored and proven.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct ProvenRestore {
    file_id: String,
    snapshot: u64,
    taken: String,
    at: String,
}
