//! The bodies of `/api/admin/token`, of operations, and of `/debug/doctor`.

use utoipa::ToSchema;

use super::{BackupCreated, BackupsVerified, DekRotated, KekRotated, Shredded, TenantRestored};

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct TokenRotated {
    rotated: bool,
    rotations: u64,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Begun {
    /// What to ask after at `/api/admin/operations/{id}`.
    operation: String,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Operation {
    id: String,
    kind: OperationKind,
    state: OperationState,
    done: u64,
    total: u64,
    /// What came of it, once it is done.
    #[schema(required)]
    result: Option<OperationResult>,
    /// Why it failed.
    #[schema(required)]
    error: Option<String>,
}

#[derive(ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(in crate::server) enum OperationKind {
    RotateKek,
    RotateDek,
    Shred,
    Backup,
    Restore,
    VerifyBackups,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum OperationState {
    Running,
    Done,
    Failed,
}

/// By the operation's kind.
#[derive(ToSchema)]
#[serde(untagged)]
pub(in crate::server) enum OperationResult {
    RotateKek(KekRotated),
    RotateDek(DekRotated),
    Shred(Shredded),
    Backup(BackupCreated),
    Restore(TenantRestored),
    VerifyBackups(BackupsVerified),
}

/// As `nimbus doctor --format json`.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Examination {
    checks: Vec<Examined>,
    warnings: u64,
    problems: u64,
}

/// One thing that was looked at.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Examined {
    /// What it is about; the name stays the same.
    name: String,
    verdict: Verdict,
    found: String,
    /// What to do next.
    #[schema(nullable = false)]
    remedy: Option<String>,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum Verdict {
    Ok,
    Warning,
    Problem,
}
