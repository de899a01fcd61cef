//! `/api/tenants/{t}/journal`.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::tenant_id;
use crate::documents::MAX_JOURNAL_PAGE;
use crate::server::App;
use crate::server::error::{ApiError, Code};
use crate::server::openapi::shapes;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Part {
    after: Option<u64>,
    limit: Option<usize>,
}

/// The ordered record of applied writes, after a number or from its beginning.
#[utoipa::path(get, path = "/api/tenants/{t}/journal", operation_id = "readJournal", tag = "documents",
    params(shapes::JournalPart),
    responses(
        (status = 200, description = "Part of it", body = shapes::JournalPage),
        (status = 410, description = "Writes after that number are forgotten", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn read(
    State(app): State<Arc<App>>,
    Path(tenant): Path<String>,
    part: Result<Query<Part>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let part = part.ok().map(|Query(part)| part).filter(|part| {
        part.limit
            .is_none_or(|limit| (1..=MAX_JOURNAL_PAGE).contains(&limit))
    });
    let part = part.ok_or_else(|| {
        let message = format!(
            "\"after\" is the number of a write, \"limit\" is 1 to {MAX_JOURNAL_PAGE}, and there are no others"
        );
        ApiError::new(Code::InvalidInput, message)
    })?;
    let store = app.open(&tenant_id(&tenant)?).await?;
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
