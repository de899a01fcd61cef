//! The transactions that write to a tenant.
//!
//! Each locks the tenant's head first: those of one tenant come one after another, whatever server
//! they are of, and the numbers of writes have no gap. It reads what it is about to touch, holds
//! its writes back, and sends them with the commit. Connections are taken for one transaction at a
//! time, and nothing of a session is relied on, so that a pooler may lie between.
//!
//! **A commit that nobody answered.** Each transaction stores an id under its number in `commits`.
//! Where the connection breaks after the commit was sent, the next connection locks the head, which
//! waits for the old transaction to end, and looks:
//!
//! | number in `commits` | head | the transaction |
//! | --- | --- | --- |
//! | its id | | was committed |
//! | none, or another id | as before | was not: all of it is sent again under this lock |
//! | none, or another id | moved on | was not, and what it had read is old: its callers are told |
//! | the engine stays away | | is not known, and its callers are told so |

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicBool},
};

use nimbus_keyproviders::{OsRandom, SecureRandom as _};

use super::{
    engine::{
        Connection as _, Engine, Failure, FailureKind, Malformed, Row, Statement, Stops, Value,
        values,
    },
    held::{self, Table, Write},
    index::Index,
    reader::{COMMIT, ROLLBACK, Reader},
    space::{Space, patiently},
    writes::Writes,
};
use crate::documents::Mutation;
use crate::failpoints::crash_point;
use crate::tenants::StoreError;
use crate::tenants::backend::{OthersWrote, TableNumber, Transaction, Upcoming};
use crate::tenants::error::NoRoom;

/// What writes to a tenant.
#[derive(Debug)]
pub struct RelationalTransaction<E: Engine> {
    pub(super) reader: Reader<E>,
    /// The head as it is under the lock, or was under the last one.
    head: Option<Head>,
    /// The number of the last write of the open transaction.
    pub(super) written: i64,
    /// Whether the last transaction has come to its end. What is known of one that broke off may
    /// never have come to be: the number of a table is another's then.
    ended: bool,
    /// Whether the open transaction changes tables, schemas or indexes.
    restructures: bool,
    /// The indexes of tables.
    pub(super) indexes: HashMap<TableNumber, Arc<[Index]>>,
    /// What other servers wrote between the last transaction and the open one.
    others: OthersWrote,
    /// The tenant is another one than it was: this is not used again.
    broken: bool,
    /// It is no tenant yet, and has no work that is due.
    pub(super) arriving: bool,
}

#[derive(Debug, Clone, Copy)]
struct Head {
    seq: i64,
    commits: i64,
    structure: i64,
    incarnation: [u8; 16],
}

impl Head {
    fn stored(row: Option<&mut Row>) -> Result<Self, Malformed> {
        let row = row.ok_or(Malformed::of("the head"))?;
        Ok(Self {
            seq: row.integer(0)?,
            commits: row.integer(1)?,
            structure: row.integer(2)?,
            incarnation: row.array(3)?,
        })
    }
}

impl<E: Engine> RelationalTransaction<E> {
    pub(super) fn new(space: &Arc<Space<E>>, halted: &Arc<AtomicBool>) -> Self {
        let mut reader = Reader::new(space);
        reader.stops = Stops(vec![Arc::clone(halted)]);
        Self {
            reader,
            head: None,
            written: 0,
            ended: true,
            restructures: false,
            indexes: HashMap::new(),
            others: OthersWrote::Nothing,
            broken: false,
            arriving: false,
        }
    }

    /// Holds a write back.
    pub(super) fn push(&mut self, write: Write) {
        self.reader.writes.push(write);
        self.restructures |= self.reader.writes.structural;
    }

    /// Holds a row back: there is none of its key.
    pub(super) fn put_new(&mut self, table: Table, key: Vec<Value>, row: Vec<Value>) {
        self.push(Write::Row {
            table,
            key,
            row: Some(row),
            fresh: true,
        });
    }

    /// Holds a row back, or that there is none. There may be one of its key.
    pub(super) fn put(&mut self, table: Table, key: Vec<Value>, row: Option<Vec<Value>>) {
        self.push(Write::Row {
            table,
            key,
            row,
            fresh: false,
        });
    }

    /// Holds a statement back that no other write depends on.
    pub(super) fn put_statement(&mut self, sql: &str, values: Vec<Value>) {
        let statement = self.reader.space.statement(sql, values);
        self.push(Write::Statement(statement));
    }

    /// Tables, schemas or indexes are changed by what is held back.
    pub(super) fn restructured(&mut self) {
        self.reader.writes.structural = true;
        self.restructures = true;
    }

    fn closed(&self) -> StoreError {
        StoreError::Closed {
            tenant: self.reader.space.tenant.clone(),
        }
    }

    /// Locks the head, on whatever connection: the first statements of a transaction.
    fn locking(&self) -> [Statement; 2] {
        let head = format!(
            "SELECT seq, commits, structure, incarnation FROM @head WHERE one = 1{}",
            E::LOCKING
        );
        [
            Statement::bare(E::BEGIN),
            self.reader.space.statement(&head, Vec::new()),
        ]
    }

    /// The last statements of a transaction.
    fn closing(&self, before: Head, id: &[u8; 16]) -> (Head, Vec<Statement>) {
        let after = Head {
            seq: self.written,
            commits: before.commits + 1,
            structure: before.structure + i64::from(self.restructures),
            ..before
        };
        let space = &self.reader.space;
        let mut statements = Vec::new();
        if self.reader.writes.scheduling && !self.arriving {
            statements.extend(space.noting_due());
        }
        statements.extend([
            space.statement(
                "UPDATE @head SET seq = ?, commits = ?, structure = ? WHERE one = 1",
                values![after.seq, after.commits, after.structure],
            ),
            space.statement(
                "INSERT INTO @commits (number, id) VALUES (?, ?)",
                values![after.commits, id],
            ),
        ]);
        if after.commits % COMMITS_KEPT == 0 {
            statements.push(space.statement(
                "DELETE FROM @commits WHERE number <= ?",
                values![after.commits - COMMITS_KEPT],
            ));
        }
        statements.push(Statement::bare(COMMIT));
        (after, statements)
    }

    /// Finds out what became of a commit that nobody answered, and does it again if nothing did.
    fn settle(
        &mut self,
        before: Head,
        id: &[u8; 16],
        mut failure: Failure,
    ) -> Result<Head, StoreError> {
        let space = Arc::clone(&self.reader.space);
        let (after, closing) = self.closing(before, id);
        let mut asking = self.locking().to_vec();
        asking.push(space.statement(
            "SELECT id FROM @commits WHERE number = ?",
            values![after.commits],
        ));
        for _ in 0..ATTEMPTS {
            tracing::warn!(tenant = %space.tenant, error = %failure.source, "a commit was not answered; what became of it is looked up");
            let stops = &self.reader.stops;
            let asked = patiently(&*space.engine, stops, |session| session.run(&asking, stops));
            let (mut rows, mut session) = match asked {
                Ok(asked) => asked,
                Err(Failure {
                    kind: FailureKind::Missing,
                    ..
                }) => {
                    space.lose();
                    return Err(self.closed());
                }
                Err(failure) => return Err(self.unsettled(&failure)),
            };
            let found = Head::stored(rows[1].first_mut());
            let committed = rows[2]
                .first_mut()
                .map(|row| row.array::<16>(0))
                .transpose();
            let (found, committed) = (self.reader.sound(found)?, self.reader.sound(committed)?);
            if committed == Some(*id) && found.incarnation == before.incarnation {
                let _none = session.run(&[Statement::bare(ROLLBACK)], stops);
                return Ok(after);
            }
            let again = self
                .reader
                .writes
                .all(|writes| held::statements(writes, |sql| space.spell(sql)));
            let unmoved =
                found.commits == before.commits && found.incarnation == before.incarnation;
            let Some(mut again) = again.filter(|_| unmoved) else {
                // Nothing of it was done, nor will be.
                return Err(space.failed(Failure {
                    kind: FailureKind::Undone,
                    ..failure
                }));
            };
            again.extend(closing.iter().cloned());
            match session.run(&again, stops) {
                Ok(_) => {
                    session.give_back();
                    return Ok(after);
                }
                Err(again) if again.kind == FailureKind::Lost => failure = again,
                Err(other) => return Err(space.failed(other)),
            }
        }
        Err(self.unsettled(&failure))
    }

    fn unsettled(&self, failure: &Failure) -> StoreError {
        StoreError::Unsettled {
            tenant: self.reader.space.tenant.clone(),
            source: Arc::clone(&failure.source),
        }
    }

    /// Forgets what is known of a transaction that was not committed.
    fn forget(&mut self) {
        self.ended = true;
        self.reader.writes = Writes::default();
        self.reader.forget_numbers();
        self.indexes.clear();
    }
}

impl<E: Engine> Transaction for RelationalTransaction<E> {
    type Rows = Reader<E>;

    fn begin(&mut self) -> Result<i64, StoreError> {
        if self.broken || self.reader.stops.is_set() {
            return Err(self.closed());
        }
        if !self.ended {
            self.forget();
        }
        self.ended = false;
        self.reader.writes = Writes::default();
        self.restructures = false;
        let space = Arc::clone(&self.reader.space);
        let (locking, stops) = (self.locking(), &self.reader.stops);
        let begun = patiently(&*space.engine, stops, |session| {
            session.run(&locking, stops)
        });
        let (mut rows, session) = begun.map_err(|failure| space.failed(failure))?;
        self.reader.session = Some(session);
        let head = Head::stored(rows[1].first_mut());
        let head = match self.reader.sound(head) {
            Ok(head) => head,
            Err(error) => {
                let _ended = self.reader.end(ROLLBACK);
                return Err(error);
            }
        };
        if head.incarnation != space.incarnation {
            let _ended = self.reader.end(ROLLBACK);
            self.broken = true;
            space.lose();
            return Err(self.closed());
        }
        self.others = match self.head {
            Some(known) if known.commits == head.commits => OthersWrote::Nothing,
            Some(known) if known.structure == head.structure => OthersWrote::Rows,
            Some(_) | None => OthersWrote::Structure,
        };
        if self.others == OthersWrote::Structure {
            self.indexes.clear();
        }
        self.head = Some(head);
        self.written = head.seq;
        Ok(head.seq)
    }

    fn others_wrote(&self) -> OthersWrote {
        self.others
    }

    fn announce<'a>(
        &mut self,
        upcoming: impl Iterator<Item = Upcoming<'a>>,
    ) -> Result<(), StoreError> {
        let upcoming: Vec<Upcoming<'a>> = upcoming.collect();
        let once: Vec<_> = upcoming.iter().filter_map(|work| work.once).collect();
        self.expect_answers(&once)?;
        let mutations: Vec<&Mutation> = upcoming.iter().flat_map(|work| work.mutations).collect();
        self.expect_mutations(&mutations)
    }

    fn rows(&mut self) -> Result<&mut Reader<E>, StoreError> {
        Ok(&mut self.reader)
    }

    fn is_open(&self) -> bool {
        self.reader.session.is_some()
    }

    fn savepoint(&mut self) -> Result<(), StoreError> {
        self.reader.writes.mark();
        Ok(())
    }

    fn release(&mut self) -> Result<(), StoreError> {
        self.reader.writes.release();
        Ok(())
    }

    fn undo(&mut self) -> Result<(), StoreError> {
        if self.restructures {
            self.reader.forget_numbers();
            self.indexes.clear();
        }
        match self.reader.writes.undo() {
            Some(statement) => self.reader.run(&[statement]).map(drop),
            None => Ok(()),
        }
    }

    fn no_room(&mut self) -> Result<Option<NoRoom>, StoreError> {
        if self.reader.stops.is_set() {
            return Err(self.closed());
        }
        Ok(None)
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        let (Some(before), Some(mut session)) = (self.head, self.reader.session.take()) else {
            return Err(self.closed());
        };
        let mut id = [0; 16];
        OsRandom.fill(&mut id)?;
        let (after, closing) = self.closing(before, &id);
        let mut statements = self.reader.unsent();
        statements.extend(closing);
        crash_point!("tenants::relational::held");
        let after = match session.run(&statements, &self.reader.stops) {
            Ok(_) => {
                session.give_back();
                after
            }
            Err(failure) if matches!(failure.kind, FailureKind::Lost | FailureKind::Undone) => {
                drop(session);
                match self.settle(before, &id, failure) {
                    Ok(after) => after,
                    Err(error) => {
                        self.forget();
                        return Err(error);
                    }
                }
            }
            Err(failure) => {
                // Dropped, the connection is closed, and what was done on it undone.
                drop(session);
                self.forget();
                return Err(self.reader.space.failed(failure));
            }
        };
        self.head = Some(after);
        self.ended = true;
        self.reader.writes = Writes::default();
        Ok(())
    }

    fn roll_back(&mut self) -> Result<(), StoreError> {
        // Where the engine does not answer, the connection is closed, which undoes it as well.
        let _answered = self.reader.end(ROLLBACK);
        self.forget();
        Ok(())
    }

    fn is_broken(&self) -> bool {
        self.broken
    }

    fn tidy(&mut self) {}

    fn rest(&mut self) -> bool {
        true
    }

    fn finish(self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// So many transactions are remembered by their ids, at least: more than can come between a commit
/// and the question what became of it.
const COMMITS_KEPT: i64 = 4096;
/// How often a commit is tried again.
const ATTEMPTS: usize = 5;
