//! A tenant's transaction in the hands of those whose work is done in it: savepoints, room, and
//! what the writer knows of tables.

use std::{collections::HashMap, error::Error as StdError, sync::Arc};

use nimbus_manifests::TenantId;

use super::backend::{DocumentRows as _, JournalEntry, OthersWrote, TableNumber, Transaction};
use super::error::NoRoom;
use super::{DueLog, MAX_TABLES, StoreError, journal};
use crate::documents::schema::TableSchema;
use crate::documents::{DocumentId, TableName};
use crate::metrics;

/// What the writer knows of its tenant without asking. Forgotten whenever something that changed it
/// is undone.
#[derive(Debug, Default)]
pub(super) struct WriterCache {
    /// Numbers of tables that exist. A number never changes.
    tables: HashMap<TableName, TableNumber>,
    /// The schemas of tables; `None` of those without one.
    pub(super) schemas: HashMap<TableNumber, Option<Arc<TableSchema>>>,
    /// When the last document of a table was created, or a little later where that was undone.
    pub(super) created: HashMap<TableNumber, i64>,
    /// Tables or schemas changed since the last savepoint.
    pub(super) changed: bool,
}

impl WriterCache {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The writer's transaction.
pub(super) struct Writing<'a, T> {
    pub(super) tenant: &'a TenantId,
    pub(super) transaction: &'a mut T,
    pub(super) cache: &'a mut WriterCache,
    /// Receives due times before the work is stored.
    pub(super) due: &'a dyn DueLog,
    /// The number of the last write before the transaction.
    before: i64,
    /// What was done so far, for the journal.
    pub(super) applied: Vec<JournalEntry>,
    /// Whether all of this is undone in the end.
    pub(super) rehearsing: bool,
}

impl<'a, T: Transaction> Writing<'a, T> {
    /// Begins a transaction.
    pub(super) fn begin(
        tenant: &'a TenantId,
        transaction: &'a mut T,
        cache: &'a mut WriterCache,
        due: &'a dyn DueLog,
    ) -> Result<Self, StoreError> {
        let before = transaction.begin()?;
        match transaction.others_wrote() {
            OthersWrote::Nothing => {}
            OthersWrote::Rows => cache.created.clear(),
            OthersWrote::Structure => cache.clear(),
        }
        Ok(Self {
            tenant,
            transaction,
            cache,
            due,
            before,
            applied: Vec::new(),
            rehearsing: false,
        })
    }

    /// The number that the next write gets.
    pub(super) fn next_sequence(&self) -> i64 {
        // One transaction has some thousand writes.
        self.before + self.applied.len() as i64 + 1
    }

    /// Rejects what makes the tenant grow when it may not. Work that writes much asks again in
    /// between.
    pub(super) fn may_grow(&mut self) -> Result<(), StoreError> {
        let Some(what) = self.transaction.no_room()? else {
            return Ok(());
        };
        match what {
            NoRoom::Tenant { .. } => metrics::REFUSED_TENANT_LIMIT.increment(1),
            NoRoom::Disk => metrics::REFUSED_DISK_RESERVE.increment(1),
            // Counted where it was refused.
            NoRoom::Temporary => {}
        }
        let tenant = self.tenant.clone();
        Err(StoreError::NoRoom { tenant, what })
    }

    /// Does some work in a savepoint of its own. The inner error means that all of it was undone,
    /// the outer one that the whole transaction is gone. Savepoints nest.
    pub(super) fn all_or_nothing<R>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<R, StoreError>,
    ) -> Result<Result<R, StoreError>, StoreError> {
        self.in_savepoint(true, work)
    }

    /// Does some work as [`Writing::all_or_nothing`] does, and undoes it all the same: what would
    /// have come of it.
    pub(super) fn rehearse<R>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<R, StoreError>,
    ) -> Result<Result<R, StoreError>, StoreError> {
        let before = std::mem::replace(&mut self.rehearsing, true);
        let rehearsed = self.in_savepoint(false, work);
        self.rehearsing = before;
        rehearsed
    }

    /// Does one mutation without a savepoint: one that is refused has changed nothing. The errors
    /// are those of [`Writing::all_or_nothing`].
    pub(super) fn at_once<R>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<R, StoreError>,
    ) -> Result<Result<R, StoreError>, StoreError> {
        match work(self) {
            // What meets damage half way leaves its first half behind, unless all is undone.
            Err(error @ StoreError::Corrupt { .. }) => Err(error),
            // Some failures, a full disk among them, end the transaction.
            Err(error) if !self.transaction.is_open() => Err(error),
            result => Ok(result),
        }
    }

    fn in_savepoint<R>(
        &mut self,
        keep: bool,
        work: impl FnOnce(&mut Self) -> Result<R, StoreError>,
    ) -> Result<Result<R, StoreError>, StoreError> {
        self.transaction.savepoint()?;
        let applied = self.applied.len();
        let changed = std::mem::take(&mut self.cache.changed);
        let result = work(self);
        match &result {
            Ok(_) if keep => {
                self.transaction.release()?;
                self.cache.changed |= changed;
            }
            // Some failures, a full disk among them, end the transaction.
            Err(error) if !self.transaction.is_open() => return Err(error.clone()),
            _ => {
                self.transaction.undo()?;
                self.applied.truncate(applied);
                if self.cache.changed {
                    self.cache.clear();
                }
                self.cache.changed = changed;
            }
        }
        Ok(result)
    }

    /// Appends to the journal what was done.
    pub(super) fn write_journal(self) -> Result<(), StoreError> {
        let Self {
            transaction,
            before,
            applied,
            ..
        } = self;
        transaction.append_journal(before + 1, &applied)?;
        let last = before + applied.len() as i64;
        match journal::expired(before, last) {
            Some(expired) => transaction.trim_journal(expired),
            None => Ok(()),
        }
    }

    /// The number of a table of documents.
    pub(super) fn number(&mut self, table: &TableName) -> Result<Option<TableNumber>, StoreError> {
        if let Some(&number) = self.cache.tables.get(table) {
            return Ok(Some(number));
        }
        let number = self.transaction.rows()?.table(table)?;
        if let Some(number) = number {
            self.cache.tables.insert(table.clone(), number);
        }
        Ok(number)
    }

    /// The number of a table, which is created if it does not exist.
    pub(super) fn number_or_new(&mut self, table: &TableName) -> Result<TableNumber, StoreError> {
        if let Some(number) = self.number(table)? {
            return Ok(number);
        }
        // Several statements, which may be all that its caller does before it fails.
        let number = self.all_or_nothing(|writing| {
            if writing.transaction.count_tables()? >= MAX_TABLES {
                return Err(StoreError::TooManyTables {
                    table: table.clone(),
                });
            }
            writing.transaction.create_table(table)
        })??;
        self.cache.changed = true;
        self.cache.tables.insert(table.clone(), number);
        Ok(number)
    }

    /// The number of the table that a document would be in.
    pub(super) fn number_of(
        &mut self,
        table: &TableName,
        id: DocumentId,
    ) -> Result<TableNumber, StoreError> {
        self.number(table)?.ok_or_else(|| not_found(table, id))
    }

    /// A stored value that no version of Nimbus has written.
    pub(super) fn malformed(&self, what: &'static str) -> StoreError {
        malformed(self.tenant, what)
    }
}

pub(super) fn not_found(table: &TableName, id: DocumentId) -> StoreError {
    StoreError::DocumentNotFound {
        table: table.clone(),
        id,
    }
}

/// A stored value that no version of Nimbus has written.
pub(super) fn malformed(tenant: &TenantId, what: &'static str) -> StoreError {
    let source: Arc<dyn StdError + Send + Sync> = Arc::new(Malformed(what));
    StoreError::Corrupt {
        tenant: tenant.clone(),
        source,
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0} is malformed")]
struct Malformed(&'static str);
