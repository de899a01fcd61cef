//! Requests that were sent under a key and what came of them, so that sending one again does nothing again.
//!
//! A row is written in the transaction of the effect: after a crash both are there or neither is. Rows go in the order in which
//! they came, in the writer's commits, once they are old.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::apply::{Writing, malformed, now_ms};
use crate::documents::schedule::CLOCK_SLACK_MS;
use crate::documents::{
    CREDENTIAL_PART, MAX_REMEMBERED, MAX_REMEMBERED_BYTES, Once, REMEMBERED_FOR,
};
use crate::tenants::StoreError;

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

/// Makes version 5 of version 4. What was remembered before counts for no credential: it is gone after a day.
pub(super) const ADD_CREDENTIALS: &str = "
    ALTER TABLE nimbus_remembered ADD COLUMN credential BLOB; -- SHA-256 of whose it is
    -- What each of them has there.
    CREATE TABLE nimbus_remembered_of (
        credential BLOB PRIMARY KEY NOT NULL,
        count INTEGER NOT NULL,
        bytes INTEGER NOT NULL       -- of answers
    ) STRICT, WITHOUT ROWID;";

/// Part of an answer: an id, and a number that goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) id: [u8; 16],
    pub(super) number: i64,
}

impl Part {
    fn to_bytes(self) -> [u8; PART_BYTES] {
        let mut bytes = [0; PART_BYTES];
        let (id, number) = bytes.split_at_mut(16);
        id.copy_from_slice(&self.id);
        number.copy_from_slice(&self.number.to_be_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; PART_BYTES]) -> Option<Self> {
        let (id, number) = bytes.split_first_chunk()?;
        Some(Self {
            id: *id,
            number: i64::from_be_bytes(number.try_into().ok()?),
        })
    }
}

/// When rows are old enough to go.
#[derive(Debug, Default)]
pub(super) struct Expiry {
    /// When to look next; nothing is known at first.
    next_ms: i64,
}

impl Expiry {
    /// Forgets some of what is old, if there is any.
    pub(super) fn forget(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let now = now_ms();
        if now < self.next_ms {
            return Ok(());
        }
        // What is far ahead was written by a clock that was wrong, and would stay for as long as it was.
        forget_rows(
            connection,
            "DELETE FROM nimbus_remembered WHERE number IN
                 (SELECT number FROM nimbus_remembered ORDER BY number LIMIT ?1)
             AND (at <= ?2 OR at > ?3)
             RETURNING credential, length(answer)",
            params![
                MAX_FORGOTTEN,
                now.saturating_sub(period_ms()),
                now.saturating_add(CLOCK_SLACK_MS)
            ],
        )?;
        let oldest: Option<i64> = connection
            .prepare_cached("SELECT at FROM nimbus_remembered ORDER BY number LIMIT 1")?
            .query_row([], |row| row.get(0))
            .optional()?;
        // What comes from here on is not old before that.
        self.next_ms = oldest.unwrap_or(now).saturating_add(period_ms());
        Ok(())
    }

    /// A commit failed: nothing is known.
    pub(super) fn unknown(&mut self) {
        *self = Self::default();
    }
}

impl Writing<'_> {
    /// Does some work unless it was done before under its key; whether it was. Call it within
    /// [`Writing::all_or_nothing`], so that the work and the memory of it are one.
    pub(super) fn once(
        &mut self,
        once: &Once,
        work: impl FnOnce(&mut Self) -> Result<Vec<Part>, StoreError>,
    ) -> Result<(Vec<Part>, bool), StoreError> {
        let now = now_ms();
        if let Some(found) = self.remembered(once)? {
            if found.at_ms > now.saturating_sub(period_ms()) {
                return if found.request == *once.request() {
                    Ok((found.answer, true))
                } else {
                    Err(StoreError::KeyReused)
                };
            }
            forget_rows(
                self.connection,
                "DELETE FROM nimbus_remembered WHERE key = ?1 RETURNING credential, length(answer)",
                [&once.key()[..]],
            )
            .map_err(|error| self.failure(error))?;
        }
        let before = self.applied.len();
        let answer = work(self)?;
        let wrote = self.applied.len() - before;
        // What deletes makes room for the memory of it; what checks alone, or does nothing, does not.
        if wrote == 0 || answer.len() > 2 * wrote {
            self.may_grow()?;
        }
        self.note_answer(once, now, &answer)?;
        Ok((answer, false))
    }

    fn remembered(&self, once: &Once) -> Result<Option<Found>, StoreError> {
        self.connection
            .prepare_cached("SELECT request, at, answer FROM nimbus_remembered WHERE key = ?1")
            .and_then(|mut find| find.query_row([&once.key()[..]], found).optional())
            .map_err(|error| self.failure(error))
    }

    fn note_answer(&self, once: &Once, now: i64, answer: &[Part]) -> Result<(), StoreError> {
        let answer: Vec<u8> = answer.iter().flat_map(|part| part.to_bytes()).collect();
        let size = i64::try_from(answer.len()).unwrap_or(i64::MAX);
        let (first, last) = self.ends().map_err(|error| self.failure(error))?;
        // Rows in between may be gone: these are the most that there can be.
        let held = last.bytes - first.bytes + first.size;
        if last.number - first.number + 1 >= MAX_REMEMBERED
            || held.saturating_add(size) > MAX_REMEMBERED_BYTES
        {
            return Err(StoreError::TooManyRemembered { own: false });
        }
        let own = self.count_own(once, size);
        let (count, bytes) = own.map_err(|error| self.failure(error))?;
        if count > MAX_REMEMBERED / CREDENTIAL_PART
            || bytes > MAX_REMEMBERED_BYTES / CREDENTIAL_PART
        {
            return Err(StoreError::TooManyRemembered { own: true });
        }
        let _one = self
            .connection
            .prepare_cached("INSERT INTO nimbus_remembered VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")
            .and_then(|mut insert| {
                insert.execute(params![
                    last.number + 1,
                    &once.key()[..],
                    &once.request()[..],
                    now,
                    last.bytes + size,
                    answer,
                    &once.credential()[..],
                ])
            })
            .map_err(|error| self.failure(error))?;
        Ok(())
    }

    /// Counts one more answer of `size` bytes for its credential; how many that has by then, and of how many bytes. Where it is refused, the
    /// savepoint takes it back.
    fn count_own(&self, once: &Once, size: i64) -> rusqlite::Result<(i64, i64)> {
        self.connection
            .prepare_cached(
                "INSERT INTO nimbus_remembered_of VALUES (?1, 1, ?2)
                 ON CONFLICT DO UPDATE SET count = count + 1, bytes = bytes + excluded.bytes
                 RETURNING count, bytes",
            )?
            .query_row(params![&once.credential()[..], size], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
    }

    /// The first row and the last one; as good as none where there is none.
    fn ends(&self) -> rusqlite::Result<(End, End)> {
        let end = |sql| {
            let mut find = self.connection.prepare_cached(sql)?;
            let end = find.query_row([], |row| {
                Ok(End {
                    number: row.get(0)?,
                    bytes: row.get(1)?,
                    size: row.get(2)?,
                })
            });
            end.optional()
        };
        let first = end(
            "SELECT number, bytes, length(answer) FROM nimbus_remembered ORDER BY number LIMIT 1",
        )?;
        let last = end(
            "SELECT number, bytes, length(answer) FROM nimbus_remembered ORDER BY number DESC LIMIT 1",
        )?;
        Ok(match (first, last) {
            (Some(first), Some(last)) => (first, last),
            _ => (End::none(1), End::none(0)),
        })
    }
}

/// Removes rows, which `sql` returns as whose they were and how long their answers, and counts them no more.
fn forget_rows(
    connection: &Connection,
    sql: &str,
    values: impl rusqlite::Params,
) -> rusqlite::Result<()> {
    let mut gone: BTreeMap<Vec<u8>, (i64, i64)> = BTreeMap::new();
    let mut forget = connection.prepare_cached(sql)?;
    let mut rows = forget.query(values)?;
    while let Some(row) = rows.next()? {
        // What was remembered by an earlier version is nobody's.
        if let Some(credential) = row.get(0)? {
            let (count, bytes) = gone.entry(credential).or_default();
            *count += 1;
            *bytes += row.get::<_, i64>(1)?;
        }
    }
    for (credential, (count, bytes)) in gone {
        let _one = connection
            .prepare_cached(
                "UPDATE nimbus_remembered_of SET count = count - ?2, bytes = bytes - ?3 WHERE credential = ?1",
            )?
            .execute(params![credential, count, bytes])?;
        let _none_left = connection
            .prepare_cached(
                "DELETE FROM nimbus_remembered_of WHERE credential = ?1 AND count <= 0",
            )?
            .execute([credential])?;
    }
    Ok(())
}

struct End {
    number: i64,
    bytes: i64,
    size: i64,
}

impl End {
    fn none(number: i64) -> Self {
        Self {
            number,
            bytes: 0,
            size: 0,
        }
    }
}

struct Found {
    request: [u8; 32],
    at_ms: i64,
    answer: Vec<Part>,
}

fn found(row: &Row<'_>) -> rusqlite::Result<Found> {
    let answer: Vec<u8> = row.get(2)?;
    let (parts, rest) = answer.as_chunks();
    let parts: Option<Vec<Part>> = parts.iter().map(Part::from_bytes).collect();
    Ok(Found {
        request: row.get(0)?,
        at_ms: row.get(1)?,
        answer: parts
            .filter(|_| rest.is_empty())
            .ok_or_else(|| malformed(2, "answer"))?,
    })
}

fn period_ms() -> i64 {
    i64::try_from(REMEMBERED_FOR.as_millis()).unwrap_or(i64::MAX)
}

const PART_BYTES: usize = 24;
/// Rows that go in one commit.
const MAX_FORGOTTEN: i64 = 1000;
