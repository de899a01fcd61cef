//! What reads a tenant: alone, within a snapshot, or within the writer's transaction, whose held
//! writes are sent before anything is read that they may have changed.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    sync::{Arc, atomic::AtomicBool},
};

use super::{
    columns::FIELDS,
    engine::{
        Connection as _, Engine, Failure, FailureKind, Malformed, Row, Statement, Stops, Value,
        begin_reading, values,
    },
    held::{self, Write},
    space::{Space, ask, patiently},
    writes::Writes,
};
use crate::documents::{Document, DocumentId, Fields, TableName};
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
    /// The same the other way round.
    names: HashMap<TableNumber, TableName>,
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
            names: HashMap::new(),
            found: HashMap::new(),
        }
    }

    /// Keeps the number of a table.
    pub(super) fn learn_number(&mut self, name: TableName, number: TableNumber) {
        let _same = self.names.insert(number, name.clone());
        let _new = self.numbers.insert(name, number);
    }

    pub(super) fn forget_numbers(&mut self) {
        self.numbers.clear();
        self.names.clear();
    }

    /// The name of a table, which its sealed values are bound to; `None` where none are sealed.
    pub(super) fn sealed_table(
        &mut self,
        number: TableNumber,
    ) -> Result<Option<TableName>, StoreError> {
        if self.space.seal.is_none() {
            return Ok(None);
        }
        if !self.names.contains_key(&number) {
            let sql = "SELECT name FROM @tables WHERE number = ?";
            let rows = self.ask_structure(sql, values![number])?;
            let name = rows.into_iter().next().map(|mut row| row.text(0));
            let name = name.unwrap_or(Err(Malformed::of("a table")));
            let name = self.sound(name)?;
            let name = name.parse().map_err(|_| Malformed::of("a name"));
            let name = self.sound(name)?;
            self.learn_number(name, number);
        }
        Ok(self.names.get(&number).cloned())
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
        self.sound(row.map_or(Err(Malformed::of("an integer")), |row| row.integer(0)))
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
                // Rows that were handed out are not taken back: it is the first that may be waited
                // for.
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
        let mut names = HashMap::new();
        for (table, _id) in &places {
            if !names.contains_key(table) {
                let _new = names.insert(*table, self.sealed_table(*table)?);
            }
        }
        let space = Arc::clone(&self.space);
        let sql = format!(
            "SELECT tbl, {DOCUMENT} FROM @documents d WHERE (tbl, id) IN ({{rows}} {})",
            super::engine::parameter_rows(2, places.len())
        );
        let values = places
            .iter()
            .flat_map(|(table, id)| values![*table, id.as_bytes()]);
        let rows = self.ask_structure(&sql, values.collect())?;
        let mut fetched: HashMap<_, _> = rows
            .into_iter()
            .map(|mut row| {
                let table = row.integer(0)?;
                let name = names.get(&table).and_then(Option::as_ref);
                let (seq, document) = stored_document(&space, name, &mut row, 1)?;
                Ok(((table, document.id), (seq, document)))
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
            let name = name.parse().map_err(|_| Malformed::of("a name"));
            let (name, number) = (self.sound(name)?, self.sound(row.integer(1))?);
            self.learn_number(name, number);
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
pub(super) const DOCUMENT: &str = "d.seq, d.id, d.created, d.updated, d.version, d.fields";
/// How many these are.
pub(super) const COLUMNS: usize = 6;

/// The number of the write that inserted a document, and the document, whose columns begin with
/// this one. Of a sealed tenant, the table's name is needed.
pub(super) fn stored_document<E>(
    space: &Space<E>,
    table: Option<&TableName>,
    row: &mut Row,
    first: usize,
) -> Result<(i64, Document), Malformed> {
    let (seq, id) = (row.integer(first)?, stored_id(row, first + 1)?);
    let (created_ms, updated_ms) = (row.integer(first + 2)?, row.integer(first + 3)?);
    let version = row.integer(first + 4)?;
    let sealed_with = || document_row(table, seq, id, [created_ms, updated_ms, version]);
    let fields = space.open_text(FIELDS, sealed_with, row.bytes(first + 5)?)?;
    let fields = Fields::from_stored(fields).ok_or(Malformed::of("a document"))?;
    let document = Document {
        id,
        created_ms,
        updated_ms,
        version,
        fields,
    };
    Ok((seq, document))
}

/// The rest of its row, to which a sealed document is bound.
pub(super) fn document_row(
    table: Option<&TableName>,
    seq: i64,
    id: DocumentId,
    [created_ms, updated_ms, version]: [i64; 3],
) -> Vec<Value> {
    let table = table.map(TableName::as_str);
    values![table, seq, id.as_bytes(), version, created_ms, updated_ms]
}

pub(super) fn stored_id(row: &mut Row, column: usize) -> Result<DocumentId, Malformed> {
    DocumentId::from_bytes(row.array(column)?).ok_or(Malformed::of("an id"))
}

pub(super) const COMMIT: &str = "COMMIT";
pub(super) const ROLLBACK: &str = "ROLLBACK";
