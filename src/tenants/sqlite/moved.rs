//! What moves a tenant elsewhere, as SQL.

use zeroize::Zeroizing;

use super::documents::stored_document;
use super::jobs::{CRON, stored_cron, stored_finished_job, up_to};
use super::reader::Reader;
use super::rows::{DOCUMENT, malformed, sql_limit};
use super::transaction::SqliteTransaction;
use super::{deploys, tables};
use crate::documents::deploy::Deploy;
use crate::documents::schedule::{CronState, FinishedJob};
use crate::documents::{Document, TableName};
use crate::tenants::backend::{
    MOVED_BYTES, MOVED_ROWS, MovedRows, MovedWrites, PlacedAnswer, StoredAnswer, TableNumber,
};
use crate::tenants::{CURSOR_KEY_BYTES, StoreError};

impl MovedRows for Reader {
    fn cursor_key(&mut self) -> Result<Zeroizing<[u8; CURSOR_KEY_BYTES]>, StoreError> {
        self.on(tables::cursor_key)
    }

    fn tables(&mut self) -> Result<Vec<(TableNumber, TableName)>, StoreError> {
        self.on(|connection| {
            connection
                .prepare_cached("SELECT number, name FROM nimbus_tables ORDER BY number")?
                .query_map([], |row| {
                    let name: String = row.get(1)?;
                    Ok((row.get(0)?, name.parse().map_err(|_| malformed(1, "name"))?))
                })?
                .collect()
        })
    }

    fn documents_after(
        &mut self,
        table: TableNumber,
        after: i64,
    ) -> Result<Vec<(i64, Document)>, StoreError> {
        let sql = format!(
            "SELECT {DOCUMENT}, seq FROM documents_{table} WHERE seq > ?1 ORDER BY seq LIMIT ?2"
        );
        self.on(|connection| {
            let mut documents = connection.prepare_cached(&sql)?;
            let rows = documents.query_map([after, sql_limit(MOVED_ROWS)], |row| {
                Ok((row.get(5)?, stored_document(row, 0)?))
            })?;
            up_to(rows, MOVED_BYTES, |(_seq, document): &(i64, Document)| {
                document.fields.as_json().len()
            })
        })
    }

    fn finished_jobs_after(&mut self, after: i64) -> Result<Vec<(i64, FinishedJob)>, StoreError> {
        self.on(|connection| {
            let mut history = connection.prepare_cached(
                "SELECT id, due, finished, error, mutation, number FROM nimbus_job_history
                 WHERE number > ?1 ORDER BY number LIMIT ?2",
            )?;
            let rows = history.query_map([after, sql_limit(MOVED_ROWS)], |row| {
                Ok((row.get(5)?, stored_finished_job(row)?))
            })?;
            up_to(rows, MOVED_BYTES, |(_number, ran): &(i64, FinishedJob)| {
                ran.job.mutation.weight()
            })
        })
    }

    fn reckoned_crons(&mut self) -> Result<Vec<(CronState, i64)>, StoreError> {
        let sql = format!("SELECT {CRON}, reckoned FROM nimbus_crons ORDER BY name");
        self.on(|connection| {
            let mut crons = connection.prepare_cached(&sql)?;
            let rows = crons.query_map([], |row| Ok((stored_cron(row)?, row.get(8)?)))?;
            rows.collect()
        })
    }

    fn answers_after(&mut self, after: i64) -> Result<Vec<PlacedAnswer>, StoreError> {
        self.on(|connection| {
            let mut answers = connection.prepare_cached(
                "SELECT number, key, bytes, request, at, answer, credential FROM nimbus_remembered
                 WHERE number > ?1 ORDER BY number LIMIT ?2",
            )?;
            let rows = answers.query_map([after, sql_limit(MOVED_ROWS)], |row| {
                Ok(PlacedAnswer {
                    number: row.get(0)?,
                    key: row.get(1)?,
                    bytes: row.get(2)?,
                    answer: StoredAnswer {
                        request: row.get(3)?,
                        at_ms: row.get(4)?,
                        answer: row.get(5)?,
                        credential: row.get(6)?,
                    },
                })
            })?;
            up_to(rows, MOVED_BYTES, |placed: &PlacedAnswer| {
                placed.answer.answer.len()
            })
        })
    }
}

impl MovedWrites for SqliteTransaction {
    fn put_start(
        &mut self,
        latest: i64,
        cursor_key: &[u8; CURSOR_KEY_BYTES],
    ) -> Result<(), StoreError> {
        self.change("UPDATE nimbus_sequence SET last = ?1", [latest])?;
        self.change("UPDATE nimbus_cursor_key SET key = ?1", [&cursor_key[..]])?;
        self.wrote(latest);
        Ok(())
    }

    fn put_table(&mut self, number: TableNumber, name: &TableName) -> Result<(), StoreError> {
        let made = self.on(|connection| tables::create_table(connection, name, Some(number)));
        made.map(drop)
    }

    fn put_generation(
        &mut self,
        number: i64,
        deploy: &Deploy,
        created_ms: i64,
    ) -> Result<(), StoreError> {
        let stored =
            self.on(|connection| deploys::store(connection, deploy, created_ms, Some(number)));
        stored.map(drop)
    }
}
