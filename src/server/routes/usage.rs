//! `/debug/usage`: monthly active identities.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use serde::Deserialize;

use crate::control::{Month, UsageReport};
use crate::envelope::blocking;
use crate::server::App;
use crate::server::error::{ApiError, Code};
use crate::server::openapi::shapes;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Asked {
    month: Option<String>,
}

/// What was counted until now, of one month or of all.
#[utoipa::path(get, path = "/debug/usage", operation_id = "usage", tag = "operation",
    params(shapes::UsagePart),
    responses((status = 200, description = "Month by month, the newest first", body = shapes::Usage)))]
pub(in crate::server) async fn usage(
    State(app): State<Arc<App>>,
    query: Result<Query<Asked>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<UsageReport>, ApiError> {
    let wrong = || {
        let message = "\"month\" is written as 2026-11, and there are no other parameters";
        ApiError::new(Code::InvalidInput, message)
    };
    let Query(asked) = query.map_err(|_in_its_words| wrong())?;
    let month = asked.month.map(|month| month.parse::<Month>()).transpose();
    let month = month.map_err(|_in_its_words| wrong())?;
    let report = blocking(move || {
        app.usage.flush();
        let months = app.control.usage(month)?;
        let not_counted = app.usage.not_counted();
        Ok::<_, crate::control::ControlError>(UsageReport {
            months,
            not_counted,
        })
    });
    report
        .await
        .map(Json)
        .map_err(|error| ApiError::new(Code::Unavailable, error.to_string()))
}
