//! Jobs and crons: how many there may be, when they are due, in which order they run, and what came
//! of them.
//!
//! Whatever changes a tenant's due time is noted in the [`DueLog`](super::DueLog) first, within
//! the transaction and before its commit. What runs, its outcome and its mutation share one
//! transaction, so that a crash leaves either all of it or nothing: then it runs again.
//!
//! | crash point | when |
//! | --- | --- |
//! | `tenants::schedule::expected` | the control file knows of the work, the tenant does not |
//! | `tenants::schedule::applied` | a mutation is applied, its job still waits; nothing is committed |
//! | `tenants::schedule::finished` | the job is in the history; nothing is committed |
//!
//! From there on the points of the [writer](super::group_commit).

use std::collections::HashSet;
use std::ops::ControlFlow;

use super::StoreError;
use super::backend::{JobRows as _, Transaction};
use super::idempotency::AnswerPart;
use super::writing::Writing;
use crate::documents::schedule::{
    CLOCK_SLACK_MS, Cron, CronName, CronState, DueWork, FinishedJob, JOB_HISTORY, Job, JobId,
    LastRun, MAX_CRONS, MAX_JOBS, NewJob, Origin, Outcome, Ran,
};
use crate::documents::{Done, InputError, Mutation, Once};
use crate::failpoints::crash_point;
use crate::metrics;

impl<T: Transaction> Writing<'_, T> {
    /// Adds a job, due `job.delay` after `now_ms`.
    fn put_job(&mut self, job: &NewJob, now_ms: i64) -> Result<Job, StoreError> {
        self.may_grow()?;
        if self.transaction.count_jobs()? >= MAX_JOBS {
            return Err(StoreError::TooManyJobs);
        }
        let delay = i64::try_from(job.delay.as_millis()).unwrap_or(i64::MAX);
        let job = Job {
            id: JobId::generate(),
            run_at_ms: now_ms.saturating_add(delay),
            mutation: job.mutation.clone(),
        };
        self.expect_due(job.run_at_ms)?;
        self.transaction.insert_job(&job)?;
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
            Ok(vec![AnswerPart {
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
        let outcome = outcome.ok_or_else(|| self.malformed("answer"))?;
        Ok(Done { outcome, replayed })
    }

    /// Takes back a job that waits.
    pub(super) fn cancel_job(&mut self, id: JobId) -> Result<(), StoreError> {
        if self.transaction.delete_job(id)? {
            return Ok(());
        }
        Err(match self.transaction.rows()?.finished_job(id)? {
            Some(_) => StoreError::JobRan { id },
            None => StoreError::JobNotFound { id },
        })
    }

    /// Adds a cron, or puts it in the place of the one of its name, which must be of the same
    /// origin. With the schedule that it had it keeps its next time and its last run; with another
    /// one it begins anew at `now_ms`.
    pub(super) fn put_cron(
        &mut self,
        cron: &Cron,
        origin: Origin,
        now_ms: i64,
    ) -> Result<CronState, StoreError> {
        self.may_grow()?;
        let before = self.transaction.cron(&cron.name)?;
        if let Some(before) = &before
            && before.origin != origin
        {
            return Err(owned(before));
        }
        if before.is_none() && self.transaction.count_crons()? >= MAX_CRONS {
            return Err(StoreError::TooManyCrons);
        }
        if let Some(before) = before
            && before.cron.schedule == cron.schedule
        {
            self.transaction
                .set_cron_mutation(&cron.name, &cron.mutation)?;
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
        let state = CronState {
            cron: cron.clone(),
            origin,
            next_due_ms: due,
            last_run: None,
        };
        self.transaction.put_cron(&state, now_ms)?;
        Ok(state)
    }

    /// Removes a cron, which must be of this origin.
    pub(super) fn delete_cron(
        &mut self,
        name: &CronName,
        origin: Origin,
    ) -> Result<(), StoreError> {
        let before = self
            .transaction
            .cron(name)?
            .ok_or_else(|| StoreError::CronNotFound { name: name.clone() })?;
        if before.origin != origin {
            return Err(owned(&before));
        }
        self.transaction.delete_cron(name)
    }

    /// Makes `crons` all that there are of [`Origin::Deploy`]; those made by themselves stay as
    /// they are. A name of theirs is [`StoreError::CronOwned`]. Call it within
    /// [`Writing::all_or_nothing`], with the rest of what is deployed.
    pub(super) fn replace_crons(&mut self, crons: &[Cron], now_ms: i64) -> Result<(), StoreError> {
        let before = self.transaction.rows()?.all_crons()?;
        let stays = |name: &CronName| crons.iter().any(|cron| cron.name == *name);
        for gone in before.iter().filter(|gone| gone.origin == Origin::Deploy) {
            if !stays(&gone.cron.name) {
                self.transaction.delete_cron(&gone.cron.name)?;
            }
        }
        for cron in crons {
            let _state = self.put_cron(cron, Origin::Deploy, now_ms)?;
        }
        Ok(())
    }

    /// Runs what is due by `now_ms` in the order of its time, at most `limit` of it. What has no
    /// room waits, and deletes go past it. An error is the tenant's or the machine's, or
    /// [`StoreError::Unrunnable`]: then nothing of it was done.
    pub(super) fn run_due(
        &mut self,
        now_ms: i64,
        limit: usize,
        give_up: Option<&DueWork>,
    ) -> Result<Ran, StoreError> {
        self.transaction.claim_due()?;
        self.reckon_anew(now_ms)?;
        let jobs = self.transaction.due_jobs(now_ms, limit, MAX_RUN_BYTES)?;
        let crons = self.transaction.due_crons(now_ms, limit, MAX_RUN_BYTES)?;
        let mut ran = 0;
        let mut bytes = 0;
        // What runs makes nothing else due: a cron's next time lies ahead, and a mutation schedules
        // nothing.
        for work in in_order(jobs, crons) {
            if ran == limit || bytes >= MAX_RUN_BYTES {
                break;
            }
            bytes += match self.run_one(work, now_ms, give_up) {
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
            ran += 1;
        }
        if ran > 0 {
            self.transaction.trim_job_history(JOB_HISTORY)?;
        }
        let next_due_ms = self.transaction.rows()?.earliest_due()?;
        Ok(Ran { ran, next_due_ms })
    }

    /// Runs what is due and needs no room, past what waits for it: deletes, at most `limit` with
    /// the `before` that ran already. How many those were.
    fn run_deletes(
        &mut self,
        now_ms: i64,
        limit: usize,
        before: usize,
        give_up: Option<&DueWork>,
    ) -> Result<usize, StoreError> {
        let deletes = self.due_deletes(now_ms, limit - before)?;
        for (ran, work) in deletes.iter().enumerate() {
            let found = match work {
                DueWork::Job(id) => self.transaction.job(*id)?.map(Due::Job),
                DueWork::Cron(name) => self.transaction.cron(name)?.map(Due::Cron),
            };
            let Some(found) = found else { continue };
            match self.run_one(found, now_ms, give_up) {
                Ok(_small) => {}
                Err(StoreError::Unrunnable { .. }) if before + ran > 0 => return Ok(ran),
                Err(error) => return Err(error),
            }
        }
        Ok(deletes.len())
    }

    /// Deletes that are due, in the order of their time, but for those of documents that work
    /// before them names: it waits, and they with it.
    fn due_deletes(&mut self, now_ms: i64, limit: usize) -> Result<Vec<DueWork>, StoreError> {
        let (mut deletes, mut named) = (Vec::new(), HashSet::new());
        // Of each mutation only its kind is read: it may have a mebibyte.
        self.transaction
            .each_due(now_ms, HEAD_CHARS, |work, head| {
                let of = document_of(head);
                let waits = of.is_none_or(|id| named.contains(id));
                if waits || !head.starts_with(DELETE) {
                    let _new = of.is_some_and(|id| named.insert(id.to_owned()));
                    return ControlFlow::Continue(());
                }
                deletes.push(work);
                if deletes.len() == limit {
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            })?;
        Ok(deletes)
    }

    /// Runs a job or a cron; how many bytes its mutation has.
    fn run_one(
        &mut self,
        work: Due,
        now_ms: i64,
        give_up: Option<&DueWork>,
    ) -> Result<usize, StoreError> {
        let due_ms = work.due_ms();
        let bytes = match work {
            Due::Job(job) => self.run_job(job, now_ms, give_up),
            Due::Cron(cron) => self.run_cron(&cron, now_ms, give_up),
        }?;
        metrics::LAG.record(now_ms.saturating_sub(due_ms) as f64 / 1000.0);
        Ok(bytes)
    }

    /// Runs a job; how many bytes its mutation has.
    fn run_job(
        &mut self,
        job: Job,
        now_ms: i64,
        give_up: Option<&DueWork>,
    ) -> Result<usize, StoreError> {
        let bytes = job.mutation.weight();
        let outcome = self.attempt(DueWork::Job(job.id), &job.mutation, give_up)?;
        crash_point!("tenants::schedule::applied");
        let _waited = self.transaction.delete_job(job.id)?;
        self.transaction.insert_finished_job(&FinishedJob {
            job,
            finished_at_ms: now_ms,
            outcome,
        })?;
        crash_point!("tenants::schedule::finished");
        Ok(bytes)
    }

    /// Runs a cron once, for however many times it is due, and sets its next time; how many bytes
    /// its mutation has.
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
        let run = LastRun {
            run_at_ms: *next_due_ms,
            finished_at_ms: now_ms,
            outcome,
        };
        self.transaction.set_cron_last_run(&cron.name, &run)?;
        let next = cron.schedule.next_after(*next_due_ms, now_ms);
        self.set_next(&cron.name, next, now_ms)?;
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
            Err(error) if !error.is_of_statement() => Err(error),
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

    /// After the clock was set back by more than [`CLOCK_SLACK_MS`], crons whose times were set by
    /// the old clock get times of the new one: else one would pause for as long as the clock was
    /// wrong.
    fn reckon_anew(&mut self, now_ms: i64) -> Result<(), StoreError> {
        let slack = now_ms.saturating_add(CLOCK_SLACK_MS);
        for cron in self.transaction.crons_set_after(slack)? {
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
        let next = next.unwrap_or(i64::MAX);
        self.transaction.set_cron_next(name, next, now_ms)
    }

    /// Has it noted that there will be work, before there is.
    fn expect_due(&self, due_ms: i64) -> Result<(), StoreError> {
        self.due.expect(self.tenant, due_ms)?;
        crash_point!("tenants::schedule::expected");
        Ok(())
    }
}

/// A job or a cron that is due.
enum Due {
    Job(Job),
    Cron(CronState),
}

impl Due {
    fn due_ms(&self) -> i64 {
        match self {
            Self::Job(job) => job.run_at_ms,
            Self::Cron(cron) => cron.next_due_ms,
        }
    }
}

/// Jobs and crons in the order of their time, jobs before crons of the same time. Each list is in
/// its order already.
fn in_order(jobs: Vec<Job>, crons: Vec<CronState>) -> impl Iterator<Item = Due> {
    let mut due: Vec<Due> = jobs.into_iter().map(Due::Job).collect();
    due.extend(crons.into_iter().map(Due::Cron));
    // The sort is stable.
    due.sort_by_key(Due::due_ms);
    due.into_iter()
}

/// The document that a stored mutation names, from its first characters. An insert without an id
/// may seem to name one that its fields do.
fn document_of(head: &str) -> Option<&str> {
    let (_before, id) = head.split_once("\"id\":\"")?;
    id.split('"').next()
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
const HEAD_CHARS: usize = 256;
/// Bytes of mutations in one run, about: the last one may go beyond.
const MAX_RUN_BYTES: usize = 4 << 20;
