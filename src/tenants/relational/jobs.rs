//! Jobs and crons.

use std::ops::ControlFlow;

use super::{
    columns::{CRON, CRON_FAILURE, CRON_SCHEDULE, FINISHED_JOB, JOB, JOB_FAILURE},
    engine::{Engine, Malformed, Row, Value, values},
    held::Table,
    reader::Reader,
    scheduled::{
        CRON_COLUMNS, CronRow, FINISHED_COLUMNS, origin_number, stored_cron, stored_finished_job,
        stored_job,
    },
    space::Space,
    transaction::RelationalTransaction,
};
use crate::documents::Mutation;
use crate::documents::schedule::{
    Cron, CronName, CronState, DueWork, FinishedJob, Job, JobId, JobPlace, LastRun,
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
            &format!("SELECT {FINISHED_COLUMNS} FROM @job_history WHERE id = ?"),
            values![id.as_bytes()],
        )?;
        let space = &self.space;
        let finished = row.map(|mut row| stored_finished_job(space, &mut row));
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
            &format!("SELECT {CRON_COLUMNS} FROM @crons WHERE name > ? ORDER BY name LIMIT ?"),
            values![after, limit.saturating_add(1)],
            limit,
            |space, row| Ok(stored_cron(space, row)?.0),
            |state| state.cron.mutation.weight(),
        )
    }

    fn all_crons(&mut self) -> Result<Vec<CronState>, StoreError> {
        let rows = self.ask(
            &format!("SELECT {CRON_COLUMNS} FROM @crons ORDER BY name"),
            Vec::new(),
        )?;
        let crons = rows
            .into_iter()
            .map(|row| Ok(stored_cron(&self.space, row)?.0));
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
        let (id, due) = (job.id.as_bytes(), job.run_at_ms);
        let mutation = self
            .reader
            .space
            .seal(JOB, || values![id, due], job.mutation.to_json())?;
        let row = values![due, mutation];
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
        let row = rows.into_iter().next();
        let job = row.map(|row| stored_job(&self.reader.space, row));
        let job = self.reader.sound(job.transpose())?;
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
        // What is sealed is read whole.
        let mutation = match self.reader.space.seal {
            None => format!("substr(mutation, 1, {bytes})"),
            Some(_) => "mutation".to_owned(),
        };
        let sql = format!(
            "SELECT due, 0 AS kind, id, {mutation}, 0, 0, 0, 0 FROM @jobs WHERE due <= ?
             UNION ALL SELECT due, 1 AS kind, name, {mutation}, origin, reckoned, last_due, last_finished
             FROM @crons WHERE due <= ? ORDER BY 1, 2, 3"
        );
        self.reader
            .each(&sql, values![by_ms, by_ms], |space, mut row| {
                let mut read = || {
                    let (due, mutation) = (row.integer(0)?, row.bytes(3)?);
                    if row.integer(1)? == 0 {
                        let id = row.array::<16>(2)?;
                        let head = space.open(JOB, || values![&id, due], mutation)?;
                        let id = JobId::from_bytes(id).ok_or(Malformed::of("an id"))?;
                        return Ok((DueWork::Job(id), head));
                    }
                    let name = row.text(2)?;
                    let rest = CronRow {
                        origin: row.integer(4)?,
                        due,
                        reckoned: row.integer(5)?,
                        last_due: row.maybe_integer(6)?,
                        last_finished: row.maybe_integer(7)?,
                    };
                    let head = space.open(CRON, || rest.sealed_with(&name), mutation)?;
                    let name = name.parse().map_err(|_| Malformed::of("a name"))?;
                    Ok((DueWork::Cron(name), head))
                };
                let (work, mut head) = read().map_err(|what| space.malformed(what))?;
                head.truncate(bytes);
                Ok(each(work, &String::from_utf8_lossy(&head)))
            })
    }

    fn insert_finished_job(&mut self, finished: &FinishedJob) -> Result<(), StoreError> {
        let FinishedJob {
            job,
            finished_at_ms,
            outcome,
        } = finished;
        let space = &self.reader.space;
        let sealed_with = || values![job.id.as_bytes(), job.run_at_ms, *finished_at_ms];
        let failure = space.seal_some(JOB_FAILURE, sealed_with, outcome.error())?;
        let mutation = space.seal(FINISHED_JOB, sealed_with, job.mutation.to_json())?;
        self.put_statement(
            "INSERT INTO @job_history (number, id, due, finished, failure, mutation)
             SELECT coalesce(max(number), 0) + 1, ?, ?, ?, ?, ? FROM @job_history",
            values![
                job.id.as_bytes(),
                job.run_at_ms,
                *finished_at_ms,
                failure,
                mutation
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
            &format!("SELECT {CRON_COLUMNS} FROM @crons WHERE due <= ? ORDER BY due, name LIMIT ?"),
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
            &format!("SELECT {CRON_COLUMNS} FROM @crons WHERE reckoned > ? ORDER BY name"),
            values![clock_ms],
        )?;
        let crons = self.reader.sound(
            rows.into_iter()
                .map(|row| stored_cron(&self.reader.space, row))
                .collect(),
        )?;
        let crons = self.learn_crons(crons).into_iter();
        Ok(crons.map(|state| state.cron).collect())
    }

    fn put_cron(&mut self, cron: &CronState, clock_ms: i64) -> Result<(), StoreError> {
        let before = CronState {
            last_run: None,
            ..cron.clone()
        };
        self.store_cron(&before, clock_ms)
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
                &format!("SELECT {CRON_COLUMNS} FROM @crons WHERE name = ?"),
                values![name.as_str()],
            )?;
            let row = rows.into_iter().next();
            let cron = row.map(|row| stored_cron(&self.reader.space, row));
            let cron = self.reader.sound(cron.transpose())?;
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
            self.store_cron(&state, reckoned)?;
        }
        Ok(())
    }

    fn store_cron(&mut self, state: &CronState, clock_ms: i64) -> Result<(), StoreError> {
        let CronState {
            cron,
            origin,
            next_due_ms,
            last_run,
        } = state;
        let last = last_run.as_ref();
        let rest = CronRow {
            origin: origin_number(*origin),
            due: *next_due_ms,
            reckoned: clock_ms,
            last_due: last.map(|run| run.run_at_ms),
            last_finished: last.map(|run| run.finished_at_ms),
        };
        let space = &self.reader.space;
        let sealed_with = || rest.sealed_with(cron.name.as_str());
        let failure = last.and_then(|run| run.outcome.error());
        let row = values![
            rest.origin,
            rest.due,
            rest.reckoned,
            rest.last_due,
            rest.last_finished,
            space.seal_some(CRON_FAILURE, sealed_with, failure)?,
            space.seal(CRON_SCHEDULE, sealed_with, cron.schedule.to_json())?,
            space.seal(CRON, sealed_with, cron.mutation.to_json())?
        ];
        self.put(Table::Crons, values![cron.name.as_str()], Some(row));
        let known = Some((state.clone(), clock_ms));
        self.reader.writes.crons.set(cron.name.clone(), known);
        Ok(())
    }

    /// The first rows, and none after those that together have so many bytes.
    fn up_to<T>(
        &mut self,
        sql: &str,
        values: Vec<Value>,
        most_bytes: usize,
        read: impl Fn(&Space<E>, Row) -> Result<T, Malformed>,
        weigh: impl Fn(&T) -> usize,
    ) -> Result<Vec<T>, StoreError> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        self.reader.each(sql, values, |space, row| {
            let item = read(space, row).map_err(|what| space.malformed(what))?;
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
