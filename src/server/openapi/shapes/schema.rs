//! The bodies of `/api/tenants/{t}/schema`, and the schemas that deploys have, too.

use std::collections::BTreeMap;

use utoipa::ToSchema;

use super::{AnyObject, Field, shape, text};

shape! {
    /// The name of a table.
    TableName = text("^[A-Za-z][A-Za-z0-9_-]{0,63}$", "The name of a table; case counts");
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct TableSchema {
    table: TableName,
    #[schema(max_items = 1000)]
    fields: Option<Vec<FieldRule>>,
    #[schema(max_items = 32)]
    indexes: Option<Vec<IndexRule>>,
    /// A JSON Schema, draft 2020-12.
    json_schema: Option<AnyObject>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct FieldRule {
    name: Field,
    field_type: FieldType,
    #[schema(required = false)]
    required: bool,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum FieldType {
    String,
    Number,
    Boolean,
    Array,
    Object,
    Any,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct IndexRule {
    #[schema(pattern = "^[A-Za-z][A-Za-z0-9_-]{0,63}$")]
    name: String,
    #[schema(min_items = 1)]
    fields: Vec<Field>,
    #[schema(required = false)]
    unique: bool,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Schemas {
    tables: BTreeMap<String, TableSchema>,
    /// What to ask for next with `after`, where there are more.
    #[schema(required)]
    next_cursor: Option<String>,
    has_more: bool,
}
