//! `/api/admin/backups`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::tenant_id;
use crate::backup::create::Deployment;
use crate::backup::restore::{Beside, RestoreTenant};
use crate::backup::{BackupError, Location, Repository};
use crate::clock;
use crate::error_chain::error_chain;
use crate::runtime::blocking;
use crate::server::App;
use crate::server::body::{Body, Plain};
use crate::server::error::{ApiError, Code};
use crate::server::openapi::shapes;
use crate::server::parameters::{FromQuery, Given, ParameterError, Query};
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
    let to = repository(&app, request.to).await?;
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct RestoreRequest {
    #[serde(default)]
    from: Option<String>,
    tenant_id: String,
    #[serde(default, rename = "as")]
    new_id: Option<String>,
    #[serde(default)]
    snapshot: Option<u64>,
    #[serde(default)]
    at: Option<String>,
    #[serde(default)]
    as_it_was: bool,
    #[serde(default)]
    dry_run: bool,
}

impl Plain for RestoreRequest {}

/// Restores one tenant of a snapshot beside those that are there, as `nimbus backup restore --tenant-id`; the answer names the operation.
#[utoipa::path(post, path = "/api/admin/backups/restore", operation_id = "restoreTenant", tag = "operation",
    request_body = shapes::RestoreTenant,
    responses(
        (status = 202, description = "Begun", body = shapes::Begun),
        (status = 400, description = "A repository cannot be there, or encryption is off", body = shapes::ErrorEnvelope),
        (status = 409, description = "Another operation is under way", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn restore(
    State(app): State<Arc<App>>,
    Body(request): Body<RestoreRequest>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let from = named_or_shipped_to(&app, request.from).await?;
    let restore = RestoreTenant {
        tenant: tenant_id(&request.tenant_id)?,
        new_id: request.new_id.as_deref().map(tenant_id).transpose()?,
        snapshot: request.snapshot,
        at_ms: request.at.as_deref().map(instant).transpose()?,
        as_it_was: request.as_it_was,
        dry_run: request.dry_run,
    };
    let s3 = app.backups.s3.clone();
    let beside = Beside {
        envelope: app.envelope.clone(),
        tenants: Arc::clone(&app.tenants),
        data_dir: app.status_reader.data_dir.clone(),
        control_dir: app.status_reader.control_dir.clone(),
    };
    let id = app.operations.begin("restore", |progress| async move {
        let restored = async {
            let repository = Repository::open(&from, &s3).await?;
            restore.run(&repository, &beside, progress).await
        };
        let restored = restored.await.map_err(|error| error_chain(&error))?;
        serde_json::to_value(restored).map_err(|error| error.to_string())
    })?;
    Ok((StatusCode::ACCEPTED, Json(json!({"operation": id}))))
}

fn instant(text: &str) -> Result<i64, ApiError> {
    let wrong = || {
        ApiError::new(
            Code::InvalidInput,
            "at is an instant as 2026-11-30T14:03:07Z",
        )
    };
    clock::ms_of(text).ok_or_else(wrong)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct VerifyRequest {
    #[serde(default)]
    from: Option<String>,
    #[serde(default)]
    snapshot: Option<u64>,
    #[serde(default)]
    deep: bool,
}

impl Plain for VerifyRequest {}

/// Proves a repository, as `nimbus backup verify`; the answer names the operation.
#[utoipa::path(post, path = "/api/admin/backups/verify", operation_id = "verifyBackups", tag = "operation",
    request_body = shapes::VerifyBackups,
    responses(
        (status = 202, description = "Begun", body = shapes::Begun),
        (status = 400, description = "No repository is named or shipped to, or encryption is off", body = shapes::ErrorEnvelope),
        (status = 409, description = "Another operation is under way", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn verify(
    State(app): State<Arc<App>>,
    Body(request): Body<VerifyRequest>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let from = named_or_shipped_to(&app, request.from).await?;
    let (s3, envelope) = (app.backups.s3.clone(), app.envelope.clone());
    let provider = app.status_reader.provider.clone();
    let (snapshot, deep) = (request.snapshot, request.deep);
    let id = app
        .operations
        .begin("verify-backups", |progress| async move {
            let verified = async {
                let repository = Repository::open(&from, &s3).await?;
                let mut found = repository
                    .verify(&envelope, snapshot, Arc::clone(&progress))
                    .await?;
                if deep {
                    let rehearsed = repository
                        .rehearse(&envelope, snapshot, &provider, &mut found, progress)
                        .await;
                    if let Err(error) = rehearsed {
                        found
                            .damage
                            .push(format!("it was not restored: {}", error_chain(&error)));
                    }
                }
                Ok::<_, BackupError>(found)
            };
            let verified = verified.await.map_err(|error| error_chain(&error))?;
            serde_json::to_value(verified).map_err(|error| error.to_string())
        })?;
    Ok((StatusCode::ACCEPTED, Json(json!({"operation": id}))))
}

pub(in crate::server) struct Listing {
    from: Option<String>,
}

impl FromQuery for Listing {
    fn from_query(given: &mut Given) -> Result<Self, ParameterError> {
        let rule = "a directory by its path from the root, or s3://bucket/prefix";
        let from = given.take("from", rule, |text| match text.parse().ok()? {
            Location::Dir(dir) if dir.is_relative() => None,
            _ => Some(text.to_owned()),
        })?;
        Ok(Self { from })
    }
}

/// The snapshots of a repository, the times between them that can be restored, and what was proven, as `nimbus backup list`.
#[utoipa::path(get, path = "/api/admin/backups", operation_id = "listBackups", tag = "operation",
    params(shapes::Listing),
    responses(
        (status = 200, description = "What there is; nothing of it is proven", body = shapes::BackupList),
        (status = 400, description = "No repository is named or shipped to, or encryption is off", body = shapes::ErrorEnvelope),
        (status = 503, description = "The repository cannot be read", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn list(
    State(app): State<Arc<App>>,
    Query(listing): Query<Listing>,
) -> Result<Json<Value>, ApiError> {
    let from = named_or_shipped_to(&app, listing.from).await?;
    let listed = async {
        let repository = Repository::open(&from, &app.backups.s3).await?;
        Ok::<_, BackupError>(json!({
            "repository": repository.shown(),
            "snapshots": repository.snapshots(None).await?,
            "ranges": repository.ranges().await?,
            "proofs": repository.proofs().await?.tenants,
        }))
    };
    let listed = listed.await;
    let listed = listed.map_err(|error| ApiError::new(Code::Unavailable, error_chain(&error)))?;
    Ok(Json(listed))
}

/// The repository that a request names; without one, that which is shipped to.
async fn named_or_shipped_to(app: &App, given: Option<String>) -> Result<Location, ApiError> {
    let shipped_to = || app.backups.to.as_ref().map(ToString::to_string);
    let Some(given) = given.or_else(shipped_to) else {
        return Err(ApiError::new(
            Code::InvalidInput,
            "no repository is named in from, and none is shipped to (--backup-to)",
        ));
    };
    repository(app, given).await
}

/// The repository that a request names, where one may be.
pub(super) async fn repository(app: &App, given: String) -> Result<Location, ApiError> {
    let refused = |error: BackupError| ApiError::new(Code::InvalidInput, error_chain(&error));
    let location: Location = given.parse().map_err(refused)?;
    if matches!(&location, Location::Dir(dir) if dir.is_relative()) {
        let why = "a server takes a directory by its path from the root";
        return Err(refused(BackupError::Location { given, why }));
    }
    if app.envelope.keys().is_none() {
        return Err(refused(BackupError::Plaintext));
    }
    let (places, place) = (app.backups.places.clone(), location.clone());
    blocking(move || place.check_place(&places))
        .await
        .map_err(refused)?;
    Ok(location)
}
