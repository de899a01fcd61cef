//! Jobs and crons in a tenant's file, and their running.
//!
//! Whatever changes when the tenant has work due tells the [`DueLog`](crate::tenants::DueLog) first, within the transaction and before its commit. What runs,
//! its outcome and its mutation share one transaction, so that a crash leaves either all of it or nothing: then it runs again.
//!
//! | crash point | when |
//! | --- | --- |
//! | `tenants::schedule::expected` | the control file knows of the work, the tenant's file does not |
//! | `tenants::schedule::applied` | a mutation is applied, its job still waits; nothing is committed |
//! | `tenants::schedule::finished` | the job is in the history; nothing is committed |
//!
//! From there on the points of the [writer](super::writer).

use std::collections::HashSet;

use rusqlite::{Connection, ErrorCode, OptionalExtension as _, Row, params};

use super::apply::{Reader, Writing, malformed, take_room};
use super::remembered::Part;
use super::{failure, one_more};
use crate::documents::schedule::{
    CLOCK_SLACK_MS, Cron, CronName, CronState, DueWork, FinishedJob, JOB_HISTORY, Job, JobId,
    JobPlace, LastRun, MAX_CRONS, MAX_JOBS, NewJob, Origin, Outcome, Ran, Schedule,
};
use crate::documents::{Done, InputError, Mutation, Once};
use crate::failpoints::crash_point;
use crate::metrics;
use crate::tenants::{Listed, StoreError};
use nimbus_manifests::TenantId;

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

/// When the first of the tenant's jobs and crons is due.
pub(super) fn earliest_due(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached(
            "SELECT min(due) FROM (SELECT min(due) AS due FROM nimbus_jobs
             UNION ALL SELECT min(due) FROM nimbus_crons)",
        )?
        .query_row([], |row| row.get(0))
}

/// All crons, by name.
pub(super) fn crons(connection: &Connection) -> rusqlite::Result<Vec<CronState>> {
    let sql = format!("SELECT {CRON} FROM nimbus_crons ORDER BY name");
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query_map([], stored_cron)?;
    rows.collect()
}

fn cron(connection: &Connection, name: &CronName) -> rusqlite::Result<Option<CronState>> {
    let sql = format!("SELECT {CRON} FROM nimbus_crons WHERE name = ?1");
    let mut statement = connection.prepare_cached(&sql)?;
    statement.query_row([name.as_str()], stored_cron).optional()
}

impl Writing<'_> {
    /// Adds a job, due `job.delay` after `now_ms`.
    pub(super) fn put_job(&mut self, job: &NewJob, now_ms: i64) -> Result<Job, StoreError> {
        self.may_grow()?;
        if self.count("SELECT count(*) FROM nimbus_jobs")? >= MAX_JOBS {
            return Err(StoreError::TooManyJobs);
        }
        let delay = i64::try_from(job.delay.as_millis()).unwrap_or(i64::MAX);
        let job = Job {
            id: JobId::generate(),
            run_at_ms: now_ms.saturating_add(delay),
            mutation: job.mutation.clone(),
        };
        self.expect_due(job.run_at_ms)?;
        let _one = self.change(
            "INSERT INTO nimbus_jobs (id, due, mutation) VALUES (?1, ?2, ?3)",
            params![job.id.as_bytes(), job.run_at_ms, job.mutation.to_json()],
        )?;
        Ok(job)
    }

    /// Adds a job, and once under a key.
    pub(super) fn put_job_once(
        &mut self,
        job: &NewJob,
        now_ms: i64,
        once: Option<&Once>,
    ) -> Result<Done<Job>, StoreError> {
        let Some(once) = once else {
            let outcome = self.put_job(job, now_ms)?;
            return Ok(Done {
                outcome,
                replayed: false,
            });
        };
        let (parts, replayed) = self.once(once, |writing| {
            let job = writing.put_job(job, now_ms)?;
            Ok(vec![Part {
                id: *job.id.as_bytes(),
                number: job.run_at_ms,
            }])
        })?;
        let outcome = parts.first().and_then(|part| {
            Some(Job {
                id: JobId::from_bytes(part.id)?,
                run_at_ms: part.number,
                // The same request asked for the same.
                mutation: job.mutation.clone(),
            })
        });
        let outcome = outcome.ok_or_else(|| self.failure(malformed(0, "answer")))?;
        Ok(Done { outcome, replayed })
    }

    /// Takes back a job that waits.
    pub(super) fn cancel_job(&mut self, id: JobId) -> Result<(), StoreError> {
        let deleted = self.change(
            "DELETE FROM nimbus_jobs WHERE id = ?1",
            params![id.as_bytes()],
        )?;
        if deleted > 0 {
            return Ok(());
        }
        let ran = finished_job(self.connection, id).map_err(|error| self.failure(error))?;
        Err(match ran {
            Some(_) => StoreError::JobRan { id },
            None => StoreError::JobNotFound { id },
        })
    }

    /// Adds a cron, or puts it in the place of the one of its name, which must be of the same origin. With the schedule that it had it keeps
    /// its next time and its last run; with another one it begins anew at `now_ms`.
    pub(super) fn put_cron(
        &mut self,
        cron: &Cron,
        origin: Origin,
        now_ms: i64,
    ) -> Result<CronState, StoreError> {
        self.may_grow()?;
        let before = self.cron(&cron.name)?;
        if let Some(before) = &before
            && before.origin != origin
        {
            return Err(owned(before));
        }
        if before.is_none() && self.count("SELECT count(*) FROM nimbus_crons")? >= MAX_CRONS {
            return Err(StoreError::TooManyCrons);
        }
        if let Some(before) = before
            && before.cron.schedule == cron.schedule
        {
            let _one = self.change(
                "UPDATE nimbus_crons SET mutation = ?2 WHERE name = ?1",
                params![cron.name.as_str(), cron.mutation.to_json()],
            )?;
            return Ok(CronState {
                cron: cron.clone(),
                ..before
            });
        }
        let due = cron.schedule.first_after(now_ms).ok_or_else(|| {
            let reason = "by the clocks of its time zone it never fires".to_owned();
            InputError::Cron { reason }
        })?;
        self.expect_due(due)?;
        let _one = self.change(
            "INSERT OR REPLACE INTO nimbus_crons (name, origin, due, reckoned, schedule, mutation)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                cron.name.as_str(),
                origin_number(origin),
                due,
                now_ms,
                cron.schedule.to_json(),
                cron.mutation.to_json()
            ],
        )?;
        Ok(CronState {
            cron: cron.clone(),
            origin,
            next_due_ms: due,
            last_run: None,
        })
    }

    /// Removes a cron, which must be of this origin.
    pub(super) fn delete_cron(
        &mut self,
        name: &CronName,
        origin: Origin,
    ) -> Result<(), StoreError> {
        let before = self
            .cron(name)?
            .ok_or_else(|| StoreError::CronNotFound { name: name.clone() })?;
        if before.origin != origin {
            return Err(owned(&before));
        }
        self.drop_cron(name)
    }

    /// Makes `crons` all that there are of [`Origin::Deploy`]; those made by themselves stay as they are. A name of theirs is
    /// [`StoreError::CronOwned`]. Call it within [`Writing::all_or_nothing`], with the rest of what is deployed.
    pub(super) fn replace_crons(&mut self, crons: &[Cron], now_ms: i64) -> Result<(), StoreError> {
        let before = self::crons(self.connection).map_err(|error| self.failure(error))?;
        let stays = |name: &CronName| crons.iter().any(|cron| cron.name == *name);
        for gone in before.iter().filter(|gone| gone.origin == Origin::Deploy) {
            if !stays(&gone.cron.name) {
                self.drop_cron(&gone.cron.name)?;
            }
        }
        for cron in crons {
            let _state = self.put_cron(cron, Origin::Deploy, now_ms)?;
        }
        Ok(())
    }

    /// Runs what is due by `now_ms` in the order of its time, at most `limit` of it. What has no room waits, and deletes go past it. An error is
    /// the tenant's or the machine's, or [`StoreError::Unrunnable`]: then nothing of it was done.
    pub(super) fn run_due(
        &mut self,
        now_ms: i64,
        limit: usize,
        give_up: Option<&DueWork>,
    ) -> Result<Ran, StoreError> {
        self.reckon_anew(now_ms)?;
        let mut ran = 0;
        let mut bytes = 0;
        while ran < limit && bytes < MAX_RUN_BYTES {
            let (job, cron) = self.next_due(now_ms).map_err(|error| self.failure(error))?;
            let (due_ms, done) = match (job, cron) {
                (Some(job), cron)
                    if cron
                        .as_ref()
                        .is_none_or(|cron| cron.next_due_ms >= job.run_at_ms) =>
                {
                    (job.run_at_ms, self.run_job(&job, now_ms, give_up))
                }
                (_, Some(cron)) => (cron.next_due_ms, self.run_cron(&cron, now_ms, give_up)),
                _ => break,
            };
            bytes += match done {
                Ok(bytes) => bytes,
                // What ran before it is kept. The next call begins with it.
                Err(StoreError::Unrunnable { .. }) if ran > 0 => break,
                Err(no_room @ StoreError::NoRoom { .. }) => {
                    ran += self.run_deletes(now_ms, limit, ran, give_up)?;
                    if ran == 0 {
                        return Err(no_room);
                    }
                    break;
                }
                Err(error) => return Err(error),
            };
            note_lag(now_ms, due_ms);
            ran += 1;
        }
        if ran > 0 {
            let _gone = self.change(
                "DELETE FROM nimbus_job_history
                 WHERE number <= (SELECT max(number) FROM nimbus_job_history) - ?1",
                // A small number.
                params![JOB_HISTORY as i64],
            )?;
        }
        let next_due_ms = earliest_due(self.connection).map_err(|error| self.failure(error))?;
        Ok(Ran { ran, next_due_ms })
    }

    /// Runs what is due and needs no room, past what waits for it: deletes, at most `limit` with the `before` that ran already. How many
    /// those were.
    fn run_deletes(
        &mut self,
        now_ms: i64,
        limit: usize,
        before: usize,
        give_up: Option<&DueWork>,
    ) -> Result<usize, StoreError> {
        let deletes = self
            .deletes(now_ms, limit - before)
            .map_err(|error| self.failure(error))?;
        for (ran, delete) in deletes.iter().enumerate() {
            let (due_ms, done) = match delete {
                Due::Job(job) => (job.run_at_ms, self.run_job(job, now_ms, give_up)),
                Due::Cron(cron) => (cron.next_due_ms, self.run_cron(cron, now_ms, give_up)),
            };
            match done {
                Ok(_small) => note_lag(now_ms, due_ms),
                Err(StoreError::Unrunnable { .. }) if before + ran > 0 => return Ok(ran),
                Err(error) => return Err(error),
            }
        }
        Ok(deletes.len())
    }

    /// Deletes that are due, in the order of their time, but for those of documents that work before them names: it waits, and they
    /// with it.
    fn deletes(&self, now_ms: i64, limit: usize) -> rusqlite::Result<Vec<Due>> {
        // Of each mutation no more is read than tells what it is: it may have a mebibyte.
        let mut heads = self.connection.prepare_cached(
            "SELECT due, 0, id, substr(mutation, 1, ?2) FROM nimbus_jobs WHERE due <= ?1
             UNION ALL SELECT due, 1, name, substr(mutation, 1, ?2) FROM nimbus_crons WHERE due <= ?1
             ORDER BY 1, 2, 3",
        )?;
        let mut rows = heads.query(params![now_ms, HEAD_CHARS])?;
        let (mut deletes, mut named) = (Vec::new(), HashSet::new());
        while let Some(row) = rows.next()? {
            let head: String = row.get(3)?;
            let of = document_of(&head);
            let waits = of.is_none_or(|id| named.contains(id));
            if waits || !head.starts_with(DELETE) {
                let _new = of.is_some_and(|id| named.insert(id.to_owned()));
                continue;
            }
            deletes.push(match row.get(1)? {
                0 => Due::Job(
                    self.connection
                        .prepare_cached("SELECT id, due, mutation FROM nimbus_jobs WHERE id = ?1")?
                        .query_row([row.get::<_, Vec<u8>>(2)?], |row| stored_job(row, 2))?,
                ),
                _ => {
                    let sql = format!("SELECT {CRON} FROM nimbus_crons WHERE name = ?1");
                    let mut find = self.connection.prepare_cached(&sql)?;
                    Due::Cron(find.query_row([row.get::<_, String>(2)?], stored_cron)?)
                }
            });
            if deletes.len() == limit {
                break;
            }
        }
        Ok(deletes)
    }

    /// The first job and the first cron that are due.
    fn next_due(&self, now_ms: i64) -> rusqlite::Result<(Option<Job>, Option<CronState>)> {
        let job = self
            .connection
            .prepare_cached(
                "SELECT id, due, mutation FROM nimbus_jobs WHERE due <= ?1 ORDER BY due, id LIMIT 1",
            )?
            .query_row([now_ms], |row| stored_job(row, 2))
            .optional()?;
        let sql =
            format!("SELECT {CRON} FROM nimbus_crons WHERE due <= ?1 ORDER BY due, name LIMIT 1");
        let cron = self
            .connection
            .prepare_cached(&sql)?
            .query_row([now_ms], stored_cron)
            .optional()?;
        Ok((job, cron))
    }

    /// Runs a job; how many bytes its mutation has.
    fn run_job(
        &mut self,
        job: &Job,
        now_ms: i64,
        give_up: Option<&DueWork>,
    ) -> Result<usize, StoreError> {
        let outcome = self.attempt(DueWork::Job(job.id), &job.mutation, give_up)?;
        crash_point!("tenants::schedule::applied");
        let id = job.id.as_bytes();
        let _one = self.change("DELETE FROM nimbus_jobs WHERE id = ?1", params![id])?;
        let _one = self.change(
            "INSERT INTO nimbus_job_history (id, due, finished, error, mutation) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![id, job.run_at_ms, now_ms, outcome.error(), job.mutation.to_json()],
        )?;
        crash_point!("tenants::schedule::finished");
        Ok(job.mutation.weight())
    }

    /// Runs a cron once, for however many times it is due, and sets its next time; how many bytes its mutation has.
    fn run_cron(
        &mut self,
        state: &CronState,
        now_ms: i64,
        give_up: Option<&DueWork>,
    ) -> Result<usize, StoreError> {
        let CronState {
            cron, next_due_ms, ..
        } = state;
        let work = DueWork::Cron(cron.name.clone());
        let outcome = self.attempt(work, &cron.mutation, give_up)?;
        crash_point!("tenants::schedule::applied");
        let name = cron.name.as_str();
        let _one = self.change(
            "UPDATE nimbus_crons SET last_due = ?2, last_finished = ?3, last_error = ?4 WHERE name = ?1",
            params![name, next_due_ms, now_ms, outcome.error()],
        )?;
        self.set_next(
            &cron.name,
            cron.schedule.next_after(*next_due_ms, now_ms),
            now_ms,
        )?;
        crash_point!("tenants::schedule::finished");
        Ok(cron.mutation.weight())
    }

    /// Applies a mutation, or undoes it alone. An error is not the mutation's.
    fn attempt(
        &mut self,
        work: DueWork,
        mutation: &Mutation,
        give_up: Option<&DueWork>,
    ) -> Result<Outcome, StoreError> {
        match self.all_or_nothing(|writing| writing.apply(mutation))? {
            Ok(_applied) => Ok(Outcome::Succeeded),
            Err(error) if error.concerns_mutation() => Ok(Outcome::Failed {
                error: error.to_string(),
            }),
            Err(error) if !is_of_statement(&error) => Err(error),
            Err(error) if give_up == Some(&work) => {
                tracing::error!(tenant = %self.tenant, %work, %error, "work that is due failed again and again, and is given up");
                Ok(Outcome::Failed {
                    // The tenant's users read it, and the engine may name what is the server's.
                    error: "given up, as the storage engine failed at it again and again; the server's log says more".to_owned(),
                })
            }
            Err(error) => Err(StoreError::Unrunnable {
                work,
                source: Box::new(error),
            }),
        }
    }

    /// After the clock was set back by more than [`CLOCK_SLACK_MS`], crons whose times were reckoned by the old clock get
    /// times of the new one: else one would pause for as long as the clock was wrong.
    fn reckon_anew(&mut self, now_ms: i64) -> Result<(), StoreError> {
        let sql = format!("SELECT {CRON} FROM nimbus_crons WHERE reckoned > ?1");
        let ahead = self
            .connection
            .prepare_cached(&sql)
            .and_then(|mut statement| {
                let rows =
                    statement.query_map([now_ms.saturating_add(CLOCK_SLACK_MS)], stored_cron)?;
                rows.collect::<rusqlite::Result<Vec<_>>>()
            })
            .map_err(|error| self.failure(error))?;
        for CronState { cron, .. } in ahead {
            let first = cron.schedule.first_after(now_ms);
            if let Some(first) = first {
                self.expect_due(first)?;
            }
            self.set_next(&cron.name, first, now_ms)?;
        }
        Ok(())
    }

    /// Sets the next time of a cron; one that has none is not due before the end of time.
    fn set_next(
        &mut self,
        name: &CronName,
        next: Option<i64>,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        let _one = self.change(
            "UPDATE nimbus_crons SET due = ?2, reckoned = ?3 WHERE name = ?1",
            params![name.as_str(), next.unwrap_or(i64::MAX), now_ms],
        )?;
        Ok(())
    }

    fn drop_cron(&mut self, name: &CronName) -> Result<(), StoreError> {
        let sql = "DELETE FROM nimbus_crons WHERE name = ?1";
        self.change(sql, params![name.as_str()]).map(drop)
    }

    fn cron(&self, name: &CronName) -> Result<Option<CronState>, StoreError> {
        cron(self.connection, name).map_err(|error| self.failure(error))
    }

    /// Has it noted that there will be work, before there is.
    fn expect_due(&self, due_ms: i64) -> Result<(), StoreError> {
        self.due.expect(self.tenant, due_ms)?;
        crash_point!("tenants::schedule::expected");
        Ok(())
    }

    fn count(&self, sql: &'static str) -> Result<usize, StoreError> {
        let count: i64 = self
            .connection
            .prepare_cached(sql)
            .and_then(|mut count| count.query_row([], |row| row.get(0)))
            .map_err(|error| self.failure(error))?;
        Ok(usize::try_from(count).unwrap_or(usize::MAX))
    }

    fn change(
        &self,
        sql: &'static str,
        values: impl rusqlite::Params,
    ) -> Result<usize, StoreError> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut change| change.execute(values))
            .map_err(|error| self.failure(error))
    }
}

impl Reader {
    /// Jobs that wait, as they will run.
    pub(super) fn jobs(
        &self,
        tenant: &TenantId,
        after: Option<JobPlace>,
        limit: usize,
    ) -> Result<Listed<Job>, StoreError> {
        let list = || {
            // Before every place: no job is due then.
            let (due, id) = after.map_or((i64::MIN, [0; 16]), |place| {
                (place.run_at_ms, *place.id.as_bytes())
            });
            let mut statement = self.connection().prepare_cached(
                "SELECT id, due, mutation FROM nimbus_jobs WHERE (due, id) > (?1, ?2) ORDER BY due, id LIMIT ?3",
            )?;
            let rows = statement.query_map(params![due, id, one_more(limit)], |row| {
                let job = stored_job(row, 2)?;
                take_room(job.mutation.weight())?;
                Ok(job)
            })?;
            Listed::take(rows, limit, |job| job.mutation.weight())
        };
        list().map_err(|error| failure(tenant, error))
    }

    /// A job that ran.
    pub(super) fn job_history(
        &self,
        tenant: &TenantId,
        id: JobId,
    ) -> Result<FinishedJob, StoreError> {
        finished_job(self.connection(), id)
            .map_err(|error| failure(tenant, error))?
            .ok_or(StoreError::JobNotFound { id })
    }

    /// Crons, by name.
    pub(super) fn crons(
        &self,
        tenant: &TenantId,
        after: Option<&CronName>,
        limit: usize,
    ) -> Result<Listed<CronState>, StoreError> {
        let list = || {
            let sql =
                format!("SELECT {CRON} FROM nimbus_crons WHERE name > ?1 ORDER BY name LIMIT ?2");
            let mut statement = self.connection().prepare_cached(&sql)?;
            // No name is empty.
            let after = after.map_or("", CronName::as_str);
            let rows = statement.query_map(params![after, one_more(limit)], |row| {
                let state = stored_cron(row)?;
                take_room(state.cron.mutation.weight())?;
                Ok(state)
            })?;
            Listed::take(rows, limit, |state| state.cron.mutation.weight())
        };
        list().map_err(|error| failure(tenant, error))
    }
}

/// A job or a cron that is due.
enum Due {
    Job(Job),
    Cron(CronState),
}

/// The document that a stored mutation names, from its first characters. An insert without an id may seem to name one that its fields do.
fn document_of(head: &str) -> Option<&str> {
    let (_before, id) = head.split_once("\"id\":\"")?;
    id.split('"').next()
}

fn note_lag(now_ms: i64, due_ms: i64) {
    metrics::LAG.record(now_ms.saturating_sub(due_ms) as f64 / 1000.0);
}

/// Whether the engine failed at what it was told to do, and not because something of the machine is missing.
fn is_of_statement(error: &StoreError) -> bool {
    let StoreError::Engine { source, .. } = error else {
        return false;
    };
    let code = source
        .downcast_ref::<rusqlite::Error>()
        .and_then(rusqlite::Error::sqlite_error_code);
    !matches!(
        code,
        Some(
            ErrorCode::OutOfMemory
                | ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::PermissionDenied
                | ErrorCode::FileLockingProtocolFailed
                | ErrorCode::OperationInterrupted
                | ErrorCode::OperationAborted
                | ErrorCode::SchemaChanged
        )
    )
}

fn finished_job(connection: &Connection, id: JobId) -> rusqlite::Result<Option<FinishedJob>> {
    connection
        .prepare_cached(
            "SELECT id, due, finished, error, mutation FROM nimbus_job_history WHERE id = ?1",
        )?
        .query_row([id.as_bytes()], |row| {
            Ok(FinishedJob {
                job: stored_job(row, 4)?,
                finished_at_ms: row.get(2)?,
                outcome: Outcome::of_error(row.get(3)?),
            })
        })
        .optional()
}

/// A job whose id and time are the first columns.
fn stored_job(row: &Row<'_>, mutation: usize) -> rusqlite::Result<Job> {
    Ok(Job {
        id: JobId::from_bytes(row.get(0)?).ok_or_else(|| malformed(0, "id"))?,
        run_at_ms: row.get(1)?,
        mutation: stored_mutation(row, mutation)?,
    })
}

/// The columns that [`stored_cron`] reads.
const CRON: &str = "name, origin, due, last_due, last_finished, last_error, schedule, mutation";

fn stored_cron(row: &Row<'_>) -> rusqlite::Result<CronState> {
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

fn owned(cron: &CronState) -> StoreError {
    StoreError::CronOwned {
        name: cron.cron.name.clone(),
        origin: cron.origin,
    }
}

/// How every stored delete begins: as [`Mutation::to_json`] writes it.
const DELETE: &str = r#"{"type":"delete","#;
/// So many characters of a stored mutation hold its type, its table and the id of its document.
const HEAD_CHARS: i64 = 256;
/// Bytes of mutations in one run, about: the last one may go beyond.
const MAX_RUN_BYTES: usize = 4 << 20;
