//! What moves a tenant elsewhere.

use std::ops::ControlFlow;

use zeroize::Zeroizing;

use super::{
    answers::{ANSWERS, Stored},
    columns::CURSOR_KEY,
    engine::{Engine, Malformed, Row, Value, values},
    held::Table,
    reader::{DOCUMENT, Reader, stored_document},
    scheduled::{CRON_COLUMNS, FINISHED_COLUMNS, stored_cron, stored_finished_job},
    space::Space,
    transaction::RelationalTransaction,
};
use crate::documents::deploy::Deploy;
use crate::documents::schedule::{CronState, FinishedJob};
use crate::documents::{Document, TableName};
use crate::tenants::backend::{
    MOVED_BYTES, MOVED_ROWS, MovedRows, MovedWrites, PlacedAnswer, TableNumber,
};
use crate::tenants::{CURSOR_KEY_BYTES, StoreError};

impl<E: Engine> MovedRows for Reader<E> {
    fn cursor_key(&mut self) -> Result<Zeroizing<[u8; CURSOR_KEY_BYTES]>, StoreError> {
        let row = self.ask_one("SELECT cursor_key FROM @head WHERE one = 1", Vec::new())?;
        let incarnation = self.space.incarnation;
        let key = row.map_or(Err(Malformed::of("the head")), |mut row| row.bytes(0));
        let stored = self.sound(key)?;
        let opened = self
            .space
            .open(CURSOR_KEY, || values![&incarnation], stored);
        let opened = Zeroizing::new(self.sound(opened)?);
        let key: Result<[u8; CURSOR_KEY_BYTES], _> = opened[..].try_into();
        self.sound(
            key.map(Zeroizing::new)
                .map_err(|_| Malformed::of("the head")),
        )
    }

    fn tables(&mut self) -> Result<Vec<(TableNumber, TableName)>, StoreError> {
        let rows = self.ask(
            "SELECT number, name FROM @tables ORDER BY number",
            Vec::new(),
        )?;
        let table = |mut row: Row| {
            let name = row.text(1)?.parse().map_err(|_| Malformed::of("a name"))?;
            Ok((row.integer(0)?, name))
        };
        self.sound(rows.into_iter().map(table).collect())
    }

    fn documents_after(
        &mut self,
        table: TableNumber,
        after: i64,
    ) -> Result<Vec<(i64, Document)>, StoreError> {
        let name = self.sealed_table(table)?;
        self.some_of(
            &format!(
                "SELECT {DOCUMENT} FROM @documents d WHERE d.tbl = ? AND d.seq > ? ORDER BY d.seq LIMIT ?"
            ),
            values![table, after, MOVED_ROWS],
            |space, row| stored_document(space, name.as_ref(), row, 0),
            |(_seq, document)| document.fields.as_json().len(),
        )
    }

    fn finished_jobs_after(&mut self, after: i64) -> Result<Vec<(i64, FinishedJob)>, StoreError> {
        self.some_of(
            &format!(
                "SELECT {FINISHED_COLUMNS}, number FROM @job_history WHERE number > ? ORDER BY number LIMIT ?"
            ),
            values![after, MOVED_ROWS],
            |space, row| Ok((row.integer(5)?, stored_finished_job(space, row)?)),
            |(_number, ran)| ran.job.mutation.weight(),
        )
    }

    fn reckoned_crons(&mut self) -> Result<Vec<(CronState, i64)>, StoreError> {
        let sql = format!("SELECT {CRON_COLUMNS} FROM @crons ORDER BY name");
        let rows = self.ask(&sql, Vec::new())?;
        let crons = rows.into_iter().map(|row| stored_cron(&self.space, row));
        self.sound(crons.collect())
    }

    fn answers_after(&mut self, after: i64) -> Result<Vec<PlacedAnswer>, StoreError> {
        self.some_of(
            &format!("SELECT {ANSWERS} FROM @answers WHERE number > ? ORDER BY number LIMIT ?"),
            values![after, MOVED_ROWS],
            |space, row| {
                let stored = Stored::read(space, row)?;
                Ok(PlacedAnswer {
                    number: stored.number,
                    key: stored.key,
                    bytes: stored.total,
                    answer: stored.answer,
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
        read: impl Fn(&Space<E>, &mut Row) -> Result<T, Malformed>,
        weigh: impl Fn(&T) -> usize,
    ) -> Result<Vec<T>, StoreError> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        self.each(sql, values, |space, mut row| {
            let item = read(space, &mut row).map_err(|what| space.malformed(what))?;
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
        let space = &self.reader.space;
        let key = space.seal(CURSOR_KEY, || values![&space.incarnation], cursor_key)?;
        let sql = "UPDATE @head SET cursor_key = ? WHERE one = 1";
        self.put_statement(sql, values![key]);
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
