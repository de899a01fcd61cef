//! What moves a tenant elsewhere.

use std::ops::ControlFlow;

use zeroize::Zeroizing;

use super::{
    engine::{Engine, Malformed, Row, Value, values},
    held::Table,
    jobs::{CRON, FINISHED_JOB, stored_cron, stored_finished_job},
    reader::{DOCUMENT, Reader, stored_document},
    transaction::RelationalTransaction,
};
use crate::documents::deploy::Deploy;
use crate::documents::schedule::{CronState, FinishedJob};
use crate::documents::{Document, TableName};
use crate::tenants::backend::{
    MOVED_BYTES, MOVED_ROWS, MovedRows, MovedWrites, PlacedAnswer, StoredAnswer, TableNumber,
};
use crate::tenants::{CURSOR_KEY_BYTES, StoreError};

impl<E: Engine> MovedRows for Reader<E> {
    fn cursor_key(&mut self) -> Result<Zeroizing<[u8; CURSOR_KEY_BYTES]>, StoreError> {
        let row = self.ask_one("SELECT cursor_key FROM @head WHERE one = 1", Vec::new())?;
        let key = row.map_or(Err(Malformed("the head")), |mut row| row.array(0));
        self.sound(key.map(Zeroizing::new))
    }

    fn tables(&mut self) -> Result<Vec<(TableNumber, TableName)>, StoreError> {
        let rows = self.ask(
            "SELECT number, name FROM @tables ORDER BY number",
            Vec::new(),
        )?;
        let table = |mut row: Row| {
            let name = row.text(1)?.parse().map_err(|_| Malformed("a name"))?;
            Ok((row.integer(0)?, name))
        };
        self.sound(rows.into_iter().map(table).collect())
    }

    fn documents_after(
        &mut self,
        table: TableNumber,
        after: i64,
    ) -> Result<Vec<(i64, Document)>, StoreError> {
        self.some_of(
            &format!(
                "SELECT {DOCUMENT}, d.seq FROM @documents d WHERE d.tbl = ? AND d.seq > ? ORDER BY d.seq LIMIT ?"
            ),
            values![table, after, MOVED_ROWS],
            |row| Ok((row.integer(5)?, stored_document(row, 0)?)),
            |(_seq, document)| document.fields.as_json().len(),
        )
    }

    fn finished_jobs_after(&mut self, after: i64) -> Result<Vec<(i64, FinishedJob)>, StoreError> {
        self.some_of(
            &format!(
                "SELECT {FINISHED_JOB}, number FROM @job_history WHERE number > ? ORDER BY number LIMIT ?"
            ),
            values![after, MOVED_ROWS],
            |row| Ok((row.integer(5)?, stored_finished_job(row)?)),
            |(_number, ran)| ran.job.mutation.weight(),
        )
    }

    fn reckoned_crons(&mut self) -> Result<Vec<(CronState, i64)>, StoreError> {
        let sql = format!("SELECT {CRON} FROM @crons ORDER BY name");
        let rows = self.ask(&sql, Vec::new())?;
        self.sound(rows.into_iter().map(stored_cron).collect())
    }

    fn answers_after(&mut self, after: i64) -> Result<Vec<PlacedAnswer>, StoreError> {
        self.some_of(
            "SELECT number, name, total, request, at_ms, answer, credential FROM @answers WHERE number > ? ORDER BY number LIMIT ?",
            values![after, MOVED_ROWS],
            |row| {
                Ok(PlacedAnswer {
                    number: row.integer(0)?,
                    key: row.array(1)?,
                    bytes: row.integer(2)?,
                    answer: StoredAnswer {
                        request: row.array(3)?,
                        at_ms: row.integer(4)?,
                        answer: row.bytes(5)?,
                        credential: Some(row.array(6)?),
                    },
                })
            },
            |placed| placed.answer.answer.len(),
        )
    }
}

impl<E: Engine> Reader<E> {
    /// The first rows, and none after those that together have [`MOVED_BYTES`].
    fn some_of<T>(
        &mut self,
        sql: &str,
        values: Vec<Value>,
        read: impl Fn(&mut Row) -> Result<T, Malformed>,
        weigh: impl Fn(&T) -> usize,
    ) -> Result<Vec<T>, StoreError> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        self.each(sql, values, |space, mut row| {
            let item = read(&mut row).map_err(|what| space.malformed(what))?;
            bytes += weigh(&item);
            taken.push(item);
            Ok(match bytes < MOVED_BYTES {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            })
        })?;
        Ok(taken)
    }
}

impl<E: Engine> MovedWrites for RelationalTransaction<E> {
    fn put_start(
        &mut self,
        latest: i64,
        cursor_key: &[u8; CURSOR_KEY_BYTES],
    ) -> Result<(), StoreError> {
        let sql = "UPDATE @head SET cursor_key = ? WHERE one = 1";
        self.put_statement(sql, values![cursor_key]);
        self.written = latest;
        Ok(())
    }

    fn put_table(&mut self, number: TableNumber, name: &TableName) -> Result<(), StoreError> {
        self.put_new(Table::Tables, values![number], values![name.as_str()]);
        Ok(())
    }

    fn put_generation(
        &mut self,
        number: i64,
        deploy: &Deploy,
        created_ms: i64,
    ) -> Result<(), StoreError> {
        self.put_deploy(number, deploy, created_ms)
    }
}
