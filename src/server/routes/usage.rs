//! `/debug/usage`: monthly active identities.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use utoipa::IntoParams;

use crate::control::{Month, UsageReport};
use crate::runtime::blocking;
use crate::server::App;
use crate::server::error::{ApiError, Code};
use crate::server::parameters::{FromQuery, Given, ParameterError, Query};

/// Which month.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::server) struct UsagePart {
    /// `2026-11`; all months by default.
    #[param(value_type = String, required = false, pattern = "^[0-9]{4}-(0[1-9]|1[0-2])$", nullable = false)]
    month: Option<Month>,
}

impl FromQuery for UsagePart {
    fn from_query(given: &mut Given) -> Result<Self, ParameterError> {
        let month = given.take("month", "written as 2026-11", |text| text.parse().ok())?;
        Ok(Self { month })
    }
}

/// The usage counts of one month, or of all months.
#[utoipa::path(get, path = "/debug/usage", operation_id = "usage", tag = "operation",
    params(UsagePart),
    responses((status = 200, description = "Usage per month, newest first", body = UsageReport)))]
pub(in crate::server) async fn usage(
    State(app): State<Arc<App>>,
    Query(part): Query<UsagePart>,
) -> Result<Json<UsageReport>, ApiError> {
    let report = blocking(move || {
        app.usage.flush();
        let months = app.control.usage(part.month)?;
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
