//! `/api/admin` and `/debug`: what an operator asks of a running server.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use clap::ValueEnum as _;
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use crate::audit::LogError;
use crate::encryption::doctor::{Diagnosis, Doctor};
use crate::encryption::rotate_kek::{self, RotateKekError};
use crate::encryption::shred::{self, ShredError, Shredding};
use crate::encryption::status::{EncryptionStatus, Verify};
use crate::encryption::{OperationError, rotate_dek};
use crate::envelope::EnvelopeError;
use crate::error_chain::error_chain;
use crate::runtime::blocking;
use crate::server::body::{Body, Plain};
use crate::server::error::{ApiError, Code};
use crate::server::openapi::shapes;
use crate::server::operations::{Begun, OperationReport};
use crate::server::parameters::{FromQuery, Given, ParameterError, Query};
use crate::server::{App, token};

/// Replaces the admin token file. The answer holds no token: who may read the file reads it there.
#[utoipa::path(post, path = "/api/admin/token/rotate", operation_id = "rotateAdminToken",
    tag = "operation",
    responses((status = 200, description = "The old token is revoked", body = TokenRotated)))]
pub(in crate::server) async fn rotate_token(
    State(app): State<Arc<App>>,
) -> Result<Json<TokenRotated>, ApiError> {
    let path = app.tokens.path().to_owned();
    let rotated = blocking(move || token::rotate(&path)).await;
    let token = rotated.map_err(|error| ApiError::new(Code::Unavailable, error.to_string()))?;
    tracing::info!(event = "token.rotated", "the admin token was rotated");
    Ok(Json(TokenRotated {
        rotated: true,
        rotations: token.rotations(),
    }))
}

#[derive(Serialize, ToSchema)]
pub(in crate::server) struct TokenRotated {
    rotated: bool,
    rotations: u64,
}

/// How closely files are looked at.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::server) struct StatusPart {
    /// `unwrap` by default, `none` where that would cost calls over the network.
    #[param(nullable = false)]
    verify: Option<Verify>,
}

impl FromQuery for StatusPart {
    fn from_query(given: &mut Given) -> Result<Self, ParameterError> {
        let verify = given.take("verify", "none, unwrap, open or pages", |text| {
            Verify::from_str(text, false).ok()
        })?;
        Ok(Self { verify })
    }
}

/// As `nimbus encryption status --format json`, from the server's own keys.
#[utoipa::path(get, path = "/debug/encryption/status", operation_id = "encryptionStatus",
    tag = "encryption", params(StatusPart),
    responses((status = 200, description = "Every protected file", body = EncryptionStatus)))]
pub(in crate::server) async fn encryption_status(
    State(app): State<Arc<App>>,
    Query(part): Query<StatusPart>,
) -> Result<Json<EncryptionStatus>, ApiError> {
    let status = app.status_reader.clone().run(part.verify).await;
    let mut status =
        status.map_err(|error| ApiError::new(Code::Unavailable, error_chain(&error)))?;
    if let Some(proofs) = &app.backups.proofs {
        for file in &mut status.files {
            file.restored = file.file_id.as_deref().and_then(|id| proofs.of(id));
        }
    }
    Ok(Json(status))
}

/// As `nimbus doctor --format json`, from the server's own process.
#[utoipa::path(get, path = "/debug/doctor", operation_id = "doctor", tag = "operation",
    responses((status = 200, description = "The result of each check", body = Diagnosis)))]
pub(in crate::server) async fn doctor(
    State(app): State<Arc<App>>,
) -> Result<Json<Diagnosis>, ApiError> {
    let audit = match &app.audit {
        Some(log) => log.verify().await,
        None => Err(LogError::EncryptionOff),
    };
    let doctor = Doctor {
        status_reader: app.status_reader.clone(),
        max_open_tenants: app.max_open_tenants,
        limits: app.limits,
        proofs: app.backups.proofs.as_ref().map(|proofs| proofs.standing()),
    };
    let found = doctor.run(audit).await;
    let found = found.map_err(|error| ApiError::new(Code::Unavailable, error_chain(&error)))?;
    Ok(Json(found))
}

/// Wraps data keys under another key, as `nimbus encryption rotate-kek`; the answer names the
/// operation.
#[utoipa::path(post, path = "/api/admin/encryption/rotate-kek", operation_id = "rotateKek",
    tag = "encryption", request_body = rotate_kek::Request,
    responses(
        (status = 202, description = "Begun", body = Begun),
        (status = 400, description = "The request is not valid: there is no path, or it does not exist", body = shapes::ErrorEnvelope),
        (status = 409, description = "Another operation is under way", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn rotate_kek(
    State(app): State<Arc<App>>,
    Body(request): Body<rotate_kek::Request>,
) -> Result<(StatusCode, Json<Begun>), ApiError> {
    let refused = |error: RotateKekError| ApiError::new(Code::InvalidInput, error_chain(&error));
    let rotate = request.check().map_err(refused)?;
    let (rotate, checked) = blocking(move || {
        let checked = rotate.check_path();
        (rotate, checked)
    })
    .await;
    checked.map_err(refused)?;
    let (envelope, control_dir) = (app.envelope.clone(), app.status_reader.control_dir.clone());
    let data_dir = app.status_reader.data_dir.clone();
    let database = app.status_reader.database.as_ref();
    let manifests = database.and_then(|database| database.rows.clone().ok());
    app.operations.begin("rotate-kek", |progress| async move {
        let ours = blocking({
            let dir = rotate.dir().to_owned();
            move || dir.canonicalize().ok() == data_dir.canonicalize().ok()
        })
        .await;
        let control_dir = ours.then_some(control_dir);
        let manifests = manifests.filter(|_| ours);
        rotate
            .run(&envelope, control_dir.as_deref(), manifests, progress)
            .await
    })
}

/// Gives files new data keys while they are used, as `nimbus encryption rotate-dek`; the answer
/// names the operation.
#[utoipa::path(post, path = "/api/admin/encryption/rotate-dek", operation_id = "rotateDek",
    tag = "encryption", request_body = rotate_dek::Request,
    responses(
        (status = 202, description = "Begun", body = Begun),
        (status = 400, description = "The request is not valid: there is no path, or it is outside this server's directories", body = shapes::ErrorEnvelope),
        (status = 409, description = "Another operation is under way", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn rotate_dek(
    State(app): State<Arc<App>>,
    Body(request): Body<rotate_dek::Request>,
) -> Result<(StatusCode, Json<Begun>), ApiError> {
    let deployment = app.dek_rotator();
    deployment.check(&request).await.map_err(refused)?;
    app.operations.begin("rotate-dek", |progress| async move {
        deployment.rotate_dek(request, progress).await
    })
}

/// What a request for an operation on a file is answered that cannot be done.
fn refused(error: OperationError) -> ApiError {
    let code = match &error {
        OperationError::Manifest { .. } => Code::StorageCorruption,
        OperationError::Envelope(EnvelopeError::ManifestMissing { .. }) => Code::ManifestMissing,
        OperationError::Envelope(_) | OperationError::Io { .. } => Code::Unavailable,
        _ => Code::InvalidInput,
    };
    ApiError::new(code, error_chain(&error))
}

/// The progress of an operation, and its result.
#[utoipa::path(get, path = "/api/admin/operations/{id}", operation_id = "operation", tag = "operation",
    responses((status = 200, description = "The progress of the operation, or its result", body = OperationReport)))]
pub(in crate::server) async fn operation(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<OperationReport>, ApiError> {
    let known = id.parse().ok().and_then(|id| app.operations.describe(id));
    known.map(Json).ok_or_else(|| {
        ApiError::new(
            Code::OperationNotFound,
            "no such operation is remembered; a restart forgets all of them",
        )
    })
}

impl Plain for rotate_kek::Request {}

impl Plain for rotate_dek::Request {}

impl Plain for shred::Request {}

/// Erases a tenant, as `nimbus encryption shred`; the answer names the operation.
#[utoipa::path(post, path = "/api/admin/encryption/shred", operation_id = "shred", tag = "encryption",
    request_body = shred::Request,
    responses(
        (status = 202, description = "Begun", body = Begun),
        (status = 404, description = "There is no such tenant", body = shapes::ErrorEnvelope),
        (status = 409, description = "Another operation is under way", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn shred(
    State(app): State<Arc<App>>,
    Body(request): Body<shred::Request>,
) -> Result<(StatusCode, Json<Begun>), ApiError> {
    let tenant = request.tenant_id;
    let (tenants, envelope) = (app.tenants.clone(), app.envelope.clone());
    let data_dir = app.status_reader.data_dir.clone();
    let disable_kms_key = request.disable_kms_key;
    let mut from = Vec::with_capacity(request.from.len());
    for given in request.from {
        from.push(super::backups::repository(&app, given).await?);
    }
    let (s3, ships_to) = (app.backups.s3.clone(), app.backups.to.clone());
    let database = app.status_reader.database.as_ref();
    let rows = database.and_then(|database| database.rows.clone().ok());
    let refused = |error: ShredError| match error {
        ShredError::Store(error) => ApiError::from(error),
        error => ApiError::new(Code::TenantNotFound, error.to_string()),
    };
    if let Some(rows) = rows.filter(|_| from.is_empty()) {
        shred::require_sealed(&rows, &tenant).await?;
        return app.operations.begin("shred", |_progress| async move {
            shred::shred_row(&envelope, &*tenants, &rows, &tenant, disable_kms_key).await
        });
    }
    let finished = match shred::is_there(&envelope, &*tenants, &data_dir, &tenant).await? {
        true => None,
        // It may be in the repositories.
        false if !from.is_empty() => None,
        false => Some(shred::finish(&*tenants, &tenant).await.map_err(refused)?),
    };
    app.operations.begin("shred", |_progress| async move {
        match finished {
            Some(finished) => Ok(finished),
            None => {
                let shredding = Shredding {
                    envelope: &envelope,
                    tenants: &*tenants,
                    dir: &data_dir,
                    disable_kms_key,
                    from: &from,
                    ships_to: ships_to.as_ref(),
                    s3: &s3,
                };
                shred::shred_everywhere(shredding, &tenant, None).await
            }
        }
    })
}
