//! Documents, tables and mutations as plain data: what every tenant provider stores and every front
//! end speaks.
//!
//! Nothing here knows a backend, a protocol or a clock. The types are valid by construction:
//! whoever holds a [`Fields`], a [`TableName`] or a [`DocumentId`] holds one that passed its
//! checks, so a store never checks again.

mod bounded;
pub mod deploy;
mod document;
mod error;
mod fields;
mod id;
mod integer;
mod journal;
mod json_object;
mod limits;
mod mutation;
mod once;
pub mod query;
pub mod schedule;
pub mod schema;
mod table_name;

pub use bounded::Bounded;
pub use document::Document;
pub use error::InputError;
pub use fields::Fields;
pub use id::DocumentId;
pub(crate) use integer::optional_integer;
pub use journal::{Change, JOURNAL_RECORDS, JournalPage, JournalRecord, MAX_JOURNAL_PAGE};
pub use json_object::read_object;
pub use limits::{MAX_DEPTH, MAX_FIELDS_BYTES, MAX_TABLE_NAME_BYTES};
pub use mutation::{Expected, MAX_BATCH, Mutation, MutationOutcome};
pub use once::{CREDENTIAL_PART, Done, MAX_REMEMBERED, MAX_REMEMBERED_BYTES, Once, REMEMBERED_FOR};
pub use table_name::TableName;
