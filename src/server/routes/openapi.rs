//! `/openapi.json`: the routes, for programs.

use crate::server::body::RawJson;
use crate::server::openapi;

/// This document
#[utoipa::path(get, path = "/openapi.json", operation_id = "openapi", tag = "operation",
    responses((status = 200, description = "OpenAPI 3.1", body = openapi::shapes::AnyObject)))]
pub(in crate::server) async fn document() -> RawJson {
    RawJson(openapi::document().to_owned())
}
