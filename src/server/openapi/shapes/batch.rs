//! The bodies of `/api/tenants/{t}/batch`, and the mutations that jobs and crons have, too.

use utoipa::ToSchema;

use super::{DocumentId, Fields, TableName, Version, shape, word};

/// One change to one document.
#[derive(ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("insert" = "#/components/schemas/InsertMutation"),
    ("update" = "#/components/schemas/UpdateMutation"),
    ("delete" = "#/components/schemas/DeleteMutation"),
)))]
pub(in crate::server) enum Mutation {
    Insert(InsertMutation),
    Update(UpdateMutation),
    Delete(DeleteMutation),
}

/// One change to one document, or what must be true of one.
#[derive(ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("insert" = "#/components/schemas/InsertMutation"),
    ("update" = "#/components/schemas/UpdateMutation"),
    ("delete" = "#/components/schemas/DeleteMutation"),
    ("check" = "#/components/schemas/CheckMutation"),
)))]
pub(in crate::server) enum BatchMutation {
    Insert(InsertMutation),
    Update(UpdateMutation),
    Delete(DeleteMutation),
    Check(CheckMutation),
}

shape! {
    /// The `type` of an insert.
    InsertType = word(&["insert"]);
}

shape! {
    /// The `type` of an update.
    UpdateType = word(&["update"]);
}

shape! {
    /// The `type` of a deletion.
    DeleteType = word(&["delete"]);
}

shape! {
    /// The `type` of a check.
    CheckType = word(&["check"]);
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct InsertMutation {
    #[schema(inline)]
    r#type: InsertType,
    table: TableName,
    fields: Fields,
    /// Drawn by the server without it.
    id: Option<DocumentId>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct UpdateMutation {
    #[schema(inline)]
    r#type: UpdateType,
    table: TableName,
    id: DocumentId,
    /// Merged into the document's top level.
    patch: Fields,
    /// The version that it must have. Not in a cron.
    #[schema(value_type = Version, required = false)]
    if_version: Option<Version>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct DeleteMutation {
    #[schema(inline)]
    r#type: DeleteType,
    table: TableName,
    id: DocumentId,
    /// The version that it must have. Not in a cron.
    #[schema(value_type = Version, required = false)]
    if_version: Option<Version>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct CheckMutation {
    #[schema(inline)]
    r#type: CheckType,
    table: TableName,
    id: DocumentId,
    /// The version that it must have; null where there must be no document.
    #[schema(required)]
    version: Option<Version>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Batch {
    #[schema(max_items = 10_000)]
    mutations: Vec<BatchMutation>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct BatchResults {
    /// One a mutation, in their order.
    results: Vec<BatchResult>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct BatchResult {
    id: DocumentId,
    /// Of a check the version that is there, or null.
    #[schema(required)]
    version: Option<Version>,
}
