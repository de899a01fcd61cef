//! `/api/tenants/{t}/query`.

use std::sync::Arc;

use axum::extract::{Path, State};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::tenant_id;
use crate::documents::query::{MAX_PAGE, Query};
use crate::documents::{Document, whole};
use crate::server::App;
use crate::server::body::{Body, Pieces};
use crate::server::error::{ApiError, Code};
use crate::server::openapi::shapes;
use crate::tenants::StoreError;

/// The documents that a query finds
#[utoipa::path(post, path = "/api/tenants/{t}/query", operation_id = "query", tag = "documents",
    request_body = shapes::Query,
    responses((status = 200, description = "They, in order", body = shapes::Documents)))]
pub(in crate::server) async fn query(
    State(app): State<Arc<App>>,
    Path(tenant): Path<String>,
    Body(query): Body<Box<RawValue>>,
) -> Result<Pieces, ApiError> {
    let query = Query::from_json(query.get())?;
    let (table, limit) = (query.table.clone(), query.limit.unwrap_or(MAX_PAGE));
    let store = app.open(&tenant_id(&tenant)?).await?;
    let page = store.query(query, None, limit).await?;
    if page.next.is_some() && page.documents.len() < limit {
        return Err(StoreError::ListTooLarge { table }.into());
    }
    let mut json = data(page.documents);
    json.room_for(1).push('}');
    Ok(json)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Paginated {
    query: Box<RawValue>,
    #[serde(default, deserialize_with = "whole")]
    page_size: Option<usize>,
    after: Option<String>,
}

/// One page of what a query finds
#[utoipa::path(post, path = "/api/tenants/{t}/query/paginated", operation_id = "queryPage",
    tag = "documents", request_body = shapes::PaginatedQuery,
    responses((status = 200, description = "It, and where the next one begins", body = shapes::Page)))]
pub(in crate::server) async fn paginated(
    State(app): State<Arc<App>>,
    Path(tenant): Path<String>,
    Body(wanted): Body<Paginated>,
) -> Result<Pieces, ApiError> {
    let query = Query::from_json(wanted.query.get())?;
    let tenant = tenant_id(&tenant)?;
    let size = wanted.page_size.unwrap_or(DEFAULT_PAGE);
    let refused = |message: String| Err(ApiError::new(Code::InvalidInput, message));
    if !(1..=MAX_PAGE).contains(&size) {
        return refused(format!("\"page_size\" is 1 to {MAX_PAGE}"));
    }
    if query.limit.is_some() {
        return refused(
            "a query that is read in pages takes \"page_size\" and no \"limit\"".to_owned(),
        );
    }
    let store = app.open(&tenant).await?;
    let after = wanted
        .after
        .map(|cursor| store.cursors().open_position(&query, &cursor))
        .transpose()?;
    let page = store.query_page(query.clone(), after, size).await?;
    let rest = match &page.next {
        Some(next) => {
            let cursor = store.cursors().seal_position(&query, next)?;
            format!(r#","next_cursor":"{cursor}","has_more":true}}"#)
        }
        None => r#","next_cursor":null,"has_more":false}"#.to_owned(),
    };
    let mut json = data(page.documents);
    json.room_for(rest.len()).push_str(&rest);
    Ok(json)
}

/// `{"data":[…]`, open for more.
pub(super) fn data(documents: Vec<Document>) -> Pieces {
    let mut pieces = Pieces::default();
    pieces.room_for(0).push_str(r#"{"data":["#);
    // Each document is let go once it is written.
    for (index, document) in documents.into_iter().enumerate() {
        let json = pieces.room_for(document.weight() + 1);
        if index > 0 {
            json.push(',');
        }
        document.write_json(json);
    }
    pieces.room_for(1).push(']');
    pieces
}

const DEFAULT_PAGE: usize = 100;
