//! The answers of `/health` and `/ready`.

use std::collections::BTreeMap;

use utoipa::ToSchema;

use super::{ErrorCode, ErrorEnvelope};

/// Exactly `{"ok":true}`.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Healthy {
    ok: bool,
}

/// Whether everything that must work does.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Readiness {
    ready: bool,
    checks: Checks,
    /// How shipping to `--backup-to` stands; `null` where nothing is shipped. It does not make the server unready.
    #[schema(required)]
    backup: Option<Shipped>,
    /// Tenants that did not open when they were asked for last, and the code of the reason.
    tenants_in_trouble: BTreeMap<String, ErrorCode>,
    leases: Leases,
}

/// How shipping stands.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Shipped {
    /// Whether what is committed is shipped.
    ok: bool,
    /// The newest instant that can be restored.
    #[schema(required)]
    shipped: Option<String>,
    /// What is wrong.
    #[schema(required)]
    error: Option<String>,
}

/// What does not work, or, where the server is too busy to say, an error.
#[derive(ToSchema)]
#[serde(untagged)]
pub(in crate::server) enum Unready {
    Checked(Box<Readiness>),
    Refused(ErrorEnvelope),
}

#[derive(ToSchema)]
pub(in crate::server) struct Checks {
    control_file: Check,
    key_provider: Check,
    storage: Check,
    /// Long-lived threads and tasks of the server.
    background: Check,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Check {
    ok: bool,
    #[schema(nullable = false)]
    error: Option<String>,
    /// `off` where there is no key provider.
    #[schema(nullable = false)]
    encryption: Option<String>,
}

/// Files under keys that are asked for again and again, and the keys that do not answer, or answer no.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Leases {
    files: u64,
    keys_in_trouble: Vec<KeyInTrouble>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct KeyInTrouble {
    key_id: String,
    state: KeyTrouble,
    for_seconds: u64,
    open_files: u64,
    #[schema(required)]
    served_for_seconds: Option<u64>,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum KeyTrouble {
    Unavailable,
    Revoked,
}
