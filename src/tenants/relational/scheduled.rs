//! Jobs and crons as rows.

use super::{
    columns::{CRON, CRON_FAILURE, CRON_SCHEDULE, FINISHED_JOB, JOB, JOB_FAILURE},
    engine::{Malformed, Row, Value, values},
    space::Space,
};
use crate::documents::Mutation;
use crate::documents::schedule::{
    Cron, CronState, FinishedJob, Job, JobId, LastRun, Origin, Outcome, Schedule,
};

/// A job whose columns are the first.
pub(super) fn stored_job<E>(space: &Space<E>, mut row: Row) -> Result<Job, Malformed> {
    let (id, due) = (row.array::<16>(0)?, row.integer(1)?);
    let mutation = space.open_text(JOB, || values![&id, due], row.bytes(2)?)?;
    Ok(Job {
        id: JobId::from_bytes(id).ok_or(Malformed::of("an id"))?,
        run_at_ms: due,
        mutation: stored_mutation(&mutation)?,
    })
}

/// The columns that [`stored_finished_job`] reads.
pub(super) const FINISHED_COLUMNS: &str = "id, due, mutation, finished, failure";

pub(super) fn stored_finished_job<E>(
    space: &Space<E>,
    row: &mut Row,
) -> Result<FinishedJob, Malformed> {
    let (id, due, finished) = (row.array::<16>(0)?, row.integer(1)?, row.integer(3)?);
    let sealed_with = || values![&id, due, finished];
    let failure = row.maybe_bytes(4)?;
    let failure = failure.map(|failure| space.open_text(JOB_FAILURE, sealed_with, failure));
    let mutation = space.open_text(FINISHED_JOB, sealed_with, row.bytes(2)?)?;
    Ok(FinishedJob {
        finished_at_ms: finished,
        outcome: Outcome::of_error(failure.transpose()?),
        job: Job {
            id: JobId::from_bytes(id).ok_or(Malformed::of("an id"))?,
            run_at_ms: due,
            mutation: stored_mutation(&mutation)?,
        },
    })
}

/// What of a cron's row is in the clear, but for its name.
#[derive(Debug, Clone, Copy)]
pub(super) struct CronRow {
    pub(super) origin: i64,
    pub(super) due: i64,
    pub(super) reckoned: i64,
    pub(super) last_due: Option<i64>,
    pub(super) last_finished: Option<i64>,
}

impl CronRow {
    /// The rest of its row, to which what is sealed of a cron is bound.
    pub(super) fn sealed_with(&self, name: &str) -> Vec<Value> {
        values![
            name,
            self.origin,
            self.due,
            self.reckoned,
            self.last_due,
            self.last_finished
        ]
    }
}

/// The columns that [`stored_cron`] reads.
pub(super) const CRON_COLUMNS: &str =
    "name, origin, due, last_due, last_finished, last_error, schedule, mutation, reckoned";

/// A cron, and what the clock said when its next time was reckoned.
pub(super) fn stored_cron<E>(
    space: &Space<E>,
    mut row: Row,
) -> Result<(CronState, i64), Malformed> {
    let name = row.text(0)?;
    let rest = CronRow {
        origin: row.integer(1)?,
        due: row.integer(2)?,
        reckoned: row.integer(8)?,
        last_due: row.maybe_integer(3)?,
        last_finished: row.maybe_integer(4)?,
    };
    let sealed_with = || rest.sealed_with(&name);
    let failure = row.maybe_bytes(5)?;
    let failure = failure.map(|failure| space.open_text(CRON_FAILURE, sealed_with, failure));
    let failure = failure.transpose()?;
    let schedule = space.open_text(CRON_SCHEDULE, sealed_with, row.bytes(6)?)?;
    let mutation = space.open_text(CRON, sealed_with, row.bytes(7)?)?;
    let state = CronState {
        cron: Cron {
            name: name.parse().map_err(|_| Malformed::of("a name"))?,
            schedule: Schedule::from_json(&schedule).map_err(|_| Malformed::of("a schedule"))?,
            mutation: stored_mutation(&mutation)?,
        },
        origin: match rest.origin {
            0 => Origin::Api,
            1 => Origin::Deploy,
            _ => return Err(Malformed::of("an origin")),
        },
        next_due_ms: rest.due,
        last_run: match (rest.last_due, rest.last_finished) {
            (Some(run_at_ms), Some(finished_at_ms)) => Some(LastRun {
                run_at_ms,
                finished_at_ms,
                outcome: Outcome::of_error(failure),
            }),
            _ => None,
        },
    };
    Ok((state, rest.reckoned))
}

fn stored_mutation(json: &str) -> Result<Mutation, Malformed> {
    Mutation::from_json(json).map_err(|_| Malformed::of("a mutation"))
}

/// An origin as the table holds it; [`stored_cron`] reads it.
pub(super) fn origin_number(origin: Origin) -> i64 {
    match origin {
        Origin::Api => 0,
        Origin::Deploy => 1,
    }
}
