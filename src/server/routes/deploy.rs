//! `/api/tenants/{t}/deploy`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::value::RawValue;

use super::tenant_id;
use crate::documents::deploy::{Deploy, Deployed, Generations};
use crate::envelope::blocking;
use crate::server::App;
use crate::server::body::Body;
use crate::server::error::{ApiError, Code};

/// Stores and activates a deploy; only says what it would do when it is a dry run.
pub(in crate::server) async fn deploy(
    State(app): State<Arc<App>>,
    Path(tenant): Path<String>,
    Body(body): Body<Box<RawValue>>,
) -> Result<(StatusCode, Json<Deployed>), ApiError> {
    let tenant = tenant_id(&tenant)?;
    // Decoding and hashing some megabytes is not for the threads that serve everybody.
    let deploy = blocking(move || Deploy::from_json(body.get())).await?;
    let status = if deploy.dry_run {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    };
    let store = app.open(&tenant).await?;
    Ok((status, Json(store.deploy(deploy).await?)))
}

/// The generations that are kept, and which is active.
pub(in crate::server) async fn list(
    State(app): State<Arc<App>>,
    Path(tenant): Path<String>,
) -> Result<Json<Generations>, ApiError> {
    let store = app.open(&tenant_id(&tenant)?).await?;
    Ok(Json(store.generations().await?))
}

/// Activates a generation that is kept.
pub(in crate::server) async fn activate(
    State(app): State<Arc<App>>,
    Path((tenant, generation)): Path<(String, String)>,
) -> Result<Json<Deployed>, ApiError> {
    let number = generation
        .parse()
        .ok()
        .filter(|number: &i64| *number > 0 && number.to_string() == generation);
    let number = number.ok_or_else(|| {
        let message = "a generation is a number, as GET …/deploy lists them";
        ApiError::new(Code::InvalidInput, message)
    })?;
    let store = app.open(&tenant_id(&tenant)?).await?;
    Ok(Json(store.activate(number).await?))
}
