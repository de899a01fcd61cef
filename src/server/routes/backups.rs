//! `/api/admin/backups`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::tenant_id;
use crate::backup::create::Deployment;
use crate::backup::{BackupError, Location};
use crate::envelope::blocking;
use crate::error_chain::error_chain;
use crate::server::App;
use crate::server::body::{Body, Plain};
use crate::server::error::{ApiError, Code};
use crate::server::openapi::shapes;
use crate::tenants::StoreError;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct NewBackup {
    to: String,
    #[serde(default)]
    tenant_id: Option<String>,
}

impl Plain for NewBackup {}

/// Makes a snapshot of everything, as `nimbus backup create`; the answer names the operation.
#[utoipa::path(post, path = "/api/admin/backups", operation_id = "createBackup", tag = "operation",
    request_body = shapes::NewBackup,
    responses(
        (status = 202, description = "Begun", body = shapes::Begun),
        (status = 400, description = "A repository cannot be there, or encryption is off", body = shapes::ErrorEnvelope),
        (status = 404, description = "There is no such tenant", body = shapes::ErrorEnvelope),
        (status = 409, description = "Another operation is under way", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn create(
    State(app): State<Arc<App>>,
    Body(request): Body<NewBackup>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let refused = |error: BackupError| ApiError::new(Code::InvalidInput, error_chain(&error));
    let to: Location = request.to.parse().map_err(refused)?;
    if matches!(&to, Location::Dir(dir) if dir.is_relative()) {
        return Err(refused(BackupError::Location {
            given: request.to,
            why: "a server takes a directory by its path from the root",
        }));
    }
    if app.envelope.keys().is_none() {
        return Err(refused(BackupError::Plaintext));
    }
    let (places, place) = (app.backups.places.clone(), to.clone());
    blocking(move || place.check_place(&places))
        .await
        .map_err(refused)?;
    let only = request.tenant_id.as_deref().map(tenant_id).transpose()?;
    if let Some(tenant) = &only
        && !app.tenants.list_tenants().await?.contains(tenant)
    {
        let tenant = tenant.clone();
        return Err(StoreError::TenantNotFound { tenant }.into());
    }
    let s3 = app.backups.s3.clone();
    let deployment = Deployment {
        envelope: app.envelope.clone(),
        control: Arc::clone(&app.control),
        tenants: Arc::clone(&app.tenants),
        turn: Arc::clone(&app.backups.turn),
    };
    let id = app.operations.begin("backup", |progress| async move {
        let created = deployment.create(&to, &s3, only, progress).await;
        let created = created.map_err(|error| error_chain(&error))?;
        serde_json::to_value(created).map_err(|error| error.to_string())
    })?;
    Ok((StatusCode::ACCEPTED, Json(json!({"operation": id}))))
}
