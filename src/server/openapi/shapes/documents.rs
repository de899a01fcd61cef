//! The bodies of `/api/tenants/{t}/documents`.

use utoipa::ToSchema;
use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder, Type};

use super::{TableName, milliseconds, shape, text};

shape! {
    /// The id of a document.
    DocumentId = text(
        "^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$",
        "The id of a document: a UUID version 7 in lower case",
    );
}

shape! {
    /// A version of a document.
    Version = ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(1))
        .maximum(Some(9_007_199_254_740_991_i64))
        .description(Some("The version of a document: the number of the write that wrote it last"));
}

shape! {
    /// The user's part of a document.
    Fields = fields("The fields of a document: any JSON, at most 1 MiB and 64 levels; no name begins with '_'");
}

shape! {
    /// A document as it is answered.
    Document = ObjectBuilder::new()
        .property("_id", DocumentId::schema())
        .required("_id")
        .property("_creationTime", milliseconds("When it was inserted"))
        .required("_creationTime")
        .property("_updateTime", milliseconds("When it was changed last"))
        .required("_updateTime")
        .property("_version", Version::schema())
        .required("_version")
        .additional_properties(Some(AdditionalProperties::FreeForm(true)))
        .description(Some("A document: its fields, and what the server keeps of it"));
}

fn fields(description: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .property_names(Some(
            ObjectBuilder::new()
                .schema_type(Type::String)
                .pattern(Some("^(?!_)")),
        ))
        .additional_properties(Some(AdditionalProperties::FreeForm(true)))
        .description(Some(description))
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct NewDocument {
    table: TableName,
    fields: Fields,
    /// Drawn where it is left out.
    id: Option<DocumentId>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Patch {
    /// Merged into the document's top level.
    patch: Fields,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Written {
    id: DocumentId,
    version: Version,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct OneDocument {
    document: Document,
}
