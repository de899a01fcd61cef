//! Answers to requests that were sent under a key, as SQL.

use std::{collections::BTreeMap, ops::Range};

use rusqlite::{OptionalExtension as _, params};

use super::rows::sql_limit;
use super::transaction::SqliteTransaction;
use crate::tenants::{
    StoreError,
    backend::{AnswerWrites, AnswersEnd, AnswersOf, StoredAnswer},
};

/// The table of version 4.
pub(super) const TABLE: &str = "
    CREATE TABLE nimbus_remembered (
        number INTEGER PRIMARY KEY,  -- in the order in which they came
        key BLOB NOT NULL UNIQUE,    -- SHA-256 of the client's key
        request BLOB NOT NULL,       -- SHA-256 of the request
        at INTEGER NOT NULL,         -- milliseconds since the Unix epoch
        bytes INTEGER NOT NULL,      -- of the answers of the rows up to and with this one
        answer BLOB NOT NULL         -- 24 bytes a part
    ) STRICT;";

/// Makes version 5 of version 4. What was remembered before counts for no credential: it is gone
/// after a day.
pub(super) const ADD_CREDENTIALS: &str = "
    ALTER TABLE nimbus_remembered ADD COLUMN credential BLOB; -- SHA-256 of whose it is
    -- What each of them has there.
    CREATE TABLE nimbus_remembered_of (
        credential BLOB PRIMARY KEY NOT NULL,
        count INTEGER NOT NULL,
        bytes INTEGER NOT NULL       -- of answers
    ) STRICT, WITHOUT ROWID;";

impl AnswerWrites for SqliteTransaction {
    fn answer(&mut self, key: &[u8; 32]) -> Result<Option<StoredAnswer>, StoreError> {
        self.on(|connection| {
            connection
                .prepare_cached(
                    "SELECT request, at, answer, credential FROM nimbus_remembered WHERE key = ?1",
                )?
                .query_row([&key[..]], |row| {
                    Ok(StoredAnswer {
                        request: row.get(0)?,
                        at_ms: row.get(1)?,
                        answer: row.get(2)?,
                        credential: row.get(3)?,
                    })
                })
                .optional()
        })
    }

    fn answers(&mut self) -> Result<Option<(AnswersEnd, AnswersEnd)>, StoreError> {
        let first = self.answers_end(
            "SELECT number, bytes, length(answer) FROM nimbus_remembered ORDER BY number LIMIT 1",
        )?;
        let last = self.answers_end(
            "SELECT number, bytes, length(answer) FROM nimbus_remembered ORDER BY number DESC LIMIT 1",
        )?;
        Ok(first.zip(last))
    }

    fn put_answer(
        &mut self,
        key: &[u8; 32],
        answer: &StoredAnswer,
        end: AnswersEnd,
    ) -> Result<(), StoreError> {
        self.change(
            "INSERT INTO nimbus_remembered VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                end.number,
                &key[..],
                &answer.request[..],
                answer.at_ms,
                end.bytes,
                answer.answer,
                answer.credential.as_ref().map(|of| &of[..]),
            ],
        )?;
        Ok(())
    }

    fn delete_answer(&mut self, key: &[u8; 32]) -> Result<Vec<AnswersOf>, StoreError> {
        self.delete_answers(
            "DELETE FROM nimbus_remembered WHERE key = ?1 RETURNING credential, length(answer)",
            [&key[..]],
        )
    }

    fn delete_answers_outside(
        &mut self,
        most: usize,
        kept_ms: Range<i64>,
    ) -> Result<Vec<AnswersOf>, StoreError> {
        self.delete_answers(
            "DELETE FROM nimbus_remembered WHERE number IN
                 (SELECT number FROM nimbus_remembered ORDER BY number LIMIT ?1)
             AND (at < ?2 OR at >= ?3)
             RETURNING credential, length(answer)",
            params![sql_limit(most), kept_ms.start, kept_ms.end],
        )
    }

    fn count_answers(&mut self, more: AnswersOf) -> Result<AnswersOf, StoreError> {
        let AnswersOf {
            credential,
            count,
            bytes,
        } = more;
        let has = self.on(|connection| {
            connection
                .prepare_cached(
                    "INSERT INTO nimbus_remembered_of VALUES (?1, ?2, ?3)
                     ON CONFLICT DO UPDATE SET count = count + excluded.count, bytes = bytes + excluded.bytes
                     RETURNING count, bytes",
                )?
                .query_row(params![&credential[..], count, bytes], |row| {
                    Ok(AnswersOf {
                        credential,
                        count: row.get(0)?,
                        bytes: row.get(1)?,
                    })
                })
        })?;
        if has.count <= 0 {
            let sql = "DELETE FROM nimbus_remembered_of WHERE credential = ?1";
            self.change(sql, [&credential[..]])?;
        }
        Ok(has)
    }

    fn oldest_answer_ms(&mut self) -> Result<Option<i64>, StoreError> {
        self.on(|connection| {
            connection
                .prepare_cached("SELECT at FROM nimbus_remembered ORDER BY number LIMIT 1")?
                .query_row([], |row| row.get(0))
                .optional()
        })
    }
}

impl SqliteTransaction {
    /// Removes answers by a statement that returns whose each was and how long.
    fn delete_answers(
        &self,
        sql: &'static str,
        values: impl rusqlite::Params,
    ) -> Result<Vec<AnswersOf>, StoreError> {
        let gone = self.on(|connection| {
            let mut gone: BTreeMap<[u8; 32], (i64, i64)> = BTreeMap::new();
            let mut forget = connection.prepare_cached(sql)?;
            let mut rows = forget.query(values)?;
            while let Some(row) = rows.next()? {
                // Answers of an earlier version have no owner.
                if let Some(credential) = row.get(0)? {
                    let (count, bytes) = gone.entry(credential).or_default();
                    *count += 1;
                    *bytes += row.get::<_, i64>(1)?;
                }
            }
            Ok(gone)
        })?;
        let of = |(credential, (count, bytes))| AnswersOf {
            credential,
            count,
            bytes,
        };
        Ok(gone.into_iter().map(of).collect())
    }

    fn answers_end(&self, sql: &'static str) -> Result<Option<AnswersEnd>, StoreError> {
        self.on(|connection| {
            let mut find = connection.prepare_cached(sql)?;
            let end = find.query_row([], |row| {
                Ok(AnswersEnd {
                    number: row.get(0)?,
                    bytes: row.get(1)?,
                    size: row.get(2)?,
                })
            });
            end.optional()
        })
    }
}
