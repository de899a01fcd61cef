//! The bodies of `/api/tenants`.

use utoipa::ToSchema;

use super::{shape, text};

shape! {
    /// The id of a tenant.
    TenantId = text("^[a-z0-9][a-z0-9_-]{0,47}$", "The id of a tenant");
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct NewTenant {
    id: TenantId,
}

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
