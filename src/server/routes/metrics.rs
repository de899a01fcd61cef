//! `/metrics`: what was counted, for Prometheus.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};

use crate::metrics;
use crate::runtime::log;
use crate::server::App;
use crate::server::error::{ApiError, Code};
use crate::sqlcipher::page_cache;

/// What was counted, in the text format of Prometheus
#[utoipa::path(get, path = "/metrics", operation_id = "metrics", tag = "operation",
    responses((status = 200, description = "The metrics that docs/metrics.md lists", body = String,
        content_type = "text/plain")))]
pub(in crate::server) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    metrics::IN_TROUBLE.set(app.troubled().len() as f64);
    metrics::LOG_LINES_DROPPED.absolute(log::dropped());
    page_cache::show_metrics();
    let text = metrics::render()
        .ok_or_else(|| ApiError::new(Code::Unavailable, "this process records no metrics"))?;
    let format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, format)], text).into_response())
}
