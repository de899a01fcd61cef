//! `/openapi.json`: the routes, for programs.

use std::sync::Arc;

use axum::extract::State;

use crate::server::App;
use crate::server::body::RawJson;
use crate::server::openapi::shapes;

/// This document
#[utoipa::path(get, path = "/openapi.json", operation_id = "openapi", tag = "operation",
    responses((status = 200, description = "OpenAPI 3.1", body = shapes::AnyObject)))]
pub(in crate::server) async fn document(State(app): State<Arc<App>>) -> RawJson {
    RawJson((app.document)().to_owned())
}
