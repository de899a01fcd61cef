//! `/api/tenants/{t}/schema`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::value::RawValue;

use super::tenant_id;
use crate::documents::TableName;
use crate::documents::schema::TableSchema;
use crate::envelope::blocking;
use crate::server::App;
use crate::server::body::{Body, RawJson};
use crate::server::error::{ApiError, Code};

pub(in crate::server) async fn list(
    State(app): State<Arc<App>>,
    Path(tenant): Path<String>,
) -> Result<RawJson, ApiError> {
    let store = app.open(&tenant_id(&tenant)?).await?;
    let schemas = store.schemas().await?;
    let members = schemas
        .iter()
        // A table's name needs no escape.
        .map(|schema| format!(r#""{}":{}"#, schema.table(), schema.to_json()));
    let members: Vec<String> = members.collect();
    Ok(RawJson(format!(
        r#"{{"tables":{{{}}}}}"#,
        members.join(",")
    )))
}

pub(in crate::server) async fn get(
    State(app): State<Arc<App>>,
    Path((tenant, table)): Path<(String, String)>,
) -> Result<RawJson, ApiError> {
    let table: TableName = table.parse()?;
    let store = app.open(&tenant_id(&tenant)?).await?;
    let schema = store.schema(&table).await?;
    Ok(RawJson(schema.to_json()))
}

pub(in crate::server) async fn put(
    State(app): State<Arc<App>>,
    Path((tenant, table)): Path<(String, String)>,
    Body(written): Body<Box<RawValue>>,
) -> Result<StatusCode, ApiError> {
    let table: TableName = table.parse()?;
    // To compile a JSON Schema may take a while.
    let schema = blocking(move || TableSchema::from_json(written.get())).await?;
    if *schema.table() != table {
        let message = format!(
            "the schema is of table {}, and the path is that of table {table}: they must be the same",
            schema.table()
        );
        return Err(ApiError::new(Code::InvalidInput, message));
    }
    let store = app.open(&tenant_id(&tenant)?).await?;
    store.put_schema(schema).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(in crate::server) async fn delete(
    State(app): State<Arc<App>>,
    Path((tenant, table)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let table: TableName = table.parse()?;
    let store = app.open(&tenant_id(&tenant)?).await?;
    store.delete_schema(&table).await?;
    Ok(StatusCode::NO_CONTENT)
}
