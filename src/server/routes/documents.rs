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
use crate::server::body::{Body, RawJson};
use crate::server::error::ApiError;
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

pub(in crate::server) async fn insert(
    State(app): State<Arc<App>>,
    Path(tenant): Path<String>,
    Body(new): Body<NewDocument>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let mutation = Mutation::Insert {
        table: new.table.parse()?,
        fields: Fields::from_json(new.fields.get())?,
        id: None,
    };
    let store = app.open(&tenant_id(&tenant)?).await?;
    let outcome = store.apply(mutation).await?;
    Ok((StatusCode::CREATED, Json(json!({"id": outcome.id()}))))
}

pub(in crate::server) async fn list(
    State(app): State<Arc<App>>,
    Path((tenant, table)): Path<(String, String)>,
) -> Result<RawJson, ApiError> {
    let table: TableName = table.parse()?;
    let store = app.open(&tenant_id(&tenant)?).await?;
    let documents = store.list(&table, MAX_LIST).await?;
    let mut json = data(&documents);
    json.push('}');
    Ok(RawJson(json))
}

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
