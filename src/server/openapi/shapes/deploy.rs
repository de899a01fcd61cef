//! The bodies of `/api/tenants/{t}/deploy`.

use utoipa::ToSchema;

use super::{NewCron, TableSchema};

/// A whole app: what is not in it is not there once it is active.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Deploy {
    #[schema(min_length = 1, max_length = 200)]
    name: String,
    schemas: Vec<TableSchema>,
    crons: Vec<NewCron>,
    files: Vec<DeployFile>,
    /// Only says what would change.
    #[schema(required = false)]
    dry_run: bool,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct DeployFile {
    path: String,
    #[schema(pattern = "^[0-9a-f]{64}$")]
    sha256: String,
    content_base64: String,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Deployed {
    #[schema(required)]
    generation: Option<i64>,
    #[schema(required)]
    previous_generation: Option<i64>,
    activated: bool,
    diff: Diff,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Diff {
    files: Changes,
    schemas: Changes,
    crons: Changes,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Changes {
    added: Names,
    changed: Names,
    removed: Names,
    unchanged: u64,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Names {
    count: u64,
    /// The first of them.
    names: Vec<String>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Generations {
    #[schema(required)]
    active: Option<i64>,
    generations: Vec<Generation>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Generation {
    generation: i64,
    name: String,
    created_at: i64,
    schemas: i64,
    crons: i64,
    files: i64,
    bytes: i64,
}
