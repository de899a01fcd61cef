//! `/api/admin` and `/debug`: what an operator asks of a running server.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::chain::chain;
use crate::encryption::survey::{Survey, Verify};
use crate::envelope::blocking;
use crate::server::error::{ApiError, Code};
use crate::server::{App, token};

/// Replaces the admin token file. The answer holds no token: who may read the file reads it there.
pub(in crate::server) async fn rotate_token(
    State(app): State<Arc<App>>,
) -> Result<Json<Value>, ApiError> {
    let path = app.tokens.path().to_owned();
    let rotated = blocking(move || token::rotate(&path)).await;
    let token = rotated.map_err(|error| ApiError::new(Code::Unavailable, error.to_string()))?;
    tracing::info!(event = "token.rotated", "the admin token was rotated");
    Ok(Json(
        json!({"rotated": true, "rotations": token.rotations()}),
    ))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct StatusQuery {
    verify: Option<Verify>,
}

/// As `nimbus encryption status --format json`, from the server's own keys.
pub(in crate::server) async fn encryption_status(
    State(app): State<Arc<App>>,
    Query(query): Query<StatusQuery>,
) -> Result<Json<Survey>, ApiError> {
    let survey = app.surveyor.clone().run(query.verify).await;
    let survey = survey.map_err(|error| ApiError::new(Code::Unavailable, chain(&error)))?;
    Ok(Json(survey))
}
