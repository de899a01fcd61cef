//! What reads a tenant: alone, within a snapshot, or within the writer's transaction, whose held
//! writes are sent before anything is read that they may have changed.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    sync::{Arc, atomic::AtomicBool},
};

use super::{
    engine::{
        Connection as _, Engine, Failure, FailureKind, Malformed, Row, Statement, Stops, Value,
        begin_reading, values,
    },
    held::{self, Write},
    space::{Space, ask, patiently},
    writes::Writes,
};
use crate::documents::{Document, DocumentId, TableName};
use crate::tenants::StoreError;
use crate::tenants::backend::{Rows, TableNumber, Wanted};

/// A connection that reads, or the reading part of the one that writes. It takes connections of the
/// engine as it needs them, and keeps none between two uses.
#[derive(Debug)]
pub struct Reader<E: Engine> {
    pub(super) space: Arc<Space<E>>,
    pub(super) stops: Stops,
    /// Where a snapshot or a transaction is open.
    pub(super) session: Option<E::Connection>,
    /// What the transaction has written.
    pub(super) writes: Writes,
    /// Numbers of tables that exist. A number never changes.
    pub(super) numbers: HashMap<TableName, TableNumber>,
    /// Documents that were announced and read, in a snapshot.
    pub(super) found: HashMap<(TableNumber, DocumentId), Option<Document>>,
}

impl<E: Engine> Reader<E> {
    pub(super) fn new(space: &Arc<Space<E>>) -> Self {
        Self {
            space: Arc::clone(space),
            stops: Stops::default(),
            session: None,
            writes: Writes::default(),
            numbers: HashMap::new(),
            found: HashMap::new(),
        }
    }

    /// The rows of a query, with all that the transaction has changed.
    pub(super) fn ask(&mut self, sql: &str, values: Vec<Value>) -> Result<Vec<Row>, StoreError> {
        let statement = self.space.statement(sql, values);
        if self.session.is_none() {
            return ask(&*self.space.engine, &self.stops, &statement)
                .map_err(|failure| self.space.failed(failure));
        }
        let mut statements = self.unsent();
        statements.push(statement);
        let mut rows = self.run(&statements)?;
        Ok(rows.pop().unwrap_or_default())
    }

    /// The same of tables, schemas or indexes. Writes of documents do not change these, and stay in
    /// memory.
    pub(super) fn ask_structure(
        &mut self,
        sql: &str,
        values: Vec<Value>,
    ) -> Result<Vec<Row>, StoreError> {
        if self.session.is_none() || self.writes.structural {
            return self.ask(sql, values);
        }
        let statement = self.space.statement(sql, values);
        let mut rows = self.run(&[statement])?;
        Ok(rows.pop().unwrap_or_default())
    }

    /// The only row of a query that has one or none.
    pub(super) fn ask_one(
        &mut self,
        sql: &str,
        values: Vec<Value>,
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.ask(sql, values)?.pop())
    }

    /// The integer that a query gives.
    pub(super) fn ask_integer(&mut self, sql: &str, values: Vec<Value>) -> Result<i64, StoreError> {
        let row = self.ask_one(sql, values)?;
        self.sound(row.map_or(Err(Malformed("an integer")), |row| row.integer(0)))
    }

    /// Hands out rows as they come, until told to stop.
    pub(super) fn each(
        &mut self,
        sql: &str,
        values: Vec<Value>,
        mut each: impl FnMut(&Space<E>, Row) -> Result<ControlFlow<()>, StoreError>,
    ) -> Result<(), StoreError> {
        self.send()?;
        let statement = self.space.statement(sql, values);
        let (space, stops) = (Arc::clone(&self.space), self.stops.clone());
        let mut outcome = Ok(());
        let mut hand_out = |row| match each(&space, row) {
            Ok(flow) => flow,
            Err(error) => {
                outcome = Err(error);
                ControlFlow::Break(())
            }
        };
        let streamed = match &mut self.session {
            Some(session) => session.each(&statement, &stops, &mut hand_out),
            None => {
                // Rows that were handed out are not taken back: it is the first that may be waited for.
                let mut session = self.begin_reading()?;
                let streamed = session.each(&statement, &stops, &mut hand_out);
                streamed.and_then(|()| {
                    let _none = session.run(&[Statement::bare(COMMIT)], &stops)?;
                    session.give_back();
                    Ok(())
                })
            }
        };
        streamed.map_err(|failure| self.fail(failure))?;
        outcome
    }

    /// Begins to read one state of the tenant, which must be the one that was opened: numbers of
    /// tables are those of one tenant, and another server may have made another of its name.
    fn begin_reading(&self) -> Result<E::Connection, StoreError> {
        let mut begin = begin_reading::<E>();
        let incarnation = "SELECT incarnation FROM @head WHERE one = 1";
        begin.push(self.space.statement(incarnation, Vec::new()));
        let begun = patiently(&*self.space.engine, &self.stops, |session| {
            session.run(&begin, &self.stops)
        });
        let (mut rows, session) = begun.map_err(|failure| self.space.failed(failure))?;
        let row = rows.last_mut().and_then(|rows| rows.first_mut());
        let incarnation = row.map(|row| row.array::<16>(0));
        if self.sound(incarnation.transpose())? != Some(self.space.incarnation) {
            self.space.lose();
            return Err(StoreError::Closed {
                tenant: self.space.tenant.clone(),
            });
        }
        Ok(session)
    }

    /// Sends what is held back.
    pub(super) fn send(&mut self) -> Result<(), StoreError> {
        if self.session.is_none() {
            return Ok(());
        }
        let statements = self.unsent();
        self.run(&statements).map(drop)
    }

    /// Sends what is held back, and makes the savepoints that are open: something is about to be
    /// written that is not held back.
    pub(super) fn send_and_pin(&mut self) -> Result<(), StoreError> {
        let space = &self.space;
        let spelled = |writes: &[Write]| held::statements(writes, |sql| space.spell(sql));
        let statements = self.writes.unsent_and_savepoints(spelled);
        self.writes.unlisted = true;
        self.run(&statements).map(drop)
    }

    /// The statements of what is held back, which are about to be sent.
    pub(super) fn unsent(&mut self) -> Vec<Statement> {
        let space = &self.space;
        let spelled = |writes: &[Write]| held::statements(writes, |sql| space.spell(sql));
        self.writes.unsent(spelled)
    }

    /// Runs statements in the open session.
    pub(super) fn run(&mut self, statements: &[Statement]) -> Result<Vec<Vec<Row>>, StoreError> {
        if statements.is_empty() {
            return Ok(Vec::new());
        }
        let Some(session) = &mut self.session else {
            return Err(StoreError::Closed {
                tenant: self.space.tenant.clone(),
            });
        };
        let done = session.run(statements, &self.stops);
        done.map_err(|failure| self.fail(failure))
    }

    /// What a stored value is, unless it is malformed.
    pub(super) fn sound<T>(&self, value: Result<T, Malformed>) -> Result<T, StoreError> {
        value.map_err(|what| self.space.malformed(what))
    }

    /// A failure ends the snapshot or the transaction.
    pub(super) fn fail(&mut self, failure: Failure) -> StoreError {
        if !matches!(failure.kind, FailureKind::Lost | FailureKind::Stopped) {
            let _ended = self.end(ROLLBACK);
        }
        self.session = None;
        self.found.clear();
        self.space.failed(failure)
    }

    /// Ends the open session; whether the engine said so.
    pub(super) fn end(&mut self, how: &str) -> bool {
        self.found.clear();
        let Some(mut session) = self.session.take() else {
            return true;
        };
        let ended = session.run(&[Statement::bare(how)], &Stops::default());
        if ended.is_ok() {
            session.give_back();
        }
        ended.is_ok()
    }

    /// Reads documents of several tables at once.
    pub(super) fn fetch(&mut self, wanted: &[Wanted]) -> Result<Vec<Fetched>, StoreError> {
        self.learn_numbers(wanted.iter().map(|wanted| &wanted.table))?;
        let mut places: Vec<(TableNumber, DocumentId)> = wanted
            .iter()
            .filter_map(|wanted| Some((*self.numbers.get(&wanted.table)?, wanted.id)))
            .collect();
        places.sort_unstable();
        places.dedup();
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let sql = format!(
            "SELECT tbl, seq, {DOCUMENT} FROM @documents d WHERE (tbl, id) IN ({{rows}} {})",
            super::engine::parameter_rows(2, places.len())
        );
        let values = places
            .iter()
            .flat_map(|(table, id)| values![*table, id.as_bytes()]);
        let rows = self.ask_structure(&sql, values.collect())?;
        let mut fetched: HashMap<_, _> = rows
            .into_iter()
            .map(|mut row| {
                let document = stored_document(&mut row, 2)?;
                let place = (row.integer(0)?, document.id);
                Ok((place, (row.integer(1)?, document)))
            })
            .collect::<Result<_, Malformed>>()
            .map_err(|what| self.space.malformed(what))?;
        Ok(places
            .into_iter()
            .map(|place| Fetched {
                place,
                document: fetched.remove(&place),
            })
            .collect())
    }

    /// Learns the numbers of tables, as far as they exist.
    fn learn_numbers<'a>(
        &mut self,
        tables: impl Iterator<Item = &'a TableName>,
    ) -> Result<(), StoreError> {
        let mut unknown: Vec<&TableName> = tables
            .filter(|table| !self.numbers.contains_key(*table))
            .collect();
        unknown.sort_unstable();
        unknown.dedup();
        if unknown.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "SELECT name, number FROM @tables WHERE name IN ({})",
            vec!["?"; unknown.len()].join(", ")
        );
        let values = unknown.iter().map(|table| Value::from(table.as_str()));
        for mut row in self.ask_structure(&sql, values.collect())? {
            let name = self.sound(row.text(0))?;
            let name = name.parse().map_err(|_| Malformed("a name"));
            let (name, number) = (self.sound(name)?, self.sound(row.integer(1))?);
            let _new = self.numbers.insert(name, number);
        }
        Ok(())
    }
}

/// A document that was asked for by its id.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) place: (TableNumber, DocumentId),
    /// It, and the number of the write that inserted it.
    pub(super) document: Option<(i64, Document)>,
}

impl<E: Engine> Rows for Reader<E> {
    fn snapshot<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // A transaction has one state by itself, and a snapshot within a snapshot is the same.
        if self.session.is_some() {
            return read(self);
        }
        self.session = Some(self.begin_reading()?);
        let result = read(self);
        // Nothing was changed: what comes of it does not matter.
        let _ended = self.end(COMMIT);
        result
    }

    fn announce(&mut self, wanted: &[Wanted]) -> Result<(), StoreError> {
        for Fetched { place, document } in self.fetch(wanted)? {
            let document = document.map(|(_seq, document)| document);
            let _new = self.found.insert(place, document);
        }
        Ok(())
    }

    fn stop_once(&mut self, stops: Option<[Arc<AtomicBool>; 2]>) -> Result<(), StoreError> {
        self.stops = Stops(stops.map(Vec::from).unwrap_or_default());
        Ok(())
    }

    /// Nothing is cached that may change.
    fn forget_plans(&mut self) {}
}

/// The columns that [`stored_document`] reads, of `documents d`.
pub(super) const DOCUMENT: &str = "d.id, d.created, d.updated, d.version, d.fields";

/// A document whose columns begin with this one.
pub(super) fn stored_document(row: &mut Row, first: usize) -> Result<Document, Malformed> {
    Ok(Document {
        id: stored_id(row, first)?,
        created_ms: row.integer(first + 1)?,
        updated_ms: row.integer(first + 2)?,
        version: row.integer(first + 3)?,
        fields: stored_fields(row, first + 4)?,
    })
}

pub(super) fn stored_id(row: &mut Row, column: usize) -> Result<DocumentId, Malformed> {
    DocumentId::from_bytes(row.array(column)?).ok_or(Malformed("an id"))
}

pub(super) fn stored_fields(
    row: &mut Row,
    column: usize,
) -> Result<crate::documents::Fields, Malformed> {
    crate::documents::Fields::from_stored(row.text(column)?).ok_or(Malformed("a document"))
}

pub(super) const COMMIT: &str = "COMMIT";
pub(super) const ROLLBACK: &str = "ROLLBACK";
