//! The bodies of `/api/admin/encryption/audit`.

use utoipa::ToSchema;

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct AuditVerified {
    lines: u64,
    sealed: u64,
    head: u64,
    base: u64,
    /// How many faults there are.
    faults: u64,
    /// The first twenty of them.
    problems: Vec<AuditProblem>,
    #[schema(nullable = false)]
    rolled_back: Option<String>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct AuditProblem {
    file: String,
    line: u64,
    problem: String,
}

/// What a command beside the server does with keys.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct KeyEvent {
    event: KeyEventKind,
    outcome: KeyEventOutcome,
    subject: Option<String>,
    deks: Vec<String>,
    keys: Vec<String>,
    actor: String,
    detail: Option<String>,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum KeyEventKind {
    Export,
    Migrate,
    Rewrap,
    Backup,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum KeyEventOutcome {
    Begun,
    Done,
    Failed,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Recorded {
    recorded: bool,
}
