//! The bodies of `/api/admin/encryption/lock` and `unlock`.

use utoipa::ToSchema;

use super::TenantId;

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct LockedTenant {
    tenant_id: TenantId,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct TenantLock {
    tenant_id: TenantId,
    locked: bool,
    changed: bool,
}
