//! What a tenant has stored, item by item.

use std::fmt;

use zeroize::Zeroizing;

use super::Copied;
use crate::documents::deploy::{Deploy, Generation};
use crate::documents::schedule::{CronState, FinishedJob, Job};
use crate::documents::schema::TableSchema;
use crate::documents::{Document, TableName};
use crate::tenants::CURSOR_KEY_BYTES;
use crate::tenants::backend::{JournalEntry, PlacedAnswer, TableNumber};

/// Something that a tenant has stored.
#[derive(PartialEq, Eq)]
pub enum Item {
    /// A table.
    Table {
        /// Its number.
        number: TableNumber,
        /// Its name.
        name: TableName,
    },
    /// A document.
    Document {
        /// Its table.
        table: TableNumber,
        /// The number of the write that inserted it.
        sequence: i64,
        /// It.
        document: Document,
    },
    /// A schema. Its indexes are made from it.
    Schema {
        /// Its table.
        table: TableNumber,
        /// It.
        schema: TableSchema,
    },
    /// A record of the journal.
    Journal {
        /// Its number.
        sequence: i64,
        /// It.
        entry: JournalEntry,
    },
    /// A generation of what is deployed.
    Generation {
        /// What is said of it.
        generation: Generation,
        /// It, with its files.
        deploy: Deploy,
    },
    /// Which generation is active.
    Active(i64),
    /// A request that was answered under a key.
    Answer(PlacedAnswer),
    /// A cron.
    Cron {
        /// It.
        state: CronState,
        /// What the clock said when its next time was reckoned.
        reckoned_ms: i64,
    },
    /// A job that ran.
    Finished(FinishedJob),
    /// A job that waits.
    Job(Job),
    /// What stands at the tenant's head.
    Head {
        /// The number of the last write.
        latest: i64,
        /// The number of the write before the journal.
        floor: i64,
        /// The key that seals cursors.
        cursor_key: Zeroizing<[u8; CURSOR_KEY_BYTES]>,
    },
}

impl Item {
    /// Its bytes, about.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Document { document, .. } => document.fields.as_json().len(),
            Self::Schema { schema, .. } => schema.to_json().len(),
            Self::Generation { deploy, .. } => deploy.weight(),
            Self::Answer(placed) => placed.answer.answer.len(),
            Self::Cron { state, .. } => state.cron.mutation.weight(),
            Self::Finished(ran) => ran.job.mutation.weight(),
            Self::Job(job) => job.mutation.weight(),
            Self::Table { .. } | Self::Journal { .. } | Self::Active(_) | Self::Head { .. } => 64,
        }
    }

    /// Counts it.
    pub(super) fn count(&self, copied: &mut Copied) {
        match self {
            Self::Table { .. } => copied.tables += 1,
            Self::Document { document, .. } => {
                copied.documents += 1;
                copied.bytes += document.fields.as_json().len() as u64;
            }
            Self::Schema { .. } => copied.schemas += 1,
            Self::Journal { .. } => copied.journal_records += 1,
            Self::Generation { .. } => copied.generations += 1,
            Self::Active(_) => {}
            Self::Answer(_) => copied.answers += 1,
            Self::Cron { .. } => copied.crons += 1,
            Self::Finished(_) => copied.finished_jobs += 1,
            Self::Job(_) => copied.jobs += 1,
            Self::Head { latest, .. } => copied.latest_sequence = *latest,
        }
    }
}

/// Names it. What it holds is the tenant's, and in no message.
impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table { number, name } => write!(f, "table {name} (number {number})"),
            Self::Document { document, .. } => {
                write!(
                    f,
                    "document {} at version {}",
                    document.id, document.version
                )
            }
            Self::Schema { schema, .. } => write!(f, "the schema of table {}", schema.table()),
            Self::Journal { sequence, .. } => write!(f, "record {sequence} of the journal"),
            Self::Generation { generation, .. } => {
                write!(f, "generation {} with its files", generation.generation)
            }
            Self::Active(generation) => write!(f, "generation {generation} as the active one"),
            Self::Answer(placed) => write!(f, "the answer number {}", placed.number),
            Self::Cron { state, .. } => write!(f, "cron {}", state.cron.name),
            Self::Finished(ran) => write!(f, "job {} of the history", ran.job.id),
            Self::Job(job) => write!(f, "job {}", job.id),
            Self::Head { latest, .. } => write!(f, "number {latest} of the last write"),
        }
    }
}

/// As [`Display`](fmt::Display): a cursor key and documents stay out of logs.
impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Item({self})")
    }
}
