//! Answering queries: the statements of a query, run in turn on one snapshot. What a query means is defined in
//! `docs/queries.md`; how it becomes SQL, in [`statement`](super::statement).

use nimbus_manifests::TenantId;
use rusqlite::{Connection, Row, Transaction, params, params_from_iter, types::Value as Sql};

use super::{
    apply::{DOCUMENT, Reader, malformed, stored_document, take_room},
    failure,
    plans::Plans,
    statement::Statement,
};
use crate::{
    documents::{
        Document, MAX_FIELDS_BYTES,
        query::{Key, MAX_PAGE, Position, Query, QueryPage},
    },
    tenants::StoreError,
};

impl Reader {
    /// The documents that a query finds after a position: at most `limit`, and not more than fit an answer.
    pub(super) fn query(
        &mut self,
        tenant: &TenantId,
        query: &Query,
        after: Option<&Position>,
        limit: usize,
        most_bytes: usize,
    ) -> Result<QueryPage, StoreError> {
        let sqlite = |error| failure(tenant, error);
        let Some(number) = self.number(&query.table).map_err(sqlite)? else {
            return Ok(QueryPage {
                documents: Vec::new(),
                next: None,
            });
        };
        let limit = limit.min(MAX_PAGE);
        let (connection, plans) = self.planned();
        let indexes = plans.indexes(connection, number).map_err(sqlite)?;
        let statements = Statement::all(number, query, after, limit, &indexes);
        match &statements[..] {
            // A statement by itself sees one state of the file.
            [statement] if !plans.sorts(connection, statement).map_err(sqlite)? => {
                let mut page = Page::new(limit, most_bytes);
                let full = page.read(connection, statement).map_err(sqlite)?;
                Ok(page.finish(full))
            }
            statements => {
                let snapshot = connection.transaction().map_err(sqlite)?;
                let page = Page::new(limit, most_bytes);
                fill(page, &snapshot, plans, number, statements).map_err(sqlite)
            }
        }
    }
}

/// Runs statement after statement, until the page is full.
fn fill(
    mut page: Page,
    snapshot: &Transaction<'_>,
    plans: &mut Plans,
    number: i64,
    statements: &[Statement],
) -> rusqlite::Result<QueryPage> {
    for statement in statements {
        let full = if plans.sorts(snapshot, statement)? {
            page.find_and_read(snapshot, number, statement)?
        } else {
            page.read(snapshot, statement)?
        };
        if full {
            return Ok(page.finish(true));
        }
    }
    Ok(page.finish(false))
}

/// A page that is being filled.
struct Page {
    limit: usize,
    most_bytes: usize,
    documents: Vec<Document>,
    /// Of their fields.
    bytes: usize,
    /// Where it ends, if it ends with the last document.
    last: Option<Position>,
}

impl Page {
    fn new(limit: usize, most_bytes: usize) -> Self {
        Self {
            limit,
            most_bytes,
            documents: Vec::with_capacity(limit.min(COMMON)),
            bytes: 0,
            last: None,
        }
    }

    /// Reads the documents as they are found; whether there are more than the page takes.
    fn read(&mut self, connection: &Connection, statement: &Statement) -> rusqlite::Result<bool> {
        let mut find = connection.prepare_cached(statement.documents())?;
        let mut found = find.query(params_from_iter(&statement.parameters))?;
        while let Some(row) = found.next()? {
            if !self.take(row, || stored_document(row, 3))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The same where SQLite sorts: it finds the places first and then each document is read, so that sorting holds
    /// keys and no bodies.
    fn find_and_read(
        &mut self,
        snapshot: &Transaction<'_>,
        number: i64,
        statement: &Statement,
    ) -> rusqlite::Result<bool> {
        let fetch = format!("SELECT {DOCUMENT} FROM documents_{number} WHERE seq = ?1");
        let mut fetch = snapshot.prepare_cached(&fetch)?;
        let mut find = snapshot.prepare_cached(&statement.places())?;
        let mut places = find.query(params_from_iter(&statement.parameters))?;
        while let Some(place) = places.next()? {
            let seq: i64 = place.get(0)?;
            let read = || fetch.query_row(params![seq], |row| stored_document(row, 0));
            if !self.take(place, read)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes the document at a place, unless the page is full.
    fn take(
        &mut self,
        place: &Row<'_>,
        read: impl FnOnce() -> rusqlite::Result<Document>,
    ) -> rusqlite::Result<bool> {
        if self.documents.len() == self.limit {
            return Ok(false);
        }
        let document = read()?;
        let size = document.weight();
        self.bytes += size;
        if self.bytes > self.most_bytes {
            return Ok(false);
        }
        take_room(size)?;
        self.documents.push(document);
        // Kept for the last one alone: a key may be as long as a document.
        if self.documents.len() == self.limit || self.bytes + LARGEST > self.most_bytes {
            self.last = Some(position(place)?);
        }
        Ok(true)
    }

    fn finish(self, more: bool) -> QueryPage {
        QueryPage {
            documents: self.documents,
            next: self.last.filter(|_| more),
        }
    }
}

/// The weight of no document is more.
const LARGEST: usize = MAX_FIELDS_BYTES + 1024;
/// As many documents as most pages have.
const COMMON: usize = 32;

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
        rank: place.get(1)?,
        key,
        seq: place.get(0)?,
    })
}
