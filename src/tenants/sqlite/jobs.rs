//! Jobs and crons as SQL.

use std::ops::ControlFlow;

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::reader::Reader;
use super::rows::{malformed, one_more, sql_limit, take_room};
use super::transaction::SqliteTransaction;
use crate::documents::Mutation;
use crate::documents::schedule::{
    Cron, CronName, CronState, DueWork, FinishedJob, Job, JobId, JobPlace, LastRun, Origin,
    Outcome, Schedule,
};
use crate::tenants::backend::{JobRows, JobWrites};
use crate::tenants::{Listed, StoreError};

/// The tables of version 3. All times are milliseconds since the Unix epoch.
///
/// Large columns come last, so that looking at the others does not read them.
pub(super) const TABLES: &str = "
    -- Jobs that wait.
    CREATE TABLE nimbus_jobs (
        id BLOB PRIMARY KEY NOT NULL,    -- 16 bytes, UUIDv7
        due INTEGER NOT NULL,
        mutation TEXT NOT NULL           -- as clients write it
    ) STRICT;
    CREATE INDEX nimbus_jobs_due ON nimbus_jobs (due, id);
    -- The last jobs that ran.
    CREATE TABLE nimbus_job_history (
        number INTEGER PRIMARY KEY,      -- in the order in which they ran
        id BLOB NOT NULL UNIQUE,
        due INTEGER NOT NULL,
        finished INTEGER NOT NULL,
        error TEXT,                      -- of one that failed
        mutation TEXT NOT NULL
    ) STRICT;
    CREATE TABLE nimbus_crons (
        name TEXT PRIMARY KEY NOT NULL,
        origin INTEGER NOT NULL,         -- whose it is: 0 made by itself, 1 part of a deploy
        due INTEGER NOT NULL,            -- the next time
        reckoned INTEGER NOT NULL,       -- what the clock said when `due` was reckoned
        last_due INTEGER,                -- of the last run, if there was one
        last_finished INTEGER,
        last_error TEXT,
        schedule TEXT NOT NULL,          -- as clients write it
        mutation TEXT NOT NULL
    ) STRICT;
    CREATE INDEX nimbus_crons_due ON nimbus_crons (due, name);";

impl JobRows for Reader {
    fn earliest_due(&mut self) -> Result<Option<i64>, StoreError> {
        self.on(earliest_due)
    }

    fn jobs(&mut self, after: Option<JobPlace>, limit: usize) -> Result<Listed<Job>, StoreError> {
        // Before every place: no job is due then.
        let (due, id) = after.map_or((i64::MIN, [0; 16]), |place| {
            (place.run_at_ms, *place.id.as_bytes())
        });
        self.on(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT id, due, mutation FROM nimbus_jobs WHERE (due, id) > (?1, ?2) ORDER BY due, id LIMIT ?3",
            )?;
            let rows = statement.query_map(params![due, id, one_more(limit)], |row| {
                let job = stored_job(row, 2)?;
                take_room(job.mutation.weight())?;
                Ok(job)
            })?;
            Listed::take(rows, limit, |job| job.mutation.weight())
        })
    }

    fn finished_job(&mut self, id: JobId) -> Result<Option<FinishedJob>, StoreError> {
        self.on(|connection| {
            connection
                .prepare_cached(
                    "SELECT id, due, finished, error, mutation FROM nimbus_job_history WHERE id = ?1",
                )?
                .query_row([id.as_bytes()], stored_finished_job)
                .optional()
        })
    }

    fn crons(
        &mut self,
        after: Option<&CronName>,
        limit: usize,
    ) -> Result<Listed<CronState>, StoreError> {
        let sql = format!("SELECT {CRON} FROM nimbus_crons WHERE name > ?1 ORDER BY name LIMIT ?2");
        // No name is empty.
        let after = after.map_or("", CronName::as_str);
        self.on(|connection| {
            let mut statement = connection.prepare_cached(&sql)?;
            let rows = statement.query_map(params![after, one_more(limit)], |row| {
                let state = stored_cron(row)?;
                take_room(state.cron.mutation.weight())?;
                Ok(state)
            })?;
            Listed::take(rows, limit, |state| state.cron.mutation.weight())
        })
    }

    fn all_crons(&mut self) -> Result<Vec<CronState>, StoreError> {
        let sql = format!("SELECT {CRON} FROM nimbus_crons ORDER BY name");
        self.on(|connection| {
            let mut statement = connection.prepare_cached(&sql)?;
            let rows = statement.query_map([], stored_cron)?;
            rows.collect()
        })
    }
}

/// When the first of the tenant's jobs and crons is due.
pub(super) fn earliest_due(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached(
            "SELECT min(due) FROM (SELECT min(due) AS due FROM nimbus_jobs
             UNION ALL SELECT min(due) FROM nimbus_crons)",
        )?
        .query_row([], |row| row.get(0))
}

impl JobWrites for SqliteTransaction {
    fn count_jobs(&mut self) -> Result<usize, StoreError> {
        self.count("SELECT count(*) FROM nimbus_jobs")
    }

    fn insert_job(&mut self, job: &Job) -> Result<(), StoreError> {
        self.change(
            "INSERT INTO nimbus_jobs (id, due, mutation) VALUES (?1, ?2, ?3)",
            params![job.id.as_bytes(), job.run_at_ms, job.mutation.to_json()],
        )?;
        Ok(())
    }

    fn job(&mut self, id: JobId) -> Result<Option<Job>, StoreError> {
        self.on(|connection| {
            connection
                .prepare_cached("SELECT id, due, mutation FROM nimbus_jobs WHERE id = ?1")?
                .query_row([id.as_bytes()], |row| stored_job(row, 2))
                .optional()
        })
    }

    fn delete_job(&mut self, id: JobId) -> Result<bool, StoreError> {
        let sql = "DELETE FROM nimbus_jobs WHERE id = ?1";
        Ok(self.change(sql, [id.as_bytes()])? > 0)
    }

    fn due_jobs(
        &mut self,
        by_ms: i64,
        limit: usize,
        most_bytes: usize,
    ) -> Result<Vec<Job>, StoreError> {
        self.on(|connection| {
            let mut due = connection.prepare_cached(
                "SELECT id, due, mutation FROM nimbus_jobs WHERE due <= ?1 ORDER BY due, id LIMIT ?2",
            )?;
            let due = due.query_map([by_ms, sql_limit(limit)], |row| stored_job(row, 2))?;
            up_to(due, most_bytes, |job| job.mutation.weight())
        })
    }

    fn each_due(
        &mut self,
        by_ms: i64,
        characters: usize,
        mut each: impl FnMut(DueWork, &str) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.on(|connection| {
            let mut heads = connection.prepare_cached(
                "SELECT due, 0, id, substr(mutation, 1, ?2) FROM nimbus_jobs WHERE due <= ?1
                 UNION ALL SELECT due, 1, name, substr(mutation, 1, ?2) FROM nimbus_crons WHERE due <= ?1
                 ORDER BY 1, 2, 3",
            )?;
            let mut rows = heads.query(params![by_ms, sql_limit(characters)])?;
            while let Some(row) = rows.next()? {
                let work = match row.get(1)? {
                    0 => DueWork::Job(
                        JobId::from_bytes(row.get(2)?).ok_or_else(|| malformed(2, "id"))?,
                    ),
                    _ => {
                        let name: String = row.get(2)?;
                        DueWork::Cron(name.parse().map_err(|_| malformed(2, "name"))?)
                    }
                };
                if each(work, row.get_ref(3)?.as_str()?).is_break() {
                    break;
                }
            }
            Ok(())
        })
    }

    fn insert_finished_job(&mut self, finished: &FinishedJob) -> Result<(), StoreError> {
        let FinishedJob {
            job,
            finished_at_ms,
            outcome,
        } = finished;
        self.change(
            "INSERT INTO nimbus_job_history (id, due, finished, error, mutation) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                job.id.as_bytes(),
                job.run_at_ms,
                finished_at_ms,
                outcome.error(),
                job.mutation.to_json()
            ],
        )?;
        Ok(())
    }

    fn trim_job_history(&mut self, kept: usize) -> Result<(), StoreError> {
        self.change(
            "DELETE FROM nimbus_job_history
             WHERE number <= (SELECT max(number) FROM nimbus_job_history) - ?1",
            [sql_limit(kept)],
        )?;
        Ok(())
    }

    fn count_crons(&mut self) -> Result<usize, StoreError> {
        self.count("SELECT count(*) FROM nimbus_crons")
    }

    fn cron(&mut self, name: &CronName) -> Result<Option<CronState>, StoreError> {
        let sql = format!("SELECT {CRON} FROM nimbus_crons WHERE name = ?1");
        self.on(|connection| {
            let mut statement = connection.prepare_cached(&sql)?;
            statement.query_row([name.as_str()], stored_cron).optional()
        })
    }

    fn due_crons(
        &mut self,
        by_ms: i64,
        limit: usize,
        most_bytes: usize,
    ) -> Result<Vec<CronState>, StoreError> {
        let sql =
            format!("SELECT {CRON} FROM nimbus_crons WHERE due <= ?1 ORDER BY due, name LIMIT ?2");
        self.on(|connection| {
            let mut due = connection.prepare_cached(&sql)?;
            let due = due.query_map([by_ms, sql_limit(limit)], stored_cron)?;
            up_to(due, most_bytes, |state| state.cron.mutation.weight())
        })
    }

    fn crons_set_after(&mut self, clock_ms: i64) -> Result<Vec<Cron>, StoreError> {
        let sql = format!("SELECT {CRON} FROM nimbus_crons WHERE reckoned > ?1");
        self.on(|connection| {
            let mut statement = connection.prepare_cached(&sql)?;
            let rows = statement.query_map([clock_ms], |row| Ok(stored_cron(row)?.cron))?;
            rows.collect()
        })
    }

    fn put_cron(&mut self, cron: &CronState, clock_ms: i64) -> Result<(), StoreError> {
        let CronState {
            cron,
            origin,
            next_due_ms,
            ..
        } = cron;
        self.change(
            "INSERT OR REPLACE INTO nimbus_crons (name, origin, due, reckoned, schedule, mutation)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                cron.name.as_str(),
                origin_number(*origin),
                next_due_ms,
                clock_ms,
                cron.schedule.to_json(),
                cron.mutation.to_json()
            ],
        )?;
        Ok(())
    }

    fn set_cron_mutation(
        &mut self,
        name: &CronName,
        mutation: &Mutation,
    ) -> Result<(), StoreError> {
        let sql = "UPDATE nimbus_crons SET mutation = ?2 WHERE name = ?1";
        self.change(sql, params![name.as_str(), mutation.to_json()])
            .map(drop)
    }

    fn set_cron_next(
        &mut self,
        name: &CronName,
        next_due_ms: i64,
        clock_ms: i64,
    ) -> Result<(), StoreError> {
        let sql = "UPDATE nimbus_crons SET due = ?2, reckoned = ?3 WHERE name = ?1";
        self.change(sql, params![name.as_str(), next_due_ms, clock_ms])
            .map(drop)
    }

    fn set_cron_last_run(&mut self, name: &CronName, run: &LastRun) -> Result<(), StoreError> {
        let LastRun {
            run_at_ms,
            finished_at_ms,
            outcome,
        } = run;
        self.change(
            "UPDATE nimbus_crons SET last_due = ?2, last_finished = ?3, last_error = ?4 WHERE name = ?1",
            params![name.as_str(), run_at_ms, finished_at_ms, outcome.error()],
        )?;
        Ok(())
    }

    fn delete_cron(&mut self, name: &CronName) -> Result<(), StoreError> {
        let sql = "DELETE FROM nimbus_crons WHERE name = ?1";
        self.change(sql, [name.as_str()]).map(drop)
    }
}

/// The first rows, and none after those that together have so many bytes.
pub(super) fn up_to<T>(
    rows: impl Iterator<Item = rusqlite::Result<T>>,
    most_bytes: usize,
    weigh: impl Fn(&T) -> usize,
) -> rusqlite::Result<Vec<T>> {
    let (mut taken, mut bytes) = (Vec::new(), 0);
    for row in rows {
        let row = row?;
        bytes += weigh(&row);
        taken.push(row);
        if bytes >= most_bytes {
            break;
        }
    }
    Ok(taken)
}

/// A job whose id and time are the first columns.
fn stored_job(row: &Row<'_>, mutation: usize) -> rusqlite::Result<Job> {
    Ok(Job {
        id: JobId::from_bytes(row.get(0)?).ok_or_else(|| malformed(0, "id"))?,
        run_at_ms: row.get(1)?,
        mutation: stored_mutation(row, mutation)?,
    })
}

/// A job of the history whose columns are the first.
pub(super) fn stored_finished_job(row: &Row<'_>) -> rusqlite::Result<FinishedJob> {
    Ok(FinishedJob {
        job: stored_job(row, 4)?,
        finished_at_ms: row.get(2)?,
        outcome: Outcome::of_error(row.get(3)?),
    })
}

/// The columns that [`stored_cron`] reads.
pub(super) const CRON: &str =
    "name, origin, due, last_due, last_finished, last_error, schedule, mutation";

pub(super) fn stored_cron(row: &Row<'_>) -> rusqlite::Result<CronState> {
    let text = |column| row.get::<_, String>(column);
    let last = (row.get(3)?, row.get(4)?);
    Ok(CronState {
        cron: Cron {
            name: text(0)?.parse().map_err(|_| malformed(0, "name"))?,
            schedule: Schedule::from_json(&text(6)?).map_err(|_| malformed(6, "schedule"))?,
            mutation: stored_mutation(row, 7)?,
        },
        origin: match row.get(1)? {
            0 => Origin::Api,
            1 => Origin::Deploy,
            _ => return Err(malformed(1, "origin")),
        },
        next_due_ms: row.get(2)?,
        last_run: match last {
            (Some(run_at_ms), Some(finished_at_ms)) => Some(LastRun {
                run_at_ms,
                finished_at_ms,
                outcome: Outcome::of_error(row.get(5)?),
            }),
            _ => None,
        },
    })
}

fn stored_mutation(row: &Row<'_>, column: usize) -> rusqlite::Result<Mutation> {
    let text: String = row.get(column)?;
    Mutation::from_json(&text).map_err(|_| malformed(column, "mutation"))
}

/// An origin as the table holds it; [`stored_cron`] reads it.
fn origin_number(origin: Origin) -> i64 {
    match origin {
        Origin::Api => 0,
        Origin::Deploy => 1,
    }
}
