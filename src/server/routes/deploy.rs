//! `/api/tenants/{t}/deploy`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;

use crate::documents::deploy::{Deploy, Deployed, Generations};
use crate::server::App;
use crate::server::body::{self, Body, FromBody};
use crate::server::error::{ApiError, Code};
use crate::server::openapi::shapes;
use crate::server::tenant_path::Tenant;

impl FromBody for Deploy {
    // It may have JSON Schemas, which take a while to compile.
    const SLOW: bool = true;

    fn from_body(json: &[u8]) -> Result<Self, ApiError> {
        Self::from_body_while(json, &|| true)
    }

    fn from_body_while(json: &[u8], awaited: &dyn Fn() -> bool) -> Result<Self, ApiError> {
        Ok(Self::from_json_while(body::text(json)?, awaited)?)
    }
}

/// Stores and activates a deploy; a dry run only answers what it would do.
#[utoipa::path(post, path = "/api/tenants/{t}/deploy", operation_id = "deploy", tag = "deploys",
    request_body = shapes::Deploy,
    responses(
        (status = 200, description = "What a dry run would do", body = shapes::Deployed),
        (status = 201, description = "Stored and activated", body = shapes::Deployed),
        (status = 409, description = "Documents violate a schema of the deploy", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn deploy(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Body(deploy): Body<Deploy>,
) -> Result<(StatusCode, Json<Deployed>), ApiError> {
    let status = if deploy.dry_run {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    };
    let store = app.open(&tenant).await?;
    Ok((status, Json(store.deploy(deploy).await?)))
}

/// The generations that are kept, and which is active.
#[utoipa::path(get, path = "/api/tenants/{t}/deploy", operation_id = "listGenerations", tag = "deploys",
    responses((status = 200, description = "The generations", body = shapes::Generations)))]
pub(in crate::server) async fn list(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
) -> Result<Json<Generations>, ApiError> {
    let store = app.open(&tenant).await?;
    Ok(Json(store.generations().await?))
}

/// Activates a generation that is kept.
#[utoipa::path(post, path = "/api/tenants/{t}/deploy/{generation}/activate", operation_id = "activateGeneration",
    tag = "deploys",
    responses(
        (status = 200, description = "Activated", body = shapes::Deployed),
        (status = 409, description = "Documents violate a schema of the deploy", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn activate(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Path((_tenant, generation)): Path<(String, String)>,
) -> Result<Json<Deployed>, ApiError> {
    let number = generation
        .parse()
        .ok()
        .filter(|number: &i64| *number > 0 && number.to_string() == generation);
    let number = number.ok_or_else(|| {
        let message = "a generation is a number, as GET …/deploy lists them";
        ApiError::new(Code::InvalidInput, message)
    })?;
    let store = app.open(&tenant).await?;
    Ok(Json(store.activate(number).await?))
}
