//! Documents and their journal as SQL.

use std::ops::ControlFlow;

use rusqlite::{OptionalExtension as _, Row, params};

use super::indexes::violated;
use super::reader::Reader;
use super::rows::{DOCUMENT, VERSION, malformed, sql_limit};
use super::transaction::SqliteTransaction;
use super::{system_fields, tables};
use crate::documents::query::{Position, Query, QueryPage};
use crate::documents::{Change, Document, DocumentId, Fields, JournalRecord, TableName};
use crate::tenants::StoreError;
use crate::tenants::backend::{
    ChangedDocument, Conflict, DocumentRows, DocumentWrites, JournalBounds, JournalEntry,
    NewDocument, StoredDocument, TableNumber,
};

impl DocumentRows for Reader {
    fn table(&mut self, name: &TableName) -> Result<Option<TableNumber>, StoreError> {
        self.number(name)
    }

    fn document(
        &mut self,
        table: TableNumber,
        id: DocumentId,
    ) -> Result<Option<Document>, StoreError> {
        let sql = format!("SELECT {DOCUMENT} FROM documents_{table} WHERE id = ?1");
        self.on(|connection| {
            connection
                .prepare_cached(&sql)?
                .query_row(params![id.as_bytes()], |row| stored_document(row, 0))
                .optional()
        })
    }

    fn query(
        &mut self,
        table: TableNumber,
        query: &Query,
        after: Option<&Position>,
        limit: usize,
        most_bytes: usize,
        may_scan: &mut dyn FnMut() -> bool,
    ) -> Result<Option<QueryPage>, StoreError> {
        self.run_query(table, query, after, limit, most_bytes, may_scan)
    }

    fn each_document(
        &mut self,
        table: TableNumber,
        mut each: impl FnMut(DocumentId, &Fields) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.on(|connection| {
            let mut all = connection.prepare(&format!(
                "SELECT id, json(fields) FROM documents_{table} ORDER BY seq"
            ))?;
            let mut rows = all.query([])?;
            while let Some(row) = rows.next()? {
                let id = DocumentId::from_bytes(row.get(0)?).ok_or_else(|| malformed(0, "id"))?;
                if each(id, &stored_fields(row, 1)?).is_break() {
                    break;
                }
            }
            Ok(())
        })
    }

    fn each_of(
        &mut self,
        table: TableNumber,
        ids: &[DocumentId],
        mut each: impl FnMut(DocumentId, &Fields) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.on(|connection| {
            let mut one = connection.prepare_cached(&format!(
                "SELECT json(fields) FROM documents_{table} WHERE id = ?1"
            ))?;
            for &id in ids {
                let fields = one
                    .query_row(params![id.as_bytes()], |row| stored_fields(row, 0))
                    .optional()?;
                if let Some(fields) = fields
                    && each(id, &fields).is_break()
                {
                    break;
                }
            }
            Ok(())
        })
    }

    fn journal_bounds(&mut self) -> Result<JournalBounds, StoreError> {
        self.on(tables::journal_bounds)
    }

    fn journal(&mut self, after: i64, limit: usize) -> Result<Vec<JournalRecord>, StoreError> {
        self.on(|connection| {
            connection
                .prepare_cached(
                    "SELECT sequence, change, name, id, at
                     FROM nimbus_journal CROSS JOIN nimbus_tables USING (number)
                     WHERE sequence > ?1 ORDER BY sequence LIMIT ?2",
                )?
                .query_map(params![after, sql_limit(limit)], journal_record)?
                .collect()
        })
    }

    fn written_since(
        &mut self,
        table: TableNumber,
        after: i64,
    ) -> Result<Vec<DocumentId>, StoreError> {
        self.on(|connection| {
            connection
                .prepare_cached(
                    "SELECT id FROM nimbus_journal WHERE sequence > ?1 AND number = ?2 ORDER BY sequence",
                )?
                .query_map(params![after, table], |row| {
                    DocumentId::from_bytes(row.get(0)?).ok_or_else(|| malformed(0, "id"))
                })?
                .collect()
        })
    }
}

impl DocumentWrites for SqliteTransaction {
    fn count_tables(&mut self) -> Result<usize, StoreError> {
        self.count("SELECT count(*) FROM nimbus_tables")
    }

    fn create_table(&mut self, name: &TableName) -> Result<TableNumber, StoreError> {
        self.on(|connection| tables::create_table(connection, name, None))
    }

    fn version(&mut self, table: TableNumber, id: DocumentId) -> Result<Option<i64>, StoreError> {
        let sql = format!("SELECT {VERSION} FROM documents_{table} WHERE id = ?1");
        self.on(|connection| {
            connection
                .prepare_cached(&sql)?
                .query_row([&id.as_bytes()[..]], |row| row.get(0))
                .optional()
        })
    }

    fn find(
        &mut self,
        table: TableNumber,
        id: DocumentId,
    ) -> Result<Option<StoredDocument>, StoreError> {
        let sql = format!("SELECT seq, updated, json(fields) FROM documents_{table} WHERE id = ?1");
        self.on(|connection| {
            connection
                .prepare_cached(&sql)?
                .query_row(params![id.as_bytes()], |row| {
                    Ok(StoredDocument {
                        sequence: row.get(0)?,
                        updated_ms: row.get(1)?,
                        fields: stored_fields(row, 2)?,
                    })
                })
                .optional()
        })
    }

    fn last_created(&mut self, table: TableNumber) -> Result<Option<i64>, StoreError> {
        self.on(|connection| system_fields::last_created(connection, table))
    }

    fn created_out_of_order(&mut self, table: TableNumber) -> Result<(), StoreError> {
        let sql = "UPDATE nimbus_tables SET ascending = 0 WHERE number = ?1";
        self.change(sql, [table]).map(drop)
    }

    fn insert(
        &mut self,
        table: TableNumber,
        document: NewDocument<'_>,
    ) -> Result<Result<(), Conflict>, StoreError> {
        let sql = format!(
            "INSERT INTO documents_{table} (seq, id, created, updated, fields) VALUES (?1, ?2, ?3, ?3, jsonb(?4))"
        );
        let inserted = self
            .connection()
            .prepare_cached(&sql)
            .and_then(|mut insert| {
                insert.execute(params![
                    document.sequence,
                    document.id.as_bytes(),
                    document.created_ms,
                    document.fields.as_json()
                ])
            });
        self.stored(inserted)
    }

    fn update(
        &mut self,
        table: TableNumber,
        document: ChangedDocument<'_>,
    ) -> Result<Result<(), Conflict>, StoreError> {
        let sql = format!(
            "UPDATE documents_{table} SET updated = ?2, fields = jsonb(?3), version = ?4 WHERE seq = ?1"
        );
        let updated = self.connection().prepare_cached(&sql).and_then(|mut set| {
            set.execute(params![
                document.sequence,
                document.updated_ms,
                document.fields.as_json(),
                document.version
            ])
        });
        self.stored(updated)
    }

    fn delete(&mut self, table: TableNumber, id: DocumentId) -> Result<bool, StoreError> {
        let sql = format!("DELETE FROM documents_{table} WHERE id = ?1");
        let deleted = self.on(|connection| {
            connection
                .prepare_cached(&sql)?
                .execute(params![id.as_bytes()])
        });
        Ok(deleted? > 0)
    }

    fn append_journal(&mut self, first: i64, entries: &[JournalEntry]) -> Result<(), StoreError> {
        self.on(|connection| {
            for (sequence, entry) in (first..).zip(entries) {
                let JournalEntry {
                    change,
                    table,
                    id,
                    at_ms,
                } = entry;
                let change = change_number(*change);
                let _one = connection
                    .prepare_cached("INSERT INTO nimbus_journal VALUES (?1, ?2, ?3, ?4, ?5)")?
                    .execute(params![sequence, change, table, id.as_bytes(), at_ms])?;
            }
            Ok(())
        })?;
        self.wrote(first + entries.len() as i64 - 1);
        Ok(())
    }

    fn trim_journal(&mut self, last: i64) -> Result<(), StoreError> {
        let sql = "DELETE FROM nimbus_journal WHERE sequence <= ?1";
        self.change(sql, [last]).map(drop)
    }
}

impl SqliteTransaction {
    /// Tells a conflict from a failure.
    pub(super) fn stored(
        &self,
        written: rusqlite::Result<usize>,
    ) -> Result<Result<(), Conflict>, StoreError> {
        match written {
            Ok(_one) => Ok(Ok(())),
            Err(error) => match violated(&error) {
                Some(violated) => Ok(Err(self.conflict(violated)?)),
                None => Err(self.failure(error)),
            },
        }
    }
}

/// A document whose columns begin with this one.
pub(super) fn stored_document(row: &Row<'_>, first: usize) -> rusqlite::Result<Document> {
    let id = DocumentId::from_bytes(row.get(first)?).ok_or_else(|| malformed(first, "id"))?;
    Ok(Document {
        id,
        created_ms: row.get(first + 1)?,
        updated_ms: row.get(first + 2)?,
        version: row.get(first + 3)?,
        fields: stored_fields(row, first + 4)?,
    })
}

fn stored_fields(row: &Row<'_>, column: usize) -> rusqlite::Result<Fields> {
    Fields::from_stored(row.get(column)?).ok_or_else(|| malformed(column, "fields"))
}

fn journal_record(row: &Row<'_>) -> rusqlite::Result<JournalRecord> {
    let change = match row.get(1)? {
        1 => Change::Inserted,
        2 => Change::Updated,
        3 => Change::Deleted,
        _ => return Err(malformed(1, "change")),
    };
    let table: String = row.get(2)?;
    Ok(JournalRecord {
        sequence: row.get(0)?,
        change,
        table: table.parse().map_err(|_| malformed(2, "name"))?,
        id: DocumentId::from_bytes(row.get(3)?).ok_or_else(|| malformed(3, "id"))?,
        at_ms: row.get(4)?,
    })
}

/// A change as the journal holds it; [`journal_record`] reads it.
fn change_number(change: Change) -> i64 {
    match change {
        Change::Inserted => 1,
        Change::Updated => 2,
        Change::Deleted => 3,
    }
}
