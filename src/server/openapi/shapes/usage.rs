//! What `/debug/usage` takes and answers.

use utoipa::ToSchema;

use super::TenantId;

/// Which month.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::server) struct UsagePart {
    /// `2026-11`; all of them without it.
    #[param(pattern = "^[0-9]{4}-(0[1-9]|1[0-2])$", nullable = false)]
    month: Option<String>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Usage {
    months: Vec<MonthUsage>,
    not_counted: u64,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct MonthUsage {
    month: String,
    identities: u64,
    deleted_tenants: u64,
    capped: bool,
    tenants: Vec<TenantUsage>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct TenantUsage {
    tenant: TenantId,
    identities: u64,
    capped: bool,
}
