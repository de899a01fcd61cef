//! `/api/tenants`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use nimbus_manifests::TenantId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{json_text, part_of};
use crate::server::App;
use crate::server::body::{Body, Plain, RawJson};
use crate::server::error::ApiError;
use crate::server::openapi::shapes;
use crate::server::parameters::{ListPart, Query};
use crate::server::tenant_path::Tenant;
use crate::{as_text, schemas};

#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct NewTenant {
    #[serde(with = "as_text")]
    #[schema(value_type = schemas::TenantId)]
    id: TenantId,
}

impl Plain for NewTenant {}

/// Creates a tenant
#[utoipa::path(post, path = "/api/tenants", operation_id = "createTenant", tag = "tenants",
    request_body = NewTenant,
    responses(
        (status = 201, description = "Created, durably", body = NewTenant),
        (status = 409, description = "A tenant of this name exists", body = shapes::ErrorEnvelope),
        (status = 507, description = "The disk is nearly full", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn create(
    State(app): State<Arc<App>>,
    Body(new): Body<NewTenant>,
) -> Result<(StatusCode, Json<NewTenant>), ApiError> {
    let tenant = new.id.clone();
    app.finish(async move |app| app.tenants.create_tenant(&tenant).await)
        .await?;
    Ok((StatusCode::CREATED, Json(new)))
}

/// All tenants, or some of them
#[utoipa::path(get, path = "/api/tenants", operation_id = "listTenants", tag = "tenants",
    params(shapes::TenantPart),
    responses((status = 200, description = "Their ids, sorted", body = shapes::Tenants)))]
pub(in crate::server) async fn list(
    State(app): State<Arc<App>>,
    Query(part): Query<ListPart<TenantId>>,
) -> Result<RawJson, ApiError> {
    let tenants = app.tenants.list_tenants().await?;
    let first = part.after.map_or(0, |after| {
        tenants.partition_point(|tenant| *tenant <= after)
    });
    let rest = &tenants[first..];
    let listed = &rest[..rest.len().min(part.limit.unwrap_or(usize::MAX))];
    let ids: Vec<&str> = listed.iter().map(|tenant| tenant.as_str()).collect();
    let next = ids.last().filter(|_| listed.len() < rest.len());
    let next = next.map(|&last| last.to_owned());
    Ok(part_of("tenants", &json_text(&ids)?, next))
}

/// Deletes a tenant with all that belongs to it
#[utoipa::path(delete, path = "/api/tenants/{t}", operation_id = "deleteTenant", tag = "tenants",
    responses((status = 204, description = "The tenant was deleted")))]
pub(in crate::server) async fn delete(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
) -> Result<StatusCode, ApiError> {
    app.finish(async move |app| {
        app.tenants.delete_tenant(&tenant).await?;
        app.untroubled(&tenant);
        Ok(())
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}
