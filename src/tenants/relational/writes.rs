//! What a transaction has in memory: the writes that it holds back, and what it knows of rows.

use super::{
    engine::Statement,
    held::{Table, Write},
    undo_map::UndoMap,
};
use crate::documents::schedule::{CronName, CronState, Job, JobId};
use crate::documents::{Document, DocumentId};
use crate::tenants::backend::{AnswersEnd, StoredAnswer, TableNumber};

/// The first and the last answer that is remembered, if any is.
pub(super) type Ends = Option<(AnswersEnd, AnswersEnd)>;

/// What a transaction has written and read.
#[derive(Debug, Default)]
pub(super) struct Writes {
    list: Vec<Write>,
    /// So many of the list were sent.
    sent: usize,
    marks: Vec<Mark>,
    /// Savepoints that were made in the engine, ever: their names.
    savepoints: usize,
    /// Whether tables, schemas or indexes are among what is held back.
    pub(super) structural: bool,
    /// Whether jobs or crons were ever among it.
    pub(super) scheduling: bool,
    /// Whether something was written that the list does not have.
    pub(super) unlisted: bool,
    pub(super) documents: UndoMap<(TableNumber, DocumentId), Option<(i64, Document)>>,
    /// Whose an entry of a unique index is.
    pub(super) uniques: UndoMap<(i64, Vec<u8>), Option<i64>>,
    pub(super) answers: UndoMap<[u8; 32], Option<(i64, StoredAnswer)>>,
    pub(super) counts: UndoMap<[u8; 32], (i64, i64)>,
    pub(super) jobs: UndoMap<JobId, Option<Job>>,
    /// Crons, and what the clock said when their next times were reckoned.
    pub(super) crons: UndoMap<CronName, Option<(CronState, i64)>>,
    pub(super) job_count: Option<i64>,
    pub(super) ends: Option<Ends>,
}

#[derive(Debug)]
struct Mark {
    list: usize,
    /// Its savepoint in the engine.
    savepoint: Option<usize>,
    known: [usize; 6],
    job_count: Option<i64>,
    ends: Option<Ends>,
}

impl Writes {
    pub(super) fn push(&mut self, write: Write) {
        self.structural |= matches!(
            write,
            Write::Row {
                table: Table::Tables | Table::Schemas | Table::Indexes,
                ..
            }
        );
        self.scheduling |= matches!(
            write,
            Write::Row {
                table: Table::Jobs | Table::Crons,
                ..
            }
        );
        self.list.push(write);
    }

    /// The statements of what was not sent yet, with the savepoints that are open. They count as
    /// sent.
    pub(super) fn unsent(
        &mut self,
        spelled: impl Fn(&[Write]) -> Vec<Statement>,
    ) -> Vec<Statement> {
        if self.sent == self.list.len() {
            return Vec::new();
        }
        self.unsent_and_savepoints(spelled)
    }

    /// The same, with the savepoints even if there is nothing to send: something is about to be
    /// written that the list does not have.
    pub(super) fn unsent_and_savepoints(
        &mut self,
        spelled: impl Fn(&[Write]) -> Vec<Statement>,
    ) -> Vec<Statement> {
        let mut statements = Vec::new();
        for mark in &mut self.marks {
            if mark.savepoint.is_some() {
                continue;
            }
            // What lies before the mark is sent before the savepoint.
            statements.extend(spelled(&self.list[self.sent..mark.list]));
            self.sent = mark.list;
            self.savepoints += 1;
            mark.savepoint = Some(self.savepoints);
            statements.push(Statement::bare(&format!(
                "SAVEPOINT nimbus_{}",
                self.savepoints
            )));
        }
        statements.extend(spelled(&self.list[self.sent..]));
        self.sent = self.list.len();
        self.structural = false;
        statements
    }

    /// The statements of all of it, as for a transaction that has seen nothing of it. `None` where
    /// the list does not have all.
    pub(super) fn all(
        &self,
        spelled: impl Fn(&[Write]) -> Vec<Statement>,
    ) -> Option<Vec<Statement>> {
        (!self.unlisted).then(|| spelled(&self.list))
    }

    pub(super) fn mark(&mut self) {
        let known = [
            self.documents.mark(),
            self.uniques.mark(),
            self.answers.mark(),
            self.counts.mark(),
            self.jobs.mark(),
            self.crons.mark(),
        ];
        self.marks.push(Mark {
            list: self.list.len(),
            savepoint: None,
            known,
            job_count: self.job_count,
            ends: self.ends,
        });
    }

    pub(super) fn release(&mut self) {
        // One that was made in the engine stays there: it is in nobody's way.
        let _mark = self.marks.pop();
    }

    /// Takes back all since the last mark; what the engine is to do for it.
    pub(super) fn undo(&mut self) -> Option<Statement> {
        let mark = self.marks.pop()?;
        self.list.truncate(mark.list);
        self.sent = self.sent.min(mark.list);
        let [documents, uniques, answers, counts, jobs, crons] = mark.known;
        self.documents.undo(documents);
        self.uniques.undo(uniques);
        self.answers.undo(answers);
        self.counts.undo(counts);
        self.jobs.undo(jobs);
        self.crons.undo(crons);
        self.job_count = mark.job_count;
        self.ends = mark.ends;
        let savepoint = mark.savepoint?;
        let sql = format!("ROLLBACK TO SAVEPOINT nimbus_{savepoint}");
        Some(Statement::bare(&sql))
    }
}
