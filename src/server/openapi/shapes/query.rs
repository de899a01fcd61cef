//! The bodies of `/api/tenants/{t}/query` and its pages.

use utoipa::ToSchema;
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};

use super::{Document, TableName, shape, text, word};

shape! {
    /// What a field is compared with.
    Comparable = ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([
            Type::Null, Type::Boolean, Type::Number, Type::String,
        ]))
        .description(Some("A value that a field is compared with"));
}

shape! {
    /// A field of a document.
    Field = text(
        "^(_id|_creationTime|_updateTime|_version|[^_.\\x00][^.\\x00]*(\\.[^.\\x00]+)*)$",
        "A field: one of the server's, or the names on the way to it with dots between them; at most 1024 bytes and 64 names",
    );
}

/// What must be true of a field; `docs/queries.md` defines how values compare.
#[derive(ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "op", mapping(
    ("eq" = "#/components/schemas/ComparisonFilter"),
    ("neq" = "#/components/schemas/ComparisonFilter"),
    ("gt" = "#/components/schemas/ComparisonFilter"),
    ("gte" = "#/components/schemas/ComparisonFilter"),
    ("lt" = "#/components/schemas/ComparisonFilter"),
    ("lte" = "#/components/schemas/ComparisonFilter"),
    ("in" = "#/components/schemas/InFilter"),
    ("exists" = "#/components/schemas/ExistsFilter"),
)))]
pub(in crate::server) enum Filter {
    Comparison(ComparisonFilter),
    In(InFilter),
    Exists(ExistsFilter),
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum Comparison {
    Eq,
    Neq,
    Gt,
    Gte,
    Lt,
    Lte,
}

shape! {
    /// The `op` of a condition with a list.
    InOperator = word(&["in"]);
}

shape! {
    /// The `op` of a condition on whether a field is there.
    ExistsOperator = word(&["exists"]);
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct ComparisonFilter {
    field: Field,
    op: Comparison,
    value: Comparable,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct InFilter {
    field: Field,
    #[schema(inline)]
    op: InOperator,
    #[schema(max_items = 1000)]
    value: Vec<Comparable>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct ExistsFilter {
    field: Field,
    #[schema(inline)]
    op: ExistsOperator,
    value: bool,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Query {
    table: TableName,
    #[schema(max_items = 50)]
    filters: Option<Vec<Filter>>,
    order: Option<Order>,
    #[schema(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Order {
    field: Field,
    direction: Option<Direction>,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum Direction {
    Asc,
    Desc,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct PaginatedQuery {
    query: QueryInPages,
    #[schema(minimum = 1, maximum = 1000)]
    page_size: Option<u32>,
    /// `next_cursor` of the page before.
    after: Option<String>,
}

/// A query without a limit: a page has a size.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct QueryInPages {
    table: TableName,
    #[schema(max_items = 50)]
    filters: Option<Vec<Filter>>,
    order: Option<Order>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Page {
    data: Vec<Document>,
    #[schema(required)]
    next_cursor: Option<String>,
    has_more: bool,
}
