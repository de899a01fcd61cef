//! The bodies of `/api/tenants/{t}/batch`, and the mutations that jobs and crons have, too.

use utoipa::openapi::schema::{Object, ObjectBuilder, OneOfBuilder, Type};
use utoipa::{PartialSchema as _, ToSchema};

use super::{DocumentId, Fields, TableName, Written, closed, shape, word};

shape! {
    /// One change of a batch.
    Mutation = OneOfBuilder::new()
        .item(mutation("insert", &["fields"], &["id"]))
        .item(mutation("update", &["id", "patch"], &[]))
        .item(mutation("delete", &["id"], &[]))
        .description(Some("One change to one document"));
}

/// One kind of mutation: its table, the members it must and may have, and no others.
fn mutation(kind: &str, must: &[&str], may: &[&str]) -> ObjectBuilder {
    let mut object = closed()
        .property("type", word(&[kind]))
        .required("type")
        .property("table", TableName::schema())
        .required("table");
    for member in must {
        let schema = match *member {
            "id" => DocumentId::schema(),
            _ => Fields::schema(),
        };
        object = object.property(*member, schema).required(*member);
    }
    for member in may {
        // Null is as good as nothing.
        let choice = OneOfBuilder::new()
            .item(Object::with_type(Type::Null))
            .item(DocumentId::schema());
        object = object.property(*member, choice);
    }
    object
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Batch {
    #[schema(max_items = 10_000)]
    mutations: Vec<Mutation>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct BatchResults {
    /// One a mutation, in their order.
    results: Vec<Written>,
}
