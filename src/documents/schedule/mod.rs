//! Work that runs later, as data: one-off jobs, and crons, which run repeatedly.
//!
//! Nothing here reads a clock. All times are milliseconds since the Unix epoch.

mod cron;
mod expression;

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use super::{
    DocumentId, InputError, Mutation, error::excerpt, integer::WrittenNumber, json_object,
};

pub use cron::{Cron, CronName, CronState, LastRun, Origin, Schedule};
pub use expression::{Expression, MAX_EXPRESSION_BYTES};

/// The most jobs that wait in one tenant.
pub const MAX_JOBS: usize = 10_000;

/// The most crons of one tenant.
pub const MAX_CRONS: usize = 100;

/// How many finished jobs a tenant remembers: the last ones.
pub const JOB_HISTORY: usize = 1000;

/// The longest delay of a job and the longest interval of a cron: 3650 days.
pub const MAX_DELAY: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

/// How far a clock may be set back before what it said is taken for wrong: one hour, in
/// milliseconds. Less happens to clocks that are right.
pub const CLOCK_SLACK_MS: i64 = 60 * 60 * 1000;

/// The identity of a job: a UUID version 7, as those of documents. Of two jobs the one scheduled
/// later has the greater one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct JobId(DocumentId);

impl JobId {
    /// A fresh id, greater than all before it in this process.
    #[must_use]
    pub fn generate() -> Self {
        Self(DocumentId::generate())
    }

    /// The 16 bytes of the id, in the order in which they sort.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id of 16 stored bytes; `None` when they are no UUID version 7.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Option<Self> {
        DocumentId::from_bytes(bytes).map(Self)
    }
}

impl FromStr for JobId {
    type Err = InputError;

    fn from_str(text: &str) -> Result<Self, InputError> {
        text.parse()
            .map(Self)
            .map_err(|_: InputError| InputError::JobId { id: excerpt(text) })
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A job as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// How long from now it is to wait, at most [`MAX_DELAY`].
    pub delay: Duration,
    /// What it does.
    pub mutation: Mutation,
}

impl NewJob {
    /// Reads a job as clients write it:
    /// `{"run_after_ms": 60000, "mutation": {"type": "insert", …}}`.
    pub fn from_json(text: &str) -> Result<Self, InputError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Written<'a> {
            run_after_ms: WrittenNumber,
            #[serde(borrow)]
            mutation: &'a RawValue,
        }
        let written: Written<'_> =
            json_object::object(text).map_err(|reason| InputError::Job { reason })?;
        let delay = written
            .run_after_ms
            .to_integer()
            .and_then(|delay| u64::try_from(delay).ok())
            .map(Duration::from_millis)
            .filter(|delay| *delay <= MAX_DELAY)
            .ok_or_else(|| {
                let most = MAX_DELAY.as_millis();
                InputError::Job {
                    reason: format!("\"run_after_ms\" is a whole number of milliseconds, 0 to {most} (3650 days)"),
                }
            })?;
        let mutation = Mutation::from_json(written.mutation.get())?;
        if matches!(mutation, Mutation::Check { .. }) {
            let reason = "a check changes nothing: give an update or a delete \"if_version\"";
            return Err(InputError::Job {
                reason: reason.to_owned(),
            });
        }
        Ok(Self { delay, mutation })
    }
}

/// A place in the list of jobs that wait: right after one that did. It does not depend on that
/// job's waiting still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobPlace {
    /// When that job is due.
    pub run_at_ms: i64,
    /// Its identity.
    pub id: JobId,
}

impl JobPlace {
    /// The place of a job.
    #[must_use]
    pub fn of(job: &Job) -> Self {
        let Job { id, run_at_ms, .. } = *job;
        Self { run_at_ms, id }
    }

    /// It as bytes, which [`from_bytes`](Self::from_bytes) reads: time, big-endian, and id.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.run_at_ms.to_be_bytes()[..], self.id.as_bytes()].concat()
    }

    /// Reads it; `None` when these bytes are no place.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (run_at_ms, id) = bytes.split_first_chunk()?;
        Some(Self {
            run_at_ms: i64::from_be_bytes(*run_at_ms),
            id: JobId::from_bytes(id.try_into().ok()?)?,
        })
    }
}

/// A job that waits for its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Job {
    /// Its identity.
    pub id: JobId,
    /// When it is due.
    #[serde(rename = "run_at")]
    pub run_at_ms: i64,
    /// What it does.
    pub mutation: Mutation,
}

/// How a job or a run of a cron ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Its mutation was applied.
    Succeeded,
    /// Its mutation could not be applied, and never will be: the document was missing, say.
    Failed {
        /// Why not.
        error: String,
    },
}

impl Outcome {
    /// The error of one that failed.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Succeeded => None,
            Self::Failed { error } => Some(error),
        }
    }

    /// The outcome whose [`error`](Self::error) this is.
    #[must_use]
    pub fn of_error(error: Option<String>) -> Self {
        error.map_or(Self::Succeeded, |error| Self::Failed { error })
    }
}

impl Serialize for Outcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Written<'a> {
            outcome: &'static str,
            error: Option<&'a str>,
        }
        let outcome = match self {
            Self::Succeeded => "succeeded",
            Self::Failed { .. } => "failed",
        };
        let error = self.error();
        Written { outcome, error }.serialize(serializer)
    }
}

/// A job that ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FinishedJob {
    /// What it was.
    #[serde(flatten)]
    pub job: Job,
    /// When it was done.
    #[serde(rename = "finished_at")]
    pub finished_at_ms: i64,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// One piece of work that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DueWork {
    /// A job.
    Job(JobId),
    /// A run of a cron.
    Cron(CronName),
}

impl fmt::Display for DueWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job(id) => write!(f, "job {id}"),
            Self::Cron(name) => write!(f, "cron {name}"),
        }
    }
}

/// What came of one look at a tenant's work that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ran {
    /// How many jobs and crons were run.
    pub ran: usize,
    /// When the next of those that are left is due; it may be past already.
    pub next_due_ms: Option<i64>,
}

#[cfg(test)]
mod tests;
