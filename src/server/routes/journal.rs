//! `/api/tenants/{t}/journal`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::server::App;
use crate::server::error::ApiError;
use crate::server::openapi::shapes;
use crate::server::parameters::{ListPart, Query};
use crate::server::tenant_path::Tenant;

/// The ordered record of applied writes, after a number or from its beginning.
#[utoipa::path(get, path = "/api/tenants/{t}/journal", operation_id = "readJournal", tag = "documents",
    params(shapes::JournalPart),
    responses(
        (status = 200, description = "A part of the journal", body = shapes::JournalPage),
        (status = 410, description = "The journal no longer has the writes after that number", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn read(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Query(part): Query<ListPart<u64>>,
) -> Result<Json<Value>, ApiError> {
    let store = app.open(&tenant).await?;
    let page = store
        .journal(part.after, part.limit.unwrap_or(DEFAULT_LIMIT))
        .await?;
    Ok(Json(json!({
        "records": page.records,
        "next_cursor": page.next_cursor(),
        "latest_sequence": page.latest,
        "cursor_floor": page.floor,
        "has_more": page.has_more,
    })))
}

const DEFAULT_LIMIT: usize = 100;
