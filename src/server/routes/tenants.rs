//! `/api/tenants`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::tenant_id;
use crate::server::App;
use crate::server::body::Body;
use crate::server::error::ApiError;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct NewTenant {
    id: String,
}

pub(in crate::server) async fn create(
    State(app): State<Arc<App>>,
    Body(new): Body<NewTenant>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let tenant = tenant_id(&new.id)?;
    app.finish(async move |app| app.tenants.create_tenant(&tenant).await)
        .await?;
    Ok((StatusCode::CREATED, Json(json!({"id": new.id}))))
}

pub(in crate::server) async fn list(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let tenants = app.tenants.list_tenants().await?;
    let ids: Vec<&str> = tenants.iter().map(|tenant| tenant.as_str()).collect();
    Ok(Json(json!({"tenants": ids})))
}

pub(in crate::server) async fn delete(
    State(app): State<Arc<App>>,
    Path(tenant): Path<String>,
) -> Result<StatusCode, ApiError> {
    let tenant = tenant_id(&tenant)?;
    app.finish(async move |app| {
        app.tenants.delete_tenant(&tenant).await?;
        app.untroubled(&tenant);
        Ok(())
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}
