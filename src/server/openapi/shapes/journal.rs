//! What `/api/tenants/{t}/journal` takes and answers.

use utoipa::ToSchema;

use super::{DocumentId, TableName};

/// Which part of the journal.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::server) struct JournalPart {
    /// The number after which to begin.
    #[param(minimum = 0, nullable = false)]
    after: Option<i64>,
    /// How many records.
    #[param(minimum = 1, maximum = 1000, nullable = false)]
    limit: Option<u32>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct JournalPage {
    records: Vec<JournalRecord>,
    next_cursor: i64,
    latest_sequence: i64,
    /// Every record after this number is still there.
    cursor_floor: i64,
    has_more: bool,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct JournalRecord {
    sequence: i64,
    r#type: Change,
    table: TableName,
    id: DocumentId,
    timestamp: i64,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum Change {
    Insert,
    Update,
    Delete,
}
