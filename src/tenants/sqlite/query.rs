//! Answering queries: the statements of a query, run in turn on one snapshot. What a query means is
//! defined in `docs/queries.md`; how it becomes SQL, in [`statement`](super::statement).

use rusqlite::{Connection, Row, params, params_from_iter, types::Value as Sql};

use super::documents::stored_document;
use super::error::failure;
use super::plans::Plans;
use super::reader::Reader;
use super::rows::{DOCUMENT, malformed, take_room};
use super::statement::Statement;
use super::system_fields::{Seqs, asks_for_creation};
use crate::documents::query::{Key, Position, Query, QueryPage, TypeRank};
use crate::tenants::StoreError;
use crate::tenants::backend::TableNumber;
use crate::tenants::keyset::PageBuilder;

impl Reader {
    /// The documents of a table that a query finds after a position; `None` where every document
    /// may have to be looked at, and `may_scan` says no.
    pub(super) fn run_query(
        &mut self,
        number: TableNumber,
        query: &Query,
        after: Option<&Position>,
        limit: usize,
        most_bytes: usize,
        may_scan: &mut dyn FnMut() -> bool,
    ) -> Result<Option<QueryPage>, StoreError> {
        let Self {
            tenant,
            connection,
            plans,
            ascending,
            ..
        } = self;
        let page = PageBuilder::new(limit, most_bytes);
        let run = || {
            let indexes = plans.indexes(connection, number)?;
            if asks_for_creation(query) {
                let snapshot = connection.transaction()?;
                if !ascending.is_known(&snapshot, number)? && !may_scan() {
                    return Ok(None);
                }
                let seqs = Seqs::of(query, &snapshot, number, ascending)?;
                let statements = Statement::all(number, query, after, limit, &indexes, seqs);
                return fill(page, &snapshot, plans, number, &statements, may_scan);
            }
            let statements = Statement::all(number, query, after, limit, &indexes, None);
            match &statements[..] {
                // A statement by itself sees one state of the file.
                [statement] if !plans.plan(connection, statement)?.sorts => {
                    fill(page, connection, plans, number, &statements, may_scan)
                }
                statements => {
                    let snapshot = connection.transaction()?;
                    fill(page, &snapshot, plans, number, statements, may_scan)
                }
            }
        };
        run().map_err(|error| failure(tenant, error))
    }
}

/// Runs statement after statement, until the page is full.
fn fill(
    mut page: PageBuilder,
    snapshot: &Connection,
    plans: &mut Plans,
    number: TableNumber,
    statements: &[Statement],
    may_scan: &mut dyn FnMut() -> bool,
) -> rusqlite::Result<Option<QueryPage>> {
    for statement in statements {
        if plans.plan(snapshot, statement)?.scans && !may_scan() {
            return Ok(None);
        }
    }
    for statement in statements {
        let full = if plans.plan(snapshot, statement)?.sorts {
            find_and_read(&mut page, snapshot, number, statement)?
        } else {
            read(&mut page, snapshot, statement)?
        };
        if full {
            return Ok(Some(page.finish(true)));
        }
    }
    Ok(Some(page.finish(false)))
}

/// Reads the documents as they are found; whether there are more than the page takes.
fn read(
    page: &mut PageBuilder,
    connection: &Connection,
    statement: &Statement,
) -> rusqlite::Result<bool> {
    let mut find = connection.prepare_cached(statement.documents())?;
    let mut found = find.query(params_from_iter(&statement.parameters))?;
    while let Some(row) = found.next()? {
        if !page.take(|| stored_document(row, 3), take_room, || position(row))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The same where SQLite sorts: it finds the places first and then each document is read, so that
/// sorting holds keys and no bodies.
fn find_and_read(
    page: &mut PageBuilder,
    snapshot: &Connection,
    number: TableNumber,
    statement: &Statement,
) -> rusqlite::Result<bool> {
    let fetch = format!("SELECT {DOCUMENT} FROM documents_{number} WHERE seq = ?1");
    let mut fetch = snapshot.prepare_cached(&fetch)?;
    let mut find = snapshot.prepare_cached(&statement.places())?;
    let mut places = find.query(params_from_iter(&statement.parameters))?;
    while let Some(place) = places.next()? {
        let seq: i64 = place.get(0)?;
        let read = || fetch.query_row(params![seq], |row| stored_document(row, 0));
        if !page.take(read, take_room, || position(place))? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn position(place: &Row<'_>) -> rusqlite::Result<Position> {
    let key = match place.get(2)? {
        Sql::Integer(integer) => Key::Integer(integer),
        Sql::Real(double) => Key::Double(double),
        Sql::Text(text) => Key::Text(text),
        // A type that has but one value.
        Sql::Null => Key::Integer(0),
        Sql::Blob(_) => return Err(malformed(2, "fields")),
    };
    Ok(Position {
        rank: TypeRank::from_number(place.get(1)?).ok_or_else(|| malformed(1, "fields"))?,
        key,
        seq: place.get(0)?,
    })
}
