//! `/api/tenants/{t}/query`.

use std::sync::Arc;

use axum::extract::State;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::whether_more;
use crate::documents::optional_integer;
use crate::documents::query::{MAX_PAGE, Query, QueryPage};
use crate::server::App;
use crate::server::body::{self, Body, FromBody, Pieces};
use crate::server::error::{ApiError, Code};
use crate::server::openapi::shapes;
use crate::server::tenant_path::Tenant;
use crate::tenants::{Cursors, StoreError, TenantStore};

impl FromBody for Query {
    fn from_body(json: &[u8]) -> Result<Self, ApiError> {
        Ok(Self::from_json(body::text(json)?)?)
    }
}

/// The documents that a query finds
#[utoipa::path(post, path = "/api/tenants/{t}/query", operation_id = "query", tag = "documents",
    request_body = shapes::Query,
    responses((status = 200, description = "The documents in order, and the cursor of the next part", body = shapes::Page)))]
pub(in crate::server) async fn query(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Body(query): Body<Query>,
) -> Result<Pieces, ApiError> {
    let limit = query.limit.unwrap_or(MAX_PAGE);
    // Its cursor is for pages, which have a size and no limit.
    let query = Query {
        limit: None,
        ..query
    };
    let store = app.open(&tenant).await?;
    let page = store.query(query.clone(), None, limit).await?;
    if page.next.is_some() && page.documents.len() < limit {
        let table = query.table;
        return Err(StoreError::ListTooLarge { table }.into());
    }
    answer(store.cursors(), &query, page)
}

/// A query, and which page of what it finds.
pub(in crate::server) struct Paginated {
    query: Query,
    size: usize,
    after: Option<String>,
}

impl FromBody for Paginated {
    fn from_body(json: &[u8]) -> Result<Self, ApiError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Written<'a> {
            #[serde(borrow)]
            query: &'a RawValue,
            #[serde(default, deserialize_with = "optional_integer")]
            page_size: Option<usize>,
            after: Option<String>,
        }
        let written: Written<'_> = body::parse(json)?;
        let query = Query::from_json(written.query.get())?;
        let size = written.page_size.unwrap_or(DEFAULT_PAGE);
        let refused = |message: String| Err(ApiError::new(Code::InvalidInput, message));
        if !(1..=MAX_PAGE).contains(&size) {
            return refused(format!("\"page_size\" is 1 to {MAX_PAGE}"));
        }
        if query.limit.is_some() {
            return refused(
                "a query that is read in pages takes \"page_size\" and no \"limit\"".to_owned(),
            );
        }
        Ok(Self {
            query,
            size,
            after: written.after,
        })
    }
}

/// One page of what a query finds
#[utoipa::path(post, path = "/api/tenants/{t}/query/paginated", operation_id = "queryPage",
    tag = "documents", request_body = shapes::PaginatedQuery,
    responses((status = 200, description = "The page, and the cursor of the next one", body = shapes::Page)))]
pub(in crate::server) async fn paginated(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Body(wanted): Body<Paginated>,
) -> Result<Pieces, ApiError> {
    let Paginated { query, size, after } = wanted;
    let store = app.open(&tenant).await?;
    page(&*store, query, after.as_deref(), size).await
}

/// One page of what a query finds.
pub(super) async fn page(
    store: &dyn TenantStore,
    query: Query,
    after: Option<&str>,
    size: usize,
) -> Result<Pieces, ApiError> {
    let cursors = store.cursors();
    let after = after.map(|cursor| cursors.open_position(&query, cursor));
    let page = store.query_page(query.clone(), after.transpose()?, size);
    answer(cursors, &query, page.await?)
}

/// Documents, and whether the query finds more.
fn answer(cursors: &Cursors, query: &Query, page: QueryPage) -> Result<Pieces, ApiError> {
    let next = page.next.map(|next| cursors.seal_position(query, &next));
    let end = format!("],{}", whether_more(next.transpose()?));
    let mut pieces = Pieces::default();
    pieces.room_for(0).push_str(r#"{"data":["#);
    // Each document is let go once it is written.
    for (index, document) in page.documents.into_iter().enumerate() {
        let json = pieces.room_for(document.weight() + 1);
        if index > 0 {
            json.push(',');
        }
        document.write_json(json);
    }
    pieces.room_for(end.len()).push_str(&end);
    Ok(pieces)
}

const DEFAULT_PAGE: usize = 100;
