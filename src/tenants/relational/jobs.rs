//! Jobs and crons.

use std::ops::ControlFlow;

use super::{
    engine::{Engine, Malformed, Row, Value, values},
    held::Table,
    reader::Reader,
    transaction::RelationalTransaction,
};
use crate::documents::Mutation;
use crate::documents::schedule::{
    Cron, CronName, CronState, DueWork, FinishedJob, Job, JobId, JobPlace, LastRun, Origin,
    Outcome, Schedule,
};
use crate::tenants::backend::{JobRows, JobWrites};
use crate::tenants::{Listed, StoreError};

impl<E: Engine> JobRows for Reader<E> {
    fn earliest_due(&mut self) -> Result<Option<i64>, StoreError> {
        let row = self.ask_one(
            "SELECT min(due) FROM (SELECT min(due) AS due FROM @jobs UNION ALL SELECT min(due) AS due FROM @crons) AS both_",
            Vec::new(),
        )?;
        let due = row.map_or(Ok(None), |row| row.maybe_integer(0));
        self.sound(due)
    }

    fn jobs(&mut self, after: Option<JobPlace>, limit: usize) -> Result<Listed<Job>, StoreError> {
        // Before every place: no job is due then.
        let (due, id) = after.map_or((i64::MIN, [0; 16]), |place| {
            (place.run_at_ms, *place.id.as_bytes())
        });
        let place = [Value::from(due), Value::from(&id)];
        let (rest, mut values) = E::beyond(["due", "id"], ">", place);
        values.extend(values![limit.saturating_add(1)]);
        self.listed(
            &format!("SELECT id, due, mutation FROM @jobs WHERE {rest} ORDER BY due, id LIMIT ?"),
            values,
            limit,
            stored_job,
            |job| job.mutation.weight(),
        )
    }

    fn finished_job(&mut self, id: JobId) -> Result<Option<FinishedJob>, StoreError> {
        let row = self.ask_one(
            &format!("SELECT {FINISHED_JOB} FROM @job_history WHERE id = ?"),
            values![id.as_bytes()],
        )?;
        let finished = row.map(|mut row| stored_finished_job(&mut row));
        self.sound(finished.transpose())
    }

    fn crons(
        &mut self,
        after: Option<&CronName>,
        limit: usize,
    ) -> Result<Listed<CronState>, StoreError> {
        // No name is empty.
        let after = after.map_or("", CronName::as_str);
        self.listed(
            &format!("SELECT {CRON} FROM @crons WHERE name > ? ORDER BY name LIMIT ?"),
            values![after, limit.saturating_add(1)],
            limit,
            |row| Ok(stored_cron(row)?.0),
            |state| state.cron.mutation.weight(),
        )
    }

    fn all_crons(&mut self) -> Result<Vec<CronState>, StoreError> {
        let rows = self.ask(
            &format!("SELECT {CRON} FROM @crons ORDER BY name"),
            Vec::new(),
        )?;
        let crons = rows.into_iter().map(|row| Ok(stored_cron(row)?.0));
        self.sound(crons.collect())
    }
}

impl<E: Engine> JobWrites for RelationalTransaction<E> {
    fn count_jobs(&mut self) -> Result<usize, StoreError> {
        let count = match self.reader.writes.job_count {
            Some(count) => count,
            None => {
                let count = self
                    .reader
                    .ask_integer("SELECT count(*) FROM @jobs", Vec::new())?;
                self.reader.writes.job_count = Some(count);
                count
            }
        };
        Ok(usize::try_from(count).unwrap_or(0))
    }

    fn insert_job(&mut self, job: &Job) -> Result<(), StoreError> {
        let row = values![job.run_at_ms, job.mutation.to_json()];
        self.put_new(Table::Jobs, values![job.id.as_bytes()], row);
        self.reader.writes.jobs.set(job.id, Some(job.clone()));
        self.count_job(1);
        Ok(())
    }

    fn job(&mut self, id: JobId) -> Result<Option<Job>, StoreError> {
        if let Some(known) = self.reader.writes.jobs.get(&id) {
            return Ok(known.clone());
        }
        let rows = self.reader.ask_structure(
            "SELECT id, due, mutation FROM @jobs WHERE id = ?",
            values![id.as_bytes()],
        )?;
        let job = rows.into_iter().next().map(stored_job).transpose();
        let job = self.reader.sound(job)?;
        self.reader.writes.jobs.learn(id, job.clone());
        Ok(job)
    }

    fn delete_job(&mut self, id: JobId) -> Result<bool, StoreError> {
        if self.job(id)?.is_none() {
            return Ok(false);
        }
        self.put(Table::Jobs, values![id.as_bytes()], None);
        self.reader.writes.jobs.set(id, None);
        self.count_job(-1);
        Ok(true)
    }

    /// The lock on the row is what [`Catalog::claim`](super::catalog::Catalog::claim) of other
    /// servers passes over.
    fn claim_due(&mut self) -> Result<(), StoreError> {
        let space = &self.reader.space;
        let sql = format!(
            "SELECT at FROM {} WHERE name = ?{}",
            space.of_provider("due"),
            E::LOCKING
        );
        let statement = space.statement(&sql, values![space.tenant.as_str()]);
        self.reader.run(&[statement]).map(drop)
    }

    fn due_jobs(
        &mut self,
        by_ms: i64,
        limit: usize,
        most_bytes: usize,
    ) -> Result<Vec<Job>, StoreError> {
        let due = self.up_to(
            "SELECT id, due, mutation FROM @jobs WHERE due <= ? ORDER BY due, id LIMIT ?",
            values![by_ms, limit],
            most_bytes,
            stored_job,
            |job| job.mutation.weight(),
        )?;
        for job in &due {
            self.reader.writes.jobs.learn(job.id, Some(job.clone()));
        }
        let mutations: Vec<&Mutation> = due.iter().map(|job| &job.mutation).collect();
        self.expect_mutations(&mutations)?;
        Ok(due)
    }

    fn each_due(
        &mut self,
        by_ms: i64,
        characters: usize,
        mut each: impl FnMut(DueWork, &str) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        // Bytes, of which the last may be part of a character.
        let bytes = characters.saturating_mul(4);
        let sql = format!(
            "SELECT due, 0 AS kind, id, substr(mutation, 1, {bytes}) FROM @jobs WHERE due <= ?
             UNION ALL SELECT due, 1 AS kind, name, substr(mutation, 1, {bytes}) FROM @crons WHERE due <= ? ORDER BY 1, 2, 3"
        );
        self.reader
            .each(&sql, values![by_ms, by_ms], |space, mut row| {
                let mut read = || {
                    let work = match row.integer(1)? {
                        0 => {
                            let id = JobId::from_bytes(row.array(2)?);
                            DueWork::Job(id.ok_or(Malformed("an id"))?)
                        }
                        _ => {
                            let name = row.text(2)?.parse();
                            DueWork::Cron(name.map_err(|_| Malformed("a name"))?)
                        }
                    };
                    Ok((work, row.bytes(3)?))
                };
                let (work, head) = read().map_err(|what| space.malformed(what))?;
                Ok(each(work, &String::from_utf8_lossy(&head)))
            })
    }

    fn insert_finished_job(&mut self, finished: &FinishedJob) -> Result<(), StoreError> {
        let FinishedJob {
            job,
            finished_at_ms,
            outcome,
        } = finished;
        self.put_statement(
            "INSERT INTO @job_history (number, id, due, finished, failure, mutation)
             SELECT coalesce(max(number), 0) + 1, ?, ?, ?, ?, ? FROM @job_history",
            values![
                job.id.as_bytes(),
                job.run_at_ms,
                *finished_at_ms,
                outcome.error(),
                job.mutation.to_json()
            ],
        );
        Ok(())
    }

    fn trim_job_history(&mut self, kept: usize) -> Result<(), StoreError> {
        self.put_statement(
            "DELETE FROM @job_history WHERE number <= (SELECT last FROM (SELECT max(number) AS last FROM @job_history) AS newest) - ?",
            values![kept],
        );
        Ok(())
    }

    fn count_crons(&mut self) -> Result<usize, StoreError> {
        let count = self
            .reader
            .ask_integer("SELECT count(*) FROM @crons", Vec::new())?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    fn cron(&mut self, name: &CronName) -> Result<Option<CronState>, StoreError> {
        Ok(self.known_cron(name)?.map(|(state, _reckoned)| state))
    }

    fn due_crons(
        &mut self,
        by_ms: i64,
        limit: usize,
        most_bytes: usize,
    ) -> Result<Vec<CronState>, StoreError> {
        let due = self.up_to(
            &format!("SELECT {CRON} FROM @crons WHERE due <= ? ORDER BY due, name LIMIT ?"),
            values![by_ms, limit],
            most_bytes,
            stored_cron,
            |(state, _reckoned)| state.cron.mutation.weight(),
        )?;
        let due = self.learn_crons(due);
        let mutations: Vec<&Mutation> = due.iter().map(|state| &state.cron.mutation).collect();
        self.expect_mutations(&mutations)?;
        Ok(due)
    }

    fn crons_set_after(&mut self, clock_ms: i64) -> Result<Vec<Cron>, StoreError> {
        let rows = self.reader.ask(
            &format!("SELECT {CRON} FROM @crons WHERE reckoned > ? ORDER BY name"),
            values![clock_ms],
        )?;
        let crons = self
            .reader
            .sound(rows.into_iter().map(stored_cron).collect())?;
        let crons = self.learn_crons(crons).into_iter();
        Ok(crons.map(|state| state.cron).collect())
    }

    fn put_cron(&mut self, cron: &CronState, clock_ms: i64) -> Result<(), StoreError> {
        let before = CronState {
            last_run: None,
            ..cron.clone()
        };
        self.store_cron(&before, clock_ms);
        Ok(())
    }

    fn set_cron_mutation(
        &mut self,
        name: &CronName,
        mutation: &Mutation,
    ) -> Result<(), StoreError> {
        self.change_cron(name, |state, _reckoned| {
            state.cron.mutation = mutation.clone();
        })
    }

    fn set_cron_next(
        &mut self,
        name: &CronName,
        next_due_ms: i64,
        clock_ms: i64,
    ) -> Result<(), StoreError> {
        self.change_cron(name, |state, reckoned| {
            state.next_due_ms = next_due_ms;
            *reckoned = clock_ms;
        })
    }

    fn set_cron_last_run(&mut self, name: &CronName, run: &LastRun) -> Result<(), StoreError> {
        self.change_cron(name, |state, _reckoned| state.last_run = Some(run.clone()))
    }

    fn delete_cron(&mut self, name: &CronName) -> Result<(), StoreError> {
        self.put(Table::Crons, values![name.as_str()], None);
        self.reader.writes.crons.set(name.clone(), None);
        Ok(())
    }
}

impl<E: Engine> RelationalTransaction<E> {
    fn count_job(&mut self, more: i64) {
        if let Some(count) = &mut self.reader.writes.job_count {
            *count += more;
        }
    }

    /// A cron as this transaction has it, and what the clock said when its next time was reckoned.
    fn known_cron(&mut self, name: &CronName) -> Result<Option<(CronState, i64)>, StoreError> {
        if self.reader.writes.crons.get(name).is_none() {
            let rows = self.reader.ask_structure(
                &format!("SELECT {CRON} FROM @crons WHERE name = ?"),
                values![name.as_str()],
            )?;
            let cron = rows.into_iter().next().map(stored_cron).transpose();
            let cron = self.reader.sound(cron)?;
            self.reader.writes.crons.learn(name.clone(), cron);
        }
        Ok(self.reader.writes.crons.get(name).cloned().flatten())
    }

    fn learn_crons(&mut self, crons: Vec<(CronState, i64)>) -> Vec<CronState> {
        let learned = crons.into_iter().map(|(state, reckoned)| {
            let known = Some((state.clone(), reckoned));
            let name = state.cron.name.clone();
            self.reader.writes.crons.learn(name, known);
            state
        });
        learned.collect()
    }

    fn change_cron(
        &mut self,
        name: &CronName,
        change: impl FnOnce(&mut CronState, &mut i64),
    ) -> Result<(), StoreError> {
        if let Some((mut state, mut reckoned)) = self.known_cron(name)? {
            change(&mut state, &mut reckoned);
            self.store_cron(&state, reckoned);
        }
        Ok(())
    }

    fn store_cron(&mut self, state: &CronState, clock_ms: i64) {
        let CronState {
            cron,
            origin,
            next_due_ms,
            last_run,
        } = state;
        let last = last_run.as_ref();
        let row = values![
            origin_number(*origin),
            *next_due_ms,
            clock_ms,
            last.map(|run| run.run_at_ms),
            last.map(|run| run.finished_at_ms),
            last.and_then(|run| run.outcome.error()),
            cron.schedule.to_json(),
            cron.mutation.to_json()
        ];
        self.put(Table::Crons, values![cron.name.as_str()], Some(row));
        let known = Some((state.clone(), clock_ms));
        self.reader.writes.crons.set(cron.name.clone(), known);
    }

    /// The first rows, and none after those that together have so many bytes.
    fn up_to<T>(
        &mut self,
        sql: &str,
        values: Vec<Value>,
        most_bytes: usize,
        read: impl Fn(Row) -> Result<T, Malformed>,
        weigh: impl Fn(&T) -> usize,
    ) -> Result<Vec<T>, StoreError> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        self.reader.each(sql, values, |space, row| {
            let item = read(row).map_err(|what| space.malformed(what))?;
            bytes += weigh(&item);
            taken.push(item);
            Ok(if bytes >= most_bytes {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        })?;
        Ok(taken)
    }
}

/// A job whose columns are the first.
fn stored_job(mut row: Row) -> Result<Job, Malformed> {
    job_of(&mut row)
}

fn job_of(row: &mut Row) -> Result<Job, Malformed> {
    Ok(Job {
        id: JobId::from_bytes(row.array(0)?).ok_or(Malformed("an id"))?,
        run_at_ms: row.integer(1)?,
        mutation: stored_mutation(row, 2)?,
    })
}

/// The columns that [`stored_finished_job`] reads.
pub(super) const FINISHED_JOB: &str = "id, due, mutation, finished, failure";

pub(super) fn stored_finished_job(row: &mut Row) -> Result<FinishedJob, Malformed> {
    Ok(FinishedJob {
        finished_at_ms: row.integer(3)?,
        outcome: Outcome::of_error(row.maybe_text(4)?),
        job: job_of(row)?,
    })
}

/// The columns that [`stored_cron`] reads.
pub(super) const CRON: &str =
    "name, origin, due, last_due, last_finished, last_error, schedule, mutation, reckoned";

/// A cron, and what the clock said when its next time was reckoned.
pub(super) fn stored_cron(mut row: Row) -> Result<(CronState, i64), Malformed> {
    let last = (row.maybe_integer(3)?, row.maybe_integer(4)?);
    let state = CronState {
        cron: Cron {
            name: row.text(0)?.parse().map_err(|_| Malformed("a name"))?,
            schedule: Schedule::from_json(&row.text(6)?).map_err(|_| Malformed("a schedule"))?,
            mutation: stored_mutation(&mut row, 7)?,
        },
        origin: match row.integer(1)? {
            0 => Origin::Api,
            1 => Origin::Deploy,
            _ => return Err(Malformed("an origin")),
        },
        next_due_ms: row.integer(2)?,
        last_run: match last {
            (Some(run_at_ms), Some(finished_at_ms)) => Some(LastRun {
                run_at_ms,
                finished_at_ms,
                outcome: Outcome::of_error(row.maybe_text(5)?),
            }),
            _ => None,
        },
    };
    Ok((state, row.integer(8)?))
}

fn stored_mutation(row: &mut Row, column: usize) -> Result<Mutation, Malformed> {
    Mutation::from_json(&row.text(column)?).map_err(|_| Malformed("a mutation"))
}

/// An origin as the table holds it; [`stored_cron`] reads it.
fn origin_number(origin: Origin) -> i64 {
    match origin {
        Origin::Api => 0,
        Origin::Deploy => 1,
    }
}
