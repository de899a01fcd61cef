//! `/api/admin/encryption/audit`: the key-event log of a running server.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::ToSchema;

use crate::audit::{AuditLog, Reported, Verified};
use crate::error_chain::error_chain;
use crate::server::App;
use crate::server::body::{Body, Plain};
use crate::server::caller::Caller;
use crate::server::error::{ApiError, Code};
use crate::server::openapi::shapes;

/// Proves the whole log.
#[utoipa::path(get, path = "/api/admin/encryption/audit", operation_id = "verifyAuditLog", tag = "encryption",
    responses(
        (status = 200, description = "The result of the verification", body = Verified),
        (status = 409, description = "Encryption is off", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn verify(
    State(app): State<Arc<App>>,
) -> Result<Json<Verified>, ApiError> {
    let verified = log(&app)?.verify().await;
    let verified =
        verified.map_err(|error| ApiError::new(Code::Unavailable, error_chain(&error)))?;
    Ok(Json(verified))
}

impl Plain for Reported {}

/// Records what a command beside the server does with keys, before it does it.
#[utoipa::path(post, path = "/api/admin/encryption/audit", operation_id = "recordKeyEvent", tag = "encryption",
    request_body = Reported,
    responses(
        (status = 200, description = "The event is in the log", body = Recorded),
        (status = 409, description = "Encryption is off", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn record(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Body(reported): Body<Reported>,
) -> Result<Json<Recorded>, ApiError> {
    let _log = log(&app)?;
    let event = reported.event(&caller.to_string()).ok_or_else(|| {
        ApiError::new(
            Code::InvalidInput,
            "a key event names a subject and ids of keys, and is short",
        )
    })?;
    let recorded = app.envelope.record(event).await;
    recorded.map_err(|error| ApiError::new(Code::Unavailable, error_chain(&error)))?;
    Ok(Json(Recorded { recorded: true }))
}

#[derive(Serialize, ToSchema)]
pub(in crate::server) struct Recorded {
    recorded: bool,
}

fn log(app: &App) -> Result<&AuditLog, ApiError> {
    app.audit.as_deref().ok_or_else(|| {
        ApiError::new(
            Code::Conflict,
            "encryption is off: there are no keys, and no log of them",
        )
    })
}
