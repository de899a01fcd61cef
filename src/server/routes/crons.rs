//! `/api/tenants/{t}/crons`: recurring work.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{json_text, part_of};
use crate::documents::schedule::{Cron, CronName};
use crate::server::App;
use crate::server::body::{self, Body, FromBody, RawJson};
use crate::server::error::ApiError;
use crate::server::openapi::shapes;
use crate::server::parameters::{ListPart, Query};
use crate::server::tenant_path::Tenant;

impl FromBody for Cron {
    fn from_body(json: &[u8]) -> Result<Self, ApiError> {
        Ok(Self::from_json(body::text(json)?)?)
    }
}

/// Makes or replaces a cron
#[utoipa::path(post, path = "/api/tenants/{t}/crons", operation_id = "putCron", tag = "schedule",
    request_body = shapes::NewCron,
    responses(
        (status = 201, description = "The cron is stored durably", body = shapes::CronMade),
        (status = 409, description = "The cron is part of a deploy, or the tenant has as many crons as it may have",
            body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn put(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Body(cron): Body<Cron>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let store = app.open(&tenant).await?;
    let state = store.put_cron(cron, app.scheduler.now_ms()).await?;
    let answer = json!({"name": state.cron.name, "next_run_at": state.next_due_ms});
    Ok((StatusCode::CREATED, Json(answer)))
}

/// The crons of a tenant, by name
#[utoipa::path(get, path = "/api/tenants/{t}/crons", operation_id = "listCrons", tag = "schedule",
    params(shapes::CronPart),
    responses((status = 200, description = "The crons, sorted by name", body = shapes::Crons)))]
pub(in crate::server) async fn list(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Query(part): Query<ListPart<CronName>>,
) -> Result<RawJson, ApiError> {
    let store = app.open(&tenant).await?;
    let limit = part.size();
    let listed = store.list_crons(part.after, limit).await?;
    let next = listed.items.last().filter(|_| listed.more);
    let next = next.map(|last| last.cron.name.to_string());
    Ok(part_of("crons", &json_text(&listed.items)?, next))
}

/// Removes a cron
#[utoipa::path(delete, path = "/api/tenants/{t}/crons/{name}", operation_id = "deleteCron", tag = "schedule",
    responses(
        (status = 204, description = "The cron was removed"),
        (status = 409, description = "The cron is part of a deploy", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn delete(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Path((_tenant, name)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let name: CronName = name.parse()?;
    let store = app.open(&tenant).await?;
    store.delete_cron(name).await?;
    Ok(StatusCode::NO_CONTENT)
}
