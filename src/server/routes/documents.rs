//! `/api/tenants/{t}/documents`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::query::data;
use super::tenant_id;
use crate::documents::{DocumentId, Fields, Mutation, TableName};
use crate::server::App;
use crate::server::body::{Body, Pieces, RawJson};
use crate::server::error::ApiError;
use crate::server::openapi::shapes;
use crate::tenants::MAX_LIST;

/// `fields` is not parsed here: it is checked once, by [`Fields`], and stored as text.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct NewDocument {
    table: String,
    fields: Box<RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Patch {
    patch: Box<RawValue>,
}

/// Inserts a document
///
/// The table comes into being with its first document.
#[utoipa::path(post, path = "/api/tenants/{t}/documents", operation_id = "insertDocument",
    tag = "documents", request_body = shapes::NewDocument,
    responses(
        (status = 201, description = "It is on the disk", body = shapes::Written),
        (status = 409, description = "It cannot be done to what is there", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn insert(
    State(app): State<Arc<App>>,
    Path(tenant): Path<String>,
    Body(new): Body<NewDocument>,
) -> Result<(StatusCode, RawJson), ApiError> {
    let mutation = Mutation::Insert {
        table: new.table.parse()?,
        fields: Fields::from_json(new.fields.get())?,
        id: None,
    };
    let store = app.open(&tenant_id(&tenant)?).await?;
    let outcome = store.apply(mutation).await?;
    let json = format!(r#"{{"id":"{}"}}"#, outcome.id());
    Ok((StatusCode::CREATED, RawJson(json)))
}

/// The documents of a table, oldest first, at most 1000
#[utoipa::path(get, path = "/api/tenants/{t}/documents/{table}", operation_id = "listDocuments",
    tag = "documents",
    responses(
        (status = 200, description = "They", body = shapes::Documents),
        (status = 413, description = "They are too large for one answer", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn list(
    State(app): State<Arc<App>>,
    Path((tenant, table)): Path<(String, String)>,
) -> Result<Pieces, ApiError> {
    let table: TableName = table.parse()?;
    let store = app.open(&tenant_id(&tenant)?).await?;
    let documents = store.list(&table, MAX_LIST).await?;
    let mut json = data(documents);
    json.room_for(1).push('}');
    Ok(json)
}

/// One document
#[utoipa::path(get, path = "/api/tenants/{t}/documents/{table}/{id}", operation_id = "getDocument",
    tag = "documents",
    responses((status = 200, description = "It", body = shapes::OneDocument)))]
pub(in crate::server) async fn get(
    State(app): State<Arc<App>>,
    Path((tenant, table, id)): Path<(String, String, String)>,
) -> Result<RawJson, ApiError> {
    let (table, id): (TableName, DocumentId) = (table.parse()?, id.parse()?);
    let store = app.open(&tenant_id(&tenant)?).await?;
    let document = store.get(&table, id).await?;
    let mut json = String::from(r#"{"document":"#);
    document.write_json(&mut json);
    json.push('}');
    Ok(RawJson(json))
}

/// Merges fields into a document
#[utoipa::path(patch, path = "/api/tenants/{t}/documents/{table}/{id}",
    operation_id = "patchDocument", tag = "documents", request_body = shapes::Patch,
    responses(
        (status = 200, description = "It is on the disk", body = shapes::Written),
        (status = 409, description = "It cannot be done to what is there", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn patch(
    State(app): State<Arc<App>>,
    Path((tenant, table, id)): Path<(String, String, String)>,
    Body(body): Body<Patch>,
) -> Result<Json<Value>, ApiError> {
    let mutation = Mutation::Update {
        table: table.parse()?,
        id: id.parse()?,
        patch: Fields::from_json(body.patch.get())?,
    };
    let store = app.open(&tenant_id(&tenant)?).await?;
    let outcome = store.apply(mutation).await?;
    Ok(Json(json!({"id": outcome.id()})))
}

/// Removes a document
#[utoipa::path(delete, path = "/api/tenants/{t}/documents/{table}/{id}",
    operation_id = "deleteDocument", tag = "documents",
    responses((status = 204, description = "It is gone")))]
pub(in crate::server) async fn delete(
    State(app): State<Arc<App>>,
    Path((tenant, table, id)): Path<(String, String, String)>,
) -> Result<StatusCode, ApiError> {
    let mutation = Mutation::Delete {
        table: table.parse()?,
        id: id.parse()?,
    };
    let store = app.open(&tenant_id(&tenant)?).await?;
    let _outcome = store.apply(mutation).await?;
    Ok(StatusCode::NO_CONTENT)
}
