//! The seam: what a storage engine provides, so that the core can keep tenants on it.
//!
//! Rows go in and rows come out. Validation, merges, ids, journal numbers, due times, limits and
//! retention are decided above this module, once for all backends. A backend knows how rows are
//! stored, found and made durable, and nothing of what they mean.
//!
//! Calls block. They run on the tenant's writer thread, or on a thread of the blocking pool for
//! reads; an engine behind a network blocks such a thread on its own runtime. The core is generic
//! over these traits: no call within a transaction is dynamic.
//!
//! **Round trips.** One transaction carries the work of many callers. The calls within it are one
//! row each, because the outcome of one mutation decides about the next, and because an embedded
//! engine answers a row in microseconds. An engine behind a network answers them from memory:
//! [`Transaction::announce`] names up front the mutations and keys of the whole group, so that one
//! round trip reads what they need; writes are held back, seen by later calls of the same
//! transaction, and sent by [`Transaction::commit`]. Savepoints are then marks in that memory. The
//! number of round trips does not grow with the group.

mod engine;
mod moved;
mod rows;
mod storage;
mod stored;

pub use engine::{Arrival, Backend};
pub(crate) use moved::{MOVED_BYTES, MOVED_ROWS};
pub use moved::{MovedRows, MovedWrites, PlacedAnswer};
pub use rows::{
    AnswerWrites, DeployRows, DeployWrites, DocumentRows, DocumentWrites, JobRows, JobWrites, Rows,
    SchemaRows, SchemaWrites,
};
pub use storage::{
    Opened, OpenedConnection, OthersWrote, Standing, Storage, Transaction, Upcoming,
};
pub use stored::{
    AnswersEnd, AnswersOf, ChangedDocument, Conflict, JournalBounds, JournalEntry, NewDocument,
    StoredAnswer, StoredDocument, StoredIndex, TableNumber, Wanted,
};
