//! `/api/admin/backups`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use crate::backup::create::Deployment;
use crate::backup::list::Listed;
use crate::backup::proofs::Proof;
use crate::backup::requests::{CreateBackup, RestoreRequest, VerifyRequest};
use crate::backup::restore::{Beside, RestoreTenant};
use crate::backup::timeline::Range;
use crate::backup::{BackupError, Location, Repository};
use crate::clock;
use crate::error_chain::error_chain;
use crate::runtime::blocking;
use crate::server::App;
use crate::server::body::{Body, Plain};
use crate::server::error::{ApiError, Code};
use crate::server::openapi::shapes;
use crate::server::operations::Begun;
use crate::server::parameters::{FromQuery, Given, ParameterError, Query};
use crate::tenants::StoreError;

impl Plain for CreateBackup {}

/// Makes a snapshot of everything, as `nimbus backup create`; the answer names the operation.
#[utoipa::path(post, path = "/api/admin/backups", operation_id = "createBackup", tag = "operation",
    request_body = CreateBackup,
    responses(
        (status = 202, description = "Begun", body = Begun),
        (status = 400, description = "A repository cannot be there, or encryption is off", body = shapes::ErrorEnvelope),
        (status = 404, description = "There is no such tenant", body = shapes::ErrorEnvelope),
        (status = 409, description = "Another operation is under way", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn create(
    State(app): State<Arc<App>>,
    Body(request): Body<CreateBackup>,
) -> Result<(StatusCode, Json<Begun>), ApiError> {
    let (to, what) = request.split();
    let to = repository(&app, to).await?;
    if let Some(tenant) = &what.only
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
    app.operations.begin("backup", |progress| async move {
        deployment.create(&to, &s3, what, progress).await
    })
}

impl Plain for RestoreRequest {}

/// Restores one tenant of a snapshot beside those that are there, as `nimbus backup restore
/// --tenant-id`; the answer names the operation.
#[utoipa::path(post, path = "/api/admin/backups/restore", operation_id = "restoreTenant", tag = "operation",
    request_body = RestoreRequest,
    responses(
        (status = 202, description = "Begun", body = Begun),
        (status = 400, description = "A repository cannot be there, or encryption is off", body = shapes::ErrorEnvelope),
        (status = 409, description = "Another operation is under way", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn restore(
    State(app): State<Arc<App>>,
    Body(request): Body<RestoreRequest>,
) -> Result<(StatusCode, Json<Begun>), ApiError> {
    let from = named_or_shipped_to(&app, request.from).await?;
    let restore = RestoreTenant {
        tenant: request.tenant_id,
        new_id: request.new_id,
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
    app.operations.begin("restore", |progress| async move {
        let repository = Repository::open(&from, &s3).await?;
        restore.run(&repository, &beside, progress).await
    })
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

impl Plain for VerifyRequest {}

/// Proves a repository, as `nimbus backup verify`; the answer names the operation.
#[utoipa::path(post, path = "/api/admin/backups/verify", operation_id = "verifyBackups", tag = "operation",
    request_body = VerifyRequest,
    responses(
        (status = 202, description = "Begun", body = Begun),
        (status = 400, description = "No repository is named or shipped to, or encryption is off", body = shapes::ErrorEnvelope),
        (status = 409, description = "Another operation is under way", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn verify(
    State(app): State<Arc<App>>,
    Body(request): Body<VerifyRequest>,
) -> Result<(StatusCode, Json<Begun>), ApiError> {
    let from = named_or_shipped_to(&app, request.from).await?;
    let (s3, envelope) = (app.backups.s3.clone(), app.envelope.clone());
    let provider = app.status_reader.provider.clone();
    let (snapshot, deep) = (request.snapshot, request.deep);
    app.operations
        .begin("verify-backups", |progress| async move {
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
        })
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::server) struct Listing {
    /// A directory by its path from the root, or s3://bucket/prefix; the repository of --backup-to
    /// by default.
    #[param(value_type = String, required = false, nullable = false)]
    from: Option<Location>,
}

impl FromQuery for Listing {
    fn from_query(given: &mut Given) -> Result<Self, ParameterError> {
        let rule = "a directory by its path from the root, or s3://bucket/prefix";
        let from = given.take("from", rule, |text| match text.parse().ok()? {
            Location::Dir(dir) if dir.is_relative() => None,
            location => Some(location),
        })?;
        Ok(Self { from })
    }
}

/// The snapshots of a repository, the times between them that can be restored, and what was proven,
/// as `nimbus backup list`.
#[utoipa::path(get, path = "/api/admin/backups", operation_id = "listBackups", tag = "operation",
    params(Listing),
    responses(
        (status = 200, description = "The contents of the repository; nothing is verified", body = BackupList),
        (status = 400, description = "No repository is named or shipped to, or encryption is off", body = shapes::ErrorEnvelope),
        (status = 503, description = "The repository cannot be read", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn list(
    State(app): State<Arc<App>>,
    Query(listing): Query<Listing>,
) -> Result<Json<BackupList>, ApiError> {
    let from = named_or_shipped_to(&app, listing.from).await?;
    let listed = async {
        let repository = Repository::open(&from, &app.backups.s3).await?;
        let (snapshots, damage) = repository.snapshots(None).await?;
        Ok::<_, BackupError>(BackupList {
            repository: repository.shown(),
            snapshots,
            damage,
            ranges: repository.ranges().await?,
            proofs: repository.proofs().await?.tenants,
        })
    };
    let listed = listed.await;
    let listed = listed.map_err(|error| ApiError::new(Code::Unavailable, error_chain(&error)))?;
    Ok(Json(listed))
}

/// What a repository holds.
#[derive(Serialize, ToSchema)]
pub(in crate::server) struct BackupList {
    repository: String,
    snapshots: Vec<Listed>,
    ranges: Vec<Range>,
    /// What stands among the snapshots and is none.
    damage: Vec<String>,
    /// Per tenant, when it was last restored and proven.
    proofs: BTreeMap<String, Proof>,
}

/// The repository that a request names; without one, that which is shipped to.
async fn named_or_shipped_to(app: &App, given: Option<Location>) -> Result<Location, ApiError> {
    let Some(given) = given.or_else(|| app.backups.to.clone()) else {
        return Err(ApiError::new(
            Code::InvalidInput,
            "no repository is named in from, and none is shipped to (--backup-to)",
        ));
    };
    repository(app, given).await
}

/// The repository that a request names, where one may be.
pub(super) async fn repository(app: &App, location: Location) -> Result<Location, ApiError> {
    let refused = |error: BackupError| ApiError::new(Code::InvalidInput, error_chain(&error));
    if matches!(&location, Location::Dir(dir) if dir.is_relative()) {
        let given = location.to_string();
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
