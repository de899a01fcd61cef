//! `/api/tenants/{t}/documents`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{AppendHeaders, IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::query::page;
use crate::documents::{
    self, DocumentId, Done, Expected, Fields, Mutation, MutationOutcome, TableName,
};
use crate::server::body::{self, Body, FromBody, Pieces, RawJson};
use crate::server::error::{ApiError, Code};
use crate::server::once::{Answered, Keyed};
use crate::server::openapi::shapes;
use crate::server::parameters::{ListPart, Query};
use crate::server::tenant_path::Tenant;
use crate::server::{App, conditions, range};

/// A document to be inserted.
pub(in crate::server) struct NewDocument {
    table: TableName,
    fields: Fields,
    id: Option<DocumentId>,
}

impl FromBody for NewDocument {
    fn from_body(json: &[u8]) -> Result<Self, ApiError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Written<'a> {
            table: String,
            #[serde(borrow)]
            fields: &'a RawValue,
            id: Option<String>,
        }
        let written: Written<'_> = body::parse(json)?;
        Ok(Self {
            table: written.table.parse()?,
            fields: Fields::from_json(written.fields.get())?,
            id: written.id.map(|id| id.parse()).transpose()?,
        })
    }
}

/// Fields to be merged into a document.
pub(in crate::server) struct Patch(Fields);

impl FromBody for Patch {
    fn from_body(json: &[u8]) -> Result<Self, ApiError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Written<'a> {
            #[serde(borrow)]
            patch: &'a RawValue,
        }
        let written: Written<'_> = body::parse(json)?;
        Ok(Self(Fields::from_json(written.patch.get())?))
    }
}

/// Inserts a document
///
/// The first document creates the table.
#[utoipa::path(post, path = "/api/tenants/{t}/documents", operation_id = "insertDocument",
    tag = "documents", request_body = shapes::NewDocument,
    responses(
        (status = 201, description = "The document is stored durably", body = shapes::Written,
            headers(("ETag" = String, description = "The version of the document"))),
        (status = 409, description = "The mutation conflicts with what is stored", body = shapes::ErrorEnvelope),
        (status = 412, description = "A document with this id exists", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn insert(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Keyed {
        body: NewDocument { table, fields, id },
        once,
        headers,
    }: Keyed<NewDocument>,
) -> Result<impl IntoResponse, ApiError> {
    let expected = match (conditions::must_be_new(&headers)?, id) {
        (false, _) => None,
        (true, Some(id)) => Some((id, Expected::Absent)),
        (true, None) => {
            let message = "`If-None-Match: *` is about the document of an id: send the \"id\"";
            return Err(ApiError::new(Code::InvalidInput, message));
        }
    };
    let mutation = Mutation::Insert { table, fields, id };
    let store = app.open(&tenant).await?;
    let Done { outcome, replayed } = store.apply_if(expected, mutation, once).await?;
    let answer = (StatusCode::CREATED, written(&outcome));
    Ok(Answered { answer, replayed })
}

/// The documents of a table, oldest first
#[utoipa::path(get, path = "/api/tenants/{t}/documents/{table}", operation_id = "listDocuments",
    tag = "documents", params(shapes::CursorPart),
    responses((status = 200, description = "A part of the documents, and the cursor of the next one", body = shapes::Page)))]
pub(in crate::server) async fn list(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Path((_tenant, table)): Path<(String, String)>,
    Query(part): Query<ListPart<String>>,
) -> Result<Pieces, ApiError> {
    let query = documents::query::Query::all(table.parse()?);
    let store = app.open(&tenant).await?;
    page(&*store, query, part.after.as_deref(), part.size()).await
}

/// One document
#[utoipa::path(get, path = "/api/tenants/{t}/documents/{table}/{id}", operation_id = "getDocument",
    tag = "documents",
    responses(
        (status = 200, description = "The document", body = shapes::OneDocument,
            headers(("ETag" = String, description = "Its version"))),
        (status = 304, description = "The client has this version"),
    ))]
pub(in crate::server) async fn get(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Path((_tenant, table, id)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (table, id): (TableName, DocumentId) = (table.parse()?, id.parse()?);
    let store = app.open(&tenant).await?;
    let document = store.get(&table, id).await?;
    let etag = conditions::etag(document.version);
    if range::is_known(&headers, &etag) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response());
    }
    let mut json = String::from(r#"{"document":"#);
    document.write_json(&mut json);
    json.push('}');
    Ok(([(header::ETAG, etag)], RawJson(json)).into_response())
}

/// Merges fields into a document
#[utoipa::path(patch, path = "/api/tenants/{t}/documents/{table}/{id}",
    operation_id = "patchDocument", tag = "documents", request_body = shapes::Patch,
    responses(
        (status = 200, description = "The document is stored durably", body = shapes::Written,
            headers(("ETag" = String, description = "The new version of the document"))),
        (status = 409, description = "The mutation conflicts with what is stored", body = shapes::ErrorEnvelope),
        (status = 412, description = "The document has another version", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn patch(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Path((_tenant, table, id)): Path<(String, String, String)>,
    headers: HeaderMap,
    Body(Patch(patch)): Body<Patch>,
) -> Result<impl IntoResponse, ApiError> {
    let id = id.parse()?;
    let expected = conditions::if_match(&headers)?.map(|expected| (id, expected));
    let mutation = Mutation::Update {
        table: table.parse()?,
        id,
        patch,
        if_version: None,
    };
    let store = app.open(&tenant).await?;
    let done = store.apply_if(expected, mutation, None).await?;
    Ok(written(&done.outcome))
}

/// Removes a document
#[utoipa::path(delete, path = "/api/tenants/{t}/documents/{table}/{id}",
    operation_id = "deleteDocument", tag = "documents",
    responses(
        (status = 204, description = "The document was removed"),
        (status = 412, description = "The document has another version", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn delete(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Path((_tenant, table, id)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let id = id.parse()?;
    let expected = conditions::if_match(&headers)?.map(|expected| (id, expected));
    let mutation = Mutation::Delete {
        table: table.parse()?,
        id,
        if_version: None,
    };
    let store = app.open(&tenant).await?;
    let _done = store.apply_if(expected, mutation, None).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a write came to: the document and its version, which is its tag.
fn written(outcome: &MutationOutcome) -> impl IntoResponse + use<> {
    let etag = outcome.version().map(conditions::etag);
    let etag = etag.map(|etag| AppendHeaders([(header::ETAG, etag)]));
    (etag, Json(json!(outcome)))
}
