//! The bodies of `/api/tenants/{t}/query` and its pages.

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{
    ArrayBuilder, Object, ObjectBuilder, OneOfBuilder, Schema, SchemaType, Type,
};
use utoipa::{PartialSchema as _, ToSchema};

use super::{Document, TableName, closed, shape, text, word};
use crate::documents::query::MAX_IN;

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
        "^(_id|_creationTime|_updateTime|[^_.\\x00][^.\\x00]*(\\.[^.\\x00]+)*)$",
        "A field: one of the server's, or the names on the way to it with dots between them; at most 1024 bytes and 64 names",
    );
}

shape! {
    /// One condition of a query.
    Filter = OneOfBuilder::new()
        .item(filter(&["eq", "neq", "gt", "gte", "lt", "lte"], Comparable::schema()))
        .item(filter(
            &["in"],
            ArrayBuilder::new()
                .items(Comparable::schema())
                .max_items(Some(MAX_IN))
                .into(),
        ))
        .item(filter(&["exists"], Object::with_type(Type::Boolean).into()))
        .description(Some("What must be true of a field; docs/queries.md defines how values compare"));
}

fn filter(operators: &[&str], value: RefOr<Schema>) -> ObjectBuilder {
    closed()
        .property("field", Field::schema())
        .required("field")
        .property("op", word(operators))
        .required("op")
        .property("value", value)
        .required("value")
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
