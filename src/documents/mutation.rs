//! Changes to documents, as data.

use super::{DocumentId, Fields, TableName};

/// One change to one document.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mutation {
    /// Adds a document. Its table comes into being with its first document.
    Insert {
        /// Where it goes.
        table: TableName,
        /// What it holds.
        fields: Fields,
        /// The id a client chose; the store draws one otherwise.
        id: Option<DocumentId>,
    },
    /// Merges fields into a document, see [`Fields::merged_with`].
    Update {
        /// Where the document is.
        table: TableName,
        /// Which document.
        id: DocumentId,
        /// The fields to set.
        patch: Fields,
    },
    /// Removes a document.
    Delete {
        /// Where the document is.
        table: TableName,
        /// Which document.
        id: DocumentId,
    },
}

impl Mutation {
    /// About how many bytes it occupies while it waits to be applied.
    #[must_use]
    pub fn weight(&self) -> usize {
        let fields = match self {
            Self::Insert { fields, .. } => fields.as_json().len(),
            Self::Update { patch, .. } => patch.as_json().len(),
            Self::Delete { .. } => 0,
        };
        size_of::<Self>() + fields
    }
}

/// What a mutation that was applied did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MutationOutcome {
    /// A document was added.
    Inserted {
        /// Its id.
        id: DocumentId,
    },
    /// A document was changed.
    Updated {
        /// Its id.
        id: DocumentId,
    },
    /// A document was removed.
    Deleted {
        /// Its id.
        id: DocumentId,
    },
}

impl MutationOutcome {
    /// The document that was added, changed or removed.
    #[must_use]
    pub fn id(&self) -> DocumentId {
        match *self {
            Self::Inserted { id } | Self::Updated { id } | Self::Deleted { id } => id,
        }
    }
}
