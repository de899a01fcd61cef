//! What a mutation does: conditions, ids, merges, versions, and the outcome.

use super::StoreError;
use super::backend::{
    ChangedDocument, Conflict, JournalEntry, NewDocument, TableNumber, Transaction,
};
use super::idempotency::AnswerPart;
use super::writing::{Writing, not_found};
use crate::clock::now_ms;
use crate::documents::{
    Change, DocumentId, Done, Expected, Fields, InputError, Mutation, MutationOutcome, Once,
    TableName,
};

impl<T: Transaction> Writing<'_, T> {
    /// Applies mutations in their order; says which one cannot be applied.
    pub(super) fn apply_all(
        &mut self,
        batch: &[Mutation],
    ) -> Result<Vec<MutationOutcome>, StoreError> {
        let apply = |(index, mutation)| {
            self.apply(mutation).map_err(|error| {
                if error.concerns_mutation() {
                    StoreError::InBatch {
                        index,
                        source: Box::new(error),
                    }
                } else {
                    error
                }
            })
        };
        batch.iter().enumerate().map(apply).collect()
    }

    /// Applies one mutation.
    pub(super) fn apply(&mut self, mutation: &Mutation) -> Result<MutationOutcome, StoreError> {
        let applied = match mutation {
            Mutation::Insert { table, fields, id } => self.insert(table, fields, *id),
            Mutation::Update {
                table,
                id,
                patch,
                if_version,
            } => self.update(table, *id, patch, *if_version),
            Mutation::Delete {
                table,
                id,
                if_version,
            } => self.delete(table, *id, *if_version),
            Mutation::Check {
                table,
                id,
                expected,
            } => {
                let version = self.expect(table, *id, expected)?;
                return Ok(MutationOutcome::new(*id, version));
            }
        }?;
        let outcome = MutationOutcome::new(applied.id, Some(self.next_sequence()));
        self.applied.push(applied);
        Ok(outcome)
    }

    /// Applies mutations under a key, which is done once.
    pub(super) fn apply_once(
        &mut self,
        batch: &[Mutation],
        once: &Once,
    ) -> Result<Done<Vec<MutationOutcome>>, StoreError> {
        let (parts, replayed) = self.once(once, |writing| {
            let outcomes = writing.apply_all(batch)?;
            let part = |outcome: &MutationOutcome| AnswerPart {
                id: *outcome.id().as_bytes(),
                // No write has this number.
                number: outcome.version().unwrap_or(0),
            };
            Ok(outcomes.iter().map(part).collect())
        })?;
        let outcome = parts.iter().map(|part| {
            let id = DocumentId::from_bytes(part.id)?;
            let version = (part.number > 0).then_some(part.number);
            Some(MutationOutcome::new(id, version))
        });
        let outcome: Option<Vec<_>> = outcome.collect();
        Ok(Done {
            outcome: outcome.ok_or_else(|| self.malformed("answer"))?,
            replayed,
        })
    }

    fn insert(
        &mut self,
        table: &TableName,
        fields: &Fields,
        chosen: Option<DocumentId>,
    ) -> Result<JournalEntry, StoreError> {
        self.may_grow()?;
        let number = self.number_or_new(table)?;
        self.check(table, number, fields)?;
        // Drawn here and not by the caller, so that ids ascend in the order in which documents are
        // stored.
        let (id, now) = match chosen {
            Some(id) => (id, now_ms()),
            None => {
                let id = DocumentId::generate();
                (id, id.unix_ms())
            }
        };
        let created = self.creation(number, now)?;
        let document = NewDocument {
            sequence: self.next_sequence(),
            id,
            is_drawn: chosen.is_none(),
            created_ms: created,
            fields,
        };
        let stored = self.transaction.insert(number, document)?;
        stored.map_err(|conflict| conflicted(conflict, table, id))?;
        Ok(JournalEntry {
            change: Change::Inserted,
            id,
            table: number,
            at_ms: created,
        })
    }

    /// The time at which a document is created. A clock that is set back a little makes it no older
    /// than the one before it; after more than that the times are out of order, and are right.
    fn creation(&mut self, table: TableNumber, now: i64) -> Result<i64, StoreError> {
        let last = match self.cache.created.get(&table) {
            Some(&last) => last,
            None => self.transaction.last_created(table)?.unwrap_or(now),
        };
        let created = if now < last && last - now <= LITTLE_MS {
            last
        } else {
            now
        };
        if created < last {
            self.transaction.created_out_of_order(table)?;
            self.cache.changed = true;
        }
        self.cache.created.insert(table, created);
        Ok(created)
    }

    fn update(
        &mut self,
        table: &TableName,
        id: DocumentId,
        patch: &Fields,
        if_version: Option<i64>,
    ) -> Result<JournalEntry, StoreError> {
        self.expect_version(table, id, if_version)?;
        self.may_grow()?;
        let number = self.number_of(table, id)?;
        let found = self.transaction.find(number, id)?;
        let found = found.ok_or_else(|| not_found(table, id))?;
        let merged = match found.fields.merged_with(patch) {
            // The patch was read before: what cannot be read is what was stored.
            Err(InputError::Json { .. }) => {
                return Err(self.malformed("a stored document"));
            }
            merged => merged?,
        };
        self.check(table, number, &merged)?;
        // A clock that was set back does not make a document older than it is.
        let now = now_ms().max(found.updated_ms);
        let document = ChangedDocument {
            id,
            sequence: found.sequence,
            version: self.next_sequence(),
            updated_ms: now,
            fields: &merged,
        };
        let stored = self.transaction.update(number, document)?;
        stored.map_err(|conflict| conflicted(conflict, table, id))?;
        Ok(JournalEntry {
            change: Change::Updated,
            id,
            table: number,
            at_ms: now,
        })
    }

    fn delete(
        &mut self,
        table: &TableName,
        id: DocumentId,
        if_version: Option<i64>,
    ) -> Result<JournalEntry, StoreError> {
        self.expect_version(table, id, if_version)?;
        let number = self.number_of(table, id)?;
        if !self.transaction.delete(number, id)? {
            return Err(not_found(table, id));
        }
        Ok(JournalEntry {
            change: Change::Deleted,
            id,
            table: number,
            at_ms: now_ms(),
        })
    }

    /// Rejects what depends on a document that is not as it is expected; gives the version that
    /// exists.
    fn expect(
        &mut self,
        table: &TableName,
        id: DocumentId,
        expected: &Expected,
    ) -> Result<Option<i64>, StoreError> {
        let version = match self.number(table)? {
            None => None,
            Some(number) => self.transaction.version(number, id)?,
        };
        if expected.holds(version) {
            return Ok(version);
        }
        Err(StoreError::PreconditionFailed {
            table: table.clone(),
            id,
            version,
        })
    }

    /// [`Writing::expect`] of a version, if one is named.
    fn expect_version(
        &mut self,
        table: &TableName,
        id: DocumentId,
        if_version: Option<i64>,
    ) -> Result<(), StoreError> {
        match if_version {
            None => Ok(()),
            Some(version) => {
                let expected = Expected::OneOf(vec![version]);
                self.expect(table, id, &expected).map(drop)
            }
        }
    }
}

/// How far the clock may be set back without the times of documents being out of order.
const LITTLE_MS: i64 = 60_000;

/// What a conflict means for who wrote the document.
pub(super) fn conflicted(conflict: Conflict, table: &TableName, id: DocumentId) -> StoreError {
    let table = table.clone();
    match conflict {
        Conflict::Id => StoreError::DocumentExists { table, id },
        Conflict::Index { name, fields } => StoreError::NotUnique {
            table,
            index: name,
            fields,
        },
    }
}
