//! What rows hold.

use crate::documents::{Change, DocumentId, Fields, TableName};

/// The number of a table of documents within its tenant. A backend gives a number once.
pub type TableNumber = i64;

/// The journal's ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalBounds {
    /// The number of the last write.
    pub latest: i64,
    /// The number of the write before the journal's first record.
    pub floor: i64,
}

/// One record to be appended to the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalEntry {
    /// What was done.
    pub change: Change,
    /// The table of the document.
    pub table: TableNumber,
    /// The document.
    pub id: DocumentId,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: i64,
}

/// A document to insert.
#[derive(Debug, Clone, Copy)]
pub struct NewDocument<'a> {
    /// The number of the write that inserts it, which is its version and its place in the order of
    /// insertion.
    pub sequence: i64,
    /// Its id.
    pub id: DocumentId,
    /// Whether the id was drawn just now, so that no document has it.
    pub is_drawn: bool,
    /// When it is created, in milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// Its fields.
    pub fields: &'a Fields,
}

/// The new state of a document.
#[derive(Debug, Clone, Copy)]
pub struct ChangedDocument<'a> {
    /// Its id.
    pub id: DocumentId,
    /// The number of the write that inserted it.
    pub sequence: i64,
    /// The number of the write that changes it.
    pub version: i64,
    /// When it is changed, in milliseconds since the Unix epoch.
    pub updated_ms: i64,
    /// Its fields.
    pub fields: &'a Fields,
}

/// What an update needs to know of a document.
#[derive(Debug, Clone)]
pub struct StoredDocument {
    /// The number of the write that inserted it.
    pub sequence: i64,
    /// When it was last changed, in milliseconds since the Unix epoch.
    pub updated_ms: i64,
    /// Its fields.
    pub fields: Fields,
}

/// The rule of uniqueness that keeps a document, or an index, from being stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conflict {
    /// A document with the id exists.
    Id,
    /// Two documents would have the same values in a unique index.
    Index {
        /// The index, as its schema names it.
        name: String,
        /// Its fields, as paths with dots.
        fields: Vec<String>,
    },
}

/// An index of a table, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredIndex {
    /// What the backend knows it by.
    pub slot: i64,
    /// The name that its schema gave it.
    pub name: String,
    /// The names on the way to each of its fields.
    pub fields: Vec<Vec<String>>,
    /// Whether no two documents may have the same values in it.
    pub unique: bool,
}

/// The answer to a request that was sent under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAnswer {
    /// The digest of the request.
    pub request: [u8; 32],
    /// When it was answered, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// What was answered.
    pub answer: Vec<u8>,
    /// The digest of whose request it was; `None` of one that an earlier release answered.
    pub credential: Option<[u8; 32]>,
}

/// How many answers are remembered for one credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswersOf {
    /// The digest of what the credential is called.
    pub credential: [u8; 32],
    /// How many there are.
    pub count: i64,
    /// The bytes of them.
    pub bytes: i64,
}

/// One end of the answers that are remembered, in the order in which they came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AnswersEnd {
    /// The number of the answer.
    pub number: i64,
    /// The bytes of all answers up to and with this one.
    pub bytes: i64,
    /// The bytes of this one.
    pub size: i64,
}

/// A document that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its table, which may not exist.
    pub table: TableName,
    /// Its id.
    pub id: DocumentId,
}
