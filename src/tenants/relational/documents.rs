//! Documents and their journal.

use std::ops::ControlFlow;

use super::{
    columns::{FIELDS, JOURNAL},
    engine::{Engine, Malformed, Row, Value, parameter_rows, values},
    held::Table,
    reader::{DOCUMENT, Reader, document_row, stored_document, stored_id},
    space::Space,
    transaction::RelationalTransaction,
};
use crate::documents::query::{Position, Query, QueryPage};
use crate::documents::{Change, Document, DocumentId, Fields, JournalRecord, TableName};
use crate::tenants::StoreError;
use crate::tenants::backend::{
    ChangedDocument, Conflict, DocumentRows, DocumentWrites, JournalBounds, JournalEntry,
    NewDocument, StoredDocument, TableNumber,
};

impl<E: Engine> DocumentRows for Reader<E> {
    fn table(&mut self, name: &TableName) -> Result<Option<TableNumber>, StoreError> {
        if let Some(&number) = self.numbers.get(name) {
            return Ok(Some(number));
        }
        let rows = self.ask_structure(
            "SELECT number FROM @tables WHERE name = ?",
            values![name.as_str()],
        )?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let number = self.sound(row.integer(0))?;
        self.learn_number(name.clone(), number);
        Ok(Some(number))
    }

    fn document(
        &mut self,
        table: TableNumber,
        id: DocumentId,
    ) -> Result<Option<Document>, StoreError> {
        if let Some(found) = self.found.remove(&(table, id)) {
            return Ok(found);
        }
        let name = self.sealed_table(table)?;
        let sql = format!("SELECT {DOCUMENT} FROM @documents d WHERE tbl = ? AND id = ?");
        let row = self.ask_one(&sql, values![table, id.as_bytes()])?;
        let document = row.map(|mut row| stored_document(&self.space, name.as_ref(), &mut row, 0));
        let found = self.sound(document.transpose())?;
        Ok(found.map(|(_seq, document)| document))
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
        let name = self.sealed_table(table)?;
        let sql = format!(
            "SELECT {DOCUMENT} FROM @documents d WHERE tbl = ? AND seq > ? ORDER BY seq LIMIT {CHUNK}"
        );
        let mut after = 0;
        loop {
            let (mut rows, mut stopped) = (0, false);
            self.each(&sql, values![table, after], |space, mut row| {
                let read = stored_document(space, name.as_ref(), &mut row, 0);
                let (seq, document) = read.map_err(|what| space.malformed(what))?;
                (rows, after) = (rows + 1, seq);
                let flow = each(document.id, &document.fields);
                stopped = flow.is_break();
                Ok(flow)
            })?;
            if stopped || rows < CHUNK {
                return Ok(());
            }
        }
    }

    fn each_of(
        &mut self,
        table: TableNumber,
        ids: &[DocumentId],
        mut each: impl FnMut(DocumentId, &Fields) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let name = self.sealed_table(table)?;
        for ids in ids.chunks(CHUNK) {
            // Read in whatever order, and handed out in this one.
            let sql = format!(
                "SELECT {DOCUMENT} FROM @documents d WHERE (tbl, id) IN ({{rows}} {})",
                parameter_rows(2, ids.len())
            );
            let values = ids.iter().flat_map(|id| values![table, id.as_bytes()]);
            let rows = self.ask(&sql, values.collect())?;
            let found: Result<std::collections::HashMap<_, _>, _> = rows
                .into_iter()
                .map(|mut row| {
                    let read = stored_document(&self.space, name.as_ref(), &mut row, 0);
                    read.map(|(_seq, document)| (document.id, document.fields))
                })
                .collect();
            let found = self.sound(found)?;
            for id in ids {
                if let Some(fields) = found.get(id)
                    && each(*id, fields).is_break()
                {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn journal_bounds(&mut self) -> Result<JournalBounds, StoreError> {
        let row = self.ask_one(
            "SELECT seq, (SELECT min(sequence) FROM @journal) FROM @head WHERE one = 1",
            Vec::new(),
        )?;
        let bounds = || {
            let row = row.ok_or(Malformed::of("the head"))?;
            let latest = row.integer(0)?;
            let first = row.maybe_integer(1)?;
            Ok(JournalBounds {
                latest,
                floor: first.map_or(latest, |first| first - 1),
            })
        };
        self.sound(bounds())
    }

    fn journal(&mut self, after: i64, limit: usize) -> Result<Vec<JournalRecord>, StoreError> {
        let rows = self.ask(
            "SELECT j.sequence, j.kind, t.name, j.id, j.at_ms, j.mac FROM @journal j JOIN @tables t ON t.number = j.tbl
             WHERE j.sequence > ? ORDER BY j.sequence LIMIT ?",
            values![after, limit],
        )?;
        let records = rows.into_iter().map(|row| journal_record(&self.space, row));
        self.sound(records.collect())
    }

    fn written_since(
        &mut self,
        table: TableNumber,
        after: i64,
    ) -> Result<Vec<DocumentId>, StoreError> {
        let rows = self.ask(
            "SELECT id FROM @journal WHERE sequence > ? AND tbl = ? ORDER BY sequence",
            values![after, table],
        )?;
        let ids = rows.into_iter().map(|mut row| stored_id(&mut row, 0));
        self.sound(ids.collect())
    }
}

impl<E: Engine> DocumentWrites for RelationalTransaction<E> {
    fn count_tables(&mut self) -> Result<usize, StoreError> {
        let rows = self
            .reader
            .ask_structure("SELECT count(*) FROM @tables", Vec::new())?;
        let count = rows.first().map_or(Ok(0), |row| row.integer(0));
        Ok(usize::try_from(self.reader.sound(count)?).unwrap_or(usize::MAX))
    }

    fn create_table(&mut self, name: &TableName) -> Result<TableNumber, StoreError> {
        let rows = self
            .reader
            .ask_structure("SELECT coalesce(max(number), 0) FROM @tables", Vec::new())?;
        let last = rows.first().map_or(Ok(0), |row| row.integer(0));
        let number = self.reader.sound(last)? + 1;
        self.put_new(Table::Tables, values![number], values![name.as_str()]);
        self.reader.learn_number(name.clone(), number);
        Ok(number)
    }

    fn version(&mut self, table: TableNumber, id: DocumentId) -> Result<Option<i64>, StoreError> {
        let known = self.known(table, id)?;
        Ok(known.as_ref().map(|(_seq, document)| document.version))
    }

    fn find(
        &mut self,
        table: TableNumber,
        id: DocumentId,
    ) -> Result<Option<StoredDocument>, StoreError> {
        let known = self.known(table, id)?;
        Ok(known.as_ref().map(|(seq, document)| StoredDocument {
            sequence: *seq,
            updated_ms: document.updated_ms,
            fields: document.fields.clone(),
        }))
    }

    fn last_created(&mut self, table: TableNumber) -> Result<Option<i64>, StoreError> {
        let rows = self.reader.ask_structure(
            "SELECT created FROM @documents WHERE tbl = ? ORDER BY seq DESC LIMIT 1",
            values![table],
        )?;
        let created = rows.first().map(|row| row.integer(0)).transpose();
        self.reader.sound(created)
    }

    /// No query takes the order of insertion for that of creation.
    fn created_out_of_order(&mut self, _table: TableNumber) -> Result<(), StoreError> {
        Ok(())
    }

    fn insert(
        &mut self,
        table: TableNumber,
        document: NewDocument<'_>,
    ) -> Result<Result<(), Conflict>, StoreError> {
        let NewDocument {
            sequence,
            id,
            created_ms,
            fields,
            is_drawn,
        } = document;
        if !is_drawn && self.known(table, id)?.is_some() {
            return Ok(Err(Conflict::Id));
        }
        if let Err(conflict) = self.reindex(table, sequence, None, Some(fields))? {
            return Ok(Err(conflict));
        }
        let document = Document {
            id,
            created_ms,
            updated_ms: created_ms,
            version: sequence,
            fields: fields.clone(),
        };
        let row = self.stored_row(table, sequence, &document)?;
        self.put_new(Table::Documents, values![table, sequence], row);
        let documents = &mut self.reader.writes.documents;
        documents.set((table, id), Some((sequence, document)));
        Ok(Ok(()))
    }

    fn update(
        &mut self,
        table: TableNumber,
        document: ChangedDocument<'_>,
    ) -> Result<Result<(), Conflict>, StoreError> {
        let ChangedDocument {
            id,
            sequence,
            version,
            updated_ms,
            fields,
        } = document;
        let Some((_, before)) = self.known(table, id)?.clone() else {
            let missing = Malformed::of("the document to update");
            return Err(self.reader.space.malformed(missing));
        };
        if let Err(conflict) = self.reindex(table, sequence, Some(&before.fields), Some(fields))? {
            return Ok(Err(conflict));
        }
        let document = Document {
            version,
            updated_ms,
            fields: fields.clone(),
            ..before
        };
        let row = self.stored_row(table, sequence, &document)?;
        self.put(Table::Documents, values![table, sequence], Some(row));
        let documents = &mut self.reader.writes.documents;
        documents.set((table, id), Some((sequence, document)));
        Ok(Ok(()))
    }

    fn delete(&mut self, table: TableNumber, id: DocumentId) -> Result<bool, StoreError> {
        let Some((seq, before)) = self.known(table, id)?.clone() else {
            return Ok(false);
        };
        // What goes conflicts with nothing.
        let _gone = self.reindex(table, seq, Some(&before.fields), None)?;
        self.put(Table::Documents, values![table, seq], None);
        self.reader.writes.documents.set((table, id), None);
        Ok(true)
    }

    fn append_journal(&mut self, first: i64, entries: &[JournalEntry]) -> Result<(), StoreError> {
        for (sequence, entry) in (first..).zip(entries) {
            let JournalEntry {
                change,
                table,
                id,
                at_ms,
            } = entry;
            let name = self.reader.sealed_table(*table)?;
            let name = name.as_ref().map(TableName::as_str);
            let kind = change_number(*change);
            let mac = (self.reader.space).mac(JOURNAL, || {
                values![sequence, kind, name, id.as_bytes(), *at_ms]
            });
            let row = values![kind, *table, id.as_bytes(), *at_ms, mac];
            self.put_new(Table::Journal, values![sequence], row);
        }
        self.written = first + entries.len() as i64 - 1;
        Ok(())
    }

    fn trim_journal(&mut self, last: i64) -> Result<(), StoreError> {
        self.put_statement("DELETE FROM @journal WHERE sequence <= ?", values![last]);
        Ok(())
    }
}

impl<E: Engine> RelationalTransaction<E> {
    /// The row of a document behind its key.
    fn stored_row(
        &mut self,
        table: TableNumber,
        seq: i64,
        document: &Document,
    ) -> Result<Vec<Value>, StoreError> {
        let name = self.reader.sealed_table(table)?;
        let Document {
            id,
            version,
            created_ms,
            updated_ms,
            ref fields,
        } = *document;
        let sealed_with =
            || document_row(name.as_ref(), seq, id, [created_ms, updated_ms, version]);
        let fields = (self.reader.space).seal(FIELDS, sealed_with, fields.as_json())?;
        Ok(values![
            id.as_bytes(),
            version,
            created_ms,
            updated_ms,
            fields
        ])
    }
}

/// A record of the journal, whose columns are its number, the change, the table's name, the
/// document, the time and the MAC.
pub(super) fn journal_record<E>(
    space: &Space<E>,
    mut row: Row,
) -> Result<JournalRecord, Malformed> {
    let (sequence, kind, at_ms) = (row.integer(0)?, row.integer(1)?, row.integer(4)?);
    let (name, id) = (row.text(2)?, stored_id(&mut row, 3)?);
    let of = || values![sequence, kind, &*name, id.as_bytes(), at_ms];
    space.check_mac(JOURNAL, of, &row.bytes(5)?)?;
    let change = match kind {
        1 => Change::Inserted,
        2 => Change::Updated,
        3 => Change::Deleted,
        _ => return Err(Malformed::of("a change")),
    };
    Ok(JournalRecord {
        sequence,
        change,
        table: name.parse().map_err(|_| Malformed::of("a name"))?,
        id,
        at_ms,
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

/// Rows that are read at a time. The rest of them is read to its end where somebody has enough.
pub(super) const CHUNK: usize = 256;
