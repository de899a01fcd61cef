//! `/api/tenants/{t}/schedule`: jobs, each of which is done once.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{named, tenant_id};
use crate::documents::schedule::{JobId, NewJob};
use crate::server::App;
use crate::server::body::{Body, RawJson};
use crate::server::error::ApiError;

pub(in crate::server) async fn create(
    State(app): State<Arc<App>>,
    Path(tenant): Path<String>,
    Body(body): Body<Box<RawValue>>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let job = NewJob::from_json(body.get())?;
    let store = app.open(&tenant_id(&tenant)?).await?;
    let job = store.schedule(job, app.scheduler.now_ms()).await?;
    Ok((StatusCode::CREATED, Json(json!({"job_id": job.id}))))
}

pub(in crate::server) async fn list(
    State(app): State<Arc<App>>,
    Path(tenant): Path<String>,
) -> Result<RawJson, ApiError> {
    let store = app.open(&tenant_id(&tenant)?).await?;
    named("jobs", &store.jobs().await?)
}

pub(in crate::server) async fn cancel(
    State(app): State<Arc<App>>,
    Path((tenant, job)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let job: JobId = job.parse()?;
    let store = app.open(&tenant_id(&tenant)?).await?;
    store.cancel_job(job).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(in crate::server) async fn history(
    State(app): State<Arc<App>>,
    Path((tenant, job)): Path<(String, String)>,
) -> Result<RawJson, ApiError> {
    let job: JobId = job.parse()?;
    let store = app.open(&tenant_id(&tenant)?).await?;
    named("result", &store.job_history(job).await?)
}
