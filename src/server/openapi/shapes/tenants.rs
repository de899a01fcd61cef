//! The bodies of `/api/tenants`.

use utoipa::ToSchema;

pub(in crate::server) use crate::schemas::TenantId;

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Tenants {
    /// Sorted.
    tenants: Vec<TenantId>,
    /// What to ask for next with `after`, where there are more.
    #[schema(required)]
    next_cursor: Option<String>,
    has_more: bool,
}
