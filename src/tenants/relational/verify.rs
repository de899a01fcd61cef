//! Whether all that a sealed tenant has stored is what was sealed, and the newest of it.
//!
//! Each document opens in its place. The journal has a record of each of the last writes, without a
//! gap, each with a MAC that has its number in it: nobody without the key makes one, and one that
//! is left out is missed. So a document that the journal knows must be of the version of its last
//! record, and be there. Nothing is known of documents that were written before the journal begins,
//! and nothing tells that all of the tenant is as it was at an earlier time.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use nimbus_manifests::TenantId;

use super::{
    catalog::{Catalog, malformed},
    documents::{CHUNK, journal_record},
    engine::{Engine, Malformed, Row, Stops, values},
    reader::{DOCUMENT, Reader, stored_document},
    sealed::Seal,
    space::{Space, ask},
};
use crate::documents::{Change, Document, DocumentId, TableName};
use crate::envelope::{Envelope, KeyedFile, RowsError};
use crate::tenants::StoreError;
use crate::tenants::backend::{DocumentRows as _, Rows as _};

/// What is wrong with what a tenant has stored.
#[derive(Debug, thiserror::Error)]
enum Stale {
    #[error(
        "the journal has {found} records of the {expected} from number {floor} on: some were taken away"
    )]
    Gap {
        found: i64,
        expected: i64,
        floor: i64,
    },
    #[error(
        "document {id} of table {table} is at version {found}, and write {last} of the journal was its last: it was put back"
    )]
    PutBack {
        table: TableName,
        id: DocumentId,
        found: i64,
        last: i64,
    },
    #[error(
        "document {id} of table {table} is there, and write {last} of the journal deleted it: it was put back"
    )]
    Deleted {
        table: TableName,
        id: DocumentId,
        last: i64,
    },
    #[error(
        "document {id} of table {table} is gone, and write {last} of the journal was its last: it was taken away"
    )]
    Gone {
        table: TableName,
        id: DocumentId,
        last: i64,
    },
    #[error(
        "document {id} of table {table} is at version {found}, which is no write of the journal"
    )]
    Unwritten {
        table: TableName,
        id: DocumentId,
        found: i64,
    },
}

impl<E: Engine> Catalog<E> {
    /// Proves all documents of a sealed tenant. Blocks.
    pub(super) fn prove(
        &self,
        envelope: &Envelope,
        tenant: &TenantId,
        file: &KeyedFile,
    ) -> Result<(), RowsError> {
        let failed = |error: StoreError| Arc::new(error) as RowsError;
        let space = Space::new(&self.engine, tenant);
        let head = space.statement("SELECT incarnation FROM @head WHERE one = 1", Vec::new());
        let mut rows = ask(&*self.engine, &Stops::default(), &head)
            .map_err(|failure| failed(space.failed(failure)))?;
        let row = rows.first_mut().map(|row| row.array::<16>(0));
        let incarnation = row.unwrap_or(Err(Malformed::of("the head")));
        let incarnation = incarnation.map_err(|what| failed(malformed(what)))?;
        let seal = Some(Seal::of(envelope, file));
        let space = Space::of(&self.engine, tenant, incarnation, seal);
        let mut reader = Reader::new(&Arc::new(space));
        let proven = reader.snapshot(prove);
        proven
            .map_err(failed)?
            .map_err(|stale| Arc::new(stale) as RowsError)
    }
}

type Last = HashMap<(TableName, DocumentId), (i64, Change)>;

fn prove<E: Engine>(reader: &mut Reader<E>) -> Result<Result<(), Stale>, StoreError> {
    let bounds = reader.journal_bounds()?;
    let (mut last, mut found): (Last, i64) = (HashMap::new(), 0);
    let sql = format!(
        "SELECT j.sequence, j.kind, t.name, j.id, j.at_ms, j.mac FROM @journal j JOIN @tables t ON t.number = j.tbl
         WHERE j.sequence > ? ORDER BY j.sequence LIMIT {CHUNK}"
    );
    let mut after = bounds.floor;
    loop {
        let rows = reader.ask(&sql, values![after])?;
        let count = rows.len();
        for row in rows {
            let record = reader.sound(journal_record(&reader.space, row))?;
            after = record.sequence;
            found += 1;
            let of = (record.table, record.id);
            let _before = last.insert(of, (record.sequence, record.change));
        }
        if count < CHUNK {
            break;
        }
    }
    let expected = bounds.latest - bounds.floor;
    if found != expected {
        let floor = bounds.floor;
        return Ok(Err(Stale::Gap {
            found,
            expected,
            floor,
        }));
    }
    for table in tables(reader)? {
        if let Err(stale) = prove_table(reader, &table, &mut last, bounds.floor)? {
            return Ok(Err(stale));
        }
    }
    let gone = last
        .into_iter()
        .find(|(_, (_, change))| *change != Change::Deleted);
    Ok(match gone {
        Some(((table, id), (last, _))) => Err(Stale::Gone { table, id, last }),
        None => Ok(()),
    })
}

fn tables<E: Engine>(reader: &mut Reader<E>) -> Result<Vec<TableName>, StoreError> {
    let rows = reader.ask("SELECT name FROM @tables ORDER BY number", Vec::new())?;
    let name = |mut row: Row| row.text(0)?.parse().map_err(|_| Malformed::of("a name"));
    reader.sound(rows.into_iter().map(name).collect())
}

/// Opens each document of a table, and takes what the journal has of it out of `last`.
fn prove_table<E: Engine>(
    reader: &mut Reader<E>,
    table: &TableName,
    last: &mut Last,
    floor: i64,
) -> Result<Result<(), Stale>, StoreError> {
    let Some(number) = reader.table(table)? else {
        return Ok(Ok(()));
    };
    let sql = format!(
        "SELECT {DOCUMENT} FROM @documents d WHERE tbl = ? AND seq > ? ORDER BY seq LIMIT {CHUNK}"
    );
    let mut after = 0;
    loop {
        let (mut rows, mut stale) = (0, None);
        reader.each(&sql, values![number, after], |space, mut row| {
            let read = stored_document(space, Some(table), &mut row, 0);
            let (seq, document) = read.map_err(|what| space.malformed(what))?;
            (rows, after) = (rows + 1, seq);
            stale = judge(table, &document, last, floor).err();
            Ok(match stale {
                Some(_) => ControlFlow::Break(()),
                None => ControlFlow::Continue(()),
            })
        })?;
        if let Some(stale) = stale {
            return Ok(Err(stale));
        }
        if rows < CHUNK {
            return Ok(Ok(()));
        }
    }
}

/// Whether a document is what the journal says of it, which is taken out of `last`.
fn judge(table: &TableName, document: &Document, last: &mut Last, floor: i64) -> Result<(), Stale> {
    let (id, found) = (document.id, document.version);
    let table = table.clone();
    match last.remove(&(table.clone(), id)) {
        Some((last, Change::Deleted)) => Err(Stale::Deleted { table, id, last }),
        Some((last, _)) if last != found => Err(Stale::PutBack {
            table,
            id,
            found,
            last,
        }),
        None if found > floor => Err(Stale::Unwritten { table, id, found }),
        Some(_) | None => Ok(()),
    }
}
