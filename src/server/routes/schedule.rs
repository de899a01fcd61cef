//! `/api/tenants/{t}/schedule`: one-off jobs.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{json_text, named, part_of};
use crate::documents::Done;
use crate::documents::schedule::{Job, JobId, JobPlace, NewJob};
use crate::server::App;
use crate::server::body::{self, FromBody, RawJson};
use crate::server::error::ApiError;
use crate::server::once::{Answered, Keyed};
use crate::server::openapi::shapes;
use crate::server::parameters::{ListPart, Query};
use crate::server::tenant_path::Tenant;

impl FromBody for NewJob {
    fn from_body(json: &[u8]) -> Result<Self, ApiError> {
        Ok(Self::from_json(body::text(json)?)?)
    }
}

/// Schedules a mutation to be done once
#[utoipa::path(post, path = "/api/tenants/{t}/schedule", operation_id = "scheduleJob", tag = "schedule",
    request_body = shapes::NewJob,
    responses(
        (status = 201, description = "The job is stored durably", body = shapes::Scheduled),
        (status = 409, description = "There are as many as there may be", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn create(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Keyed {
        body: job, once, ..
    }: Keyed<NewJob>,
) -> Result<Answered<(StatusCode, Json<Value>)>, ApiError> {
    let store = app.open(&tenant).await?;
    let now = app.scheduler.now_ms();
    let Done { outcome, replayed } = store.schedule_once(job, now, once).await?;
    let answer = (StatusCode::CREATED, Json(json!({"job_id": outcome.id})));
    Ok(Answered { answer, replayed })
}

/// Waiting jobs, in the order in which they will run
#[utoipa::path(get, path = "/api/tenants/{t}/schedule", operation_id = "listJobs", tag = "schedule",
    params(shapes::CursorPart),
    responses((status = 200, description = "The waiting jobs, in the order in which they will run", body = shapes::Jobs)))]
pub(in crate::server) async fn list(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Query(part): Query<ListPart<String>>,
) -> Result<RawJson, ApiError> {
    let store = app.open(&tenant).await?;
    let cursors = store.cursors();
    let after = part.after.as_deref();
    let after = after.map(|cursor| cursors.open_job(cursor));
    let after = after.transpose()?;
    let listed = store.list_jobs(after, part.size()).await?;
    let next = |last: &Job| cursors.seal_job(JobPlace::of(last));
    let next = listed.items.last().filter(|_| listed.more).map(next);
    Ok(part_of(
        "jobs",
        &json_text(&listed.items)?,
        next.transpose()?,
    ))
}

/// Cancels a job that waits
#[utoipa::path(delete, path = "/api/tenants/{t}/schedule/{job}", operation_id = "cancelJob", tag = "schedule",
    responses(
        (status = 204, description = "The job was cancelled"),
        (status = 409, description = "The job has run already", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn cancel(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Path((_tenant, job)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let job: JobId = job.parse()?;
    let store = app.open(&tenant).await?;
    store.cancel_job(job).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The result of a job
#[utoipa::path(get, path = "/api/tenants/{t}/schedule/history/{job}", operation_id = "jobHistory",
    tag = "schedule",
    responses((status = 200, description = "The result of the job", body = shapes::JobResult)))]
pub(in crate::server) async fn history(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Path((_tenant, job)): Path<(String, String)>,
) -> Result<RawJson, ApiError> {
    let job: JobId = job.parse()?;
    let store = app.open(&tenant).await?;
    named("result", &store.job_history(job).await?)
}
