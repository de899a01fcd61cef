//! `/api/tenants/{t}/schema`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;

use super::part_of;
use crate::documents::TableName;
use crate::documents::schema::TableSchema;
use crate::server::App;
use crate::server::body::{self, Body, FromBody, RawJson};
use crate::server::error::{ApiError, Code};
use crate::server::openapi::shapes;
use crate::server::parameters::{ListPart, Query};
use crate::server::tenant_path::Tenant;

impl FromBody for TableSchema {
    // To compile a JSON Schema may take a while.
    const SLOW: bool = true;

    fn from_body(json: &[u8]) -> Result<Self, ApiError> {
        Ok(Self::from_json(body::text(json)?)?)
    }
}

/// The schemas of tables that have one, by table
#[utoipa::path(get, path = "/api/tenants/{t}/schema", operation_id = "listSchemas", tag = "schemas",
    params(shapes::TablePart),
    responses((status = 200, description = "The schemas, sorted by table", body = shapes::Schemas)))]
pub(in crate::server) async fn list(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Query(part): Query<ListPart<TableName>>,
) -> Result<RawJson, ApiError> {
    let store = app.open(&tenant).await?;
    let limit = part.size();
    let listed = store.list_schemas(part.after, limit).await?;
    let members = listed
        .items
        .iter()
        // A table's name needs no escape.
        .map(|schema| format!(r#""{}":{}"#, schema.table(), schema.to_json()));
    let members: Vec<String> = members.collect();
    let next = listed.items.last().filter(|_| listed.more);
    let next = next.map(|last| last.table().to_string());
    Ok(part_of(
        "tables",
        &format!("{{{}}}", members.join(",")),
        next,
    ))
}

/// The schema of a table
#[utoipa::path(get, path = "/api/tenants/{t}/schema/{table}", operation_id = "getSchema", tag = "schemas",
    responses((status = 200, description = "The schema", body = shapes::TableSchema)))]
pub(in crate::server) async fn get(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Path((_tenant, table)): Path<(String, String)>,
) -> Result<RawJson, ApiError> {
    let table: TableName = table.parse()?;
    let store = app.open(&tenant).await?;
    let schema = store.schema(&table).await?;
    Ok(RawJson(schema.to_json()))
}

/// Sets the schema of a table, and builds its indexes
#[utoipa::path(put, path = "/api/tenants/{t}/schema/{table}", operation_id = "putSchema", tag = "schemas",
    request_body = shapes::TableSchema,
    responses(
        (status = 204, description = "The schema is in force"),
        (status = 409, description = "Stored documents violate the schema", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn put(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Path((_tenant, table)): Path<(String, String)>,
    Body(schema): Body<TableSchema>,
) -> Result<StatusCode, ApiError> {
    let table: TableName = table.parse()?;
    if *schema.table() != table {
        let message = format!(
            "the schema is of table {}, and the path is that of table {table}: they must be the same",
            schema.table()
        );
        return Err(ApiError::new(Code::InvalidInput, message));
    }
    let store = app.open(&tenant).await?;
    store.put_schema(schema).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes the schema of a table, and its indexes
#[utoipa::path(delete, path = "/api/tenants/{t}/schema/{table}", operation_id = "deleteSchema", tag = "schemas",
    responses(
        (status = 204, description = "The schema and its indexes were removed"),
        (status = 409, description = "The mutation conflicts with what is stored", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn delete(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Path((_tenant, table)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let table: TableName = table.parse()?;
    let store = app.open(&tenant).await?;
    store.delete_schema(&table).await?;
    Ok(StatusCode::NO_CONTENT)
}
