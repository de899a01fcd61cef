//! Crons: a name, when, and what.

use std::{fmt, str::FromStr, sync::Arc};

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use super::{Expression, MAX_DELAY, Outcome};
use crate::documents::limits::MAX_CRON_NAME_BYTES;
use crate::documents::{
    InputError, Mutation, error::excerpt, integer::WrittenNumber, json_object, table_name::is_name,
};

/// The name of a cron, by the rule of [`TableName`](crate::documents::TableName). Cloning is cheap.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CronName(Arc<str>);

impl CronName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CronName {
    type Err = InputError;

    fn from_str(name: &str) -> Result<Self, InputError> {
        if is_name(name, MAX_CRON_NAME_BYTES) {
            return Ok(Self(name.into()));
        }
        Err(InputError::CronName {
            name: excerpt(name),
        })
    }
}

impl fmt::Display for CronName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for CronName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// When a cron runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Schedule {
    /// Every so many seconds, at least 1 and at most [`MAX_DELAY`], counted from when the cron was
    /// made.
    Interval {
        /// How many.
        seconds: u64,
    },
    /// At the times that an expression names.
    Cron {
        /// The expression.
        expression: Expression,
        /// By the clocks of this zone, which has a name.
        timezone: TimeZone,
    },
}

/// A schedule as it is written, before it is known that its members fit its type. No enum with a
/// tag: `serde` would build all that it holds before it knows the type.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenSchedule {
    #[serde(rename = "type")]
    kind: Kind,
    seconds: Option<WrittenNumber>,
    expression: Option<String>,
    timezone: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Interval,
    Cron,
}

impl Schedule {
    /// Reads a schedule as clients write it:
    ///
    /// ```json
    /// {"type": "interval", "seconds": 3600}
    /// {"type": "cron", "expression": "30 3 * * MON", "timezone": "Europe/Berlin"}
    /// ```
    pub fn from_json(text: &str) -> Result<Self, InputError> {
        let refused = |reason: String| InputError::Cron { reason };
        let written: WrittenSchedule = json_object::object(text).map_err(refused)?;
        let WrittenSchedule {
            kind,
            seconds,
            expression,
            timezone,
        } = written;
        match (kind, seconds, expression, timezone) {
            (Kind::Interval, Some(seconds), None, None) => {
                let most = MAX_DELAY.as_secs();
                let seconds = seconds.to_integer();
                seconds
                    .and_then(|seconds| u64::try_from(seconds).ok())
                    .filter(|seconds| (1..=most).contains(seconds))
                    .map(|seconds| Self::Interval { seconds })
                    .ok_or_else(|| {
                        refused(format!(
                            "\"seconds\" is a whole number, 1 to {most} (3650 days)"
                        ))
                    })
            }
            (Kind::Cron, None, Some(expression), Some(timezone)) => Ok(Self::Cron {
                expression: expression.parse()?,
                timezone: zone(&timezone)?,
            }),
            (Kind::Interval, ..) => Err(refused("an interval takes \"seconds\"".to_owned())),
            (Kind::Cron, ..) => {
                let takes = "a cron schedule takes \"expression\" and \"timezone\"";
                Err(refused(takes.to_owned()))
            }
        }
    }

    /// It as JSON text, which [`from_json`](Self::from_json) reads.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("text and numbers are JSON")
    }

    /// The first time after `now_ms` for a cron that begins now. `None` is the end of time.
    #[must_use]
    pub fn first_after(&self, now_ms: i64) -> Option<i64> {
        self.next_after(now_ms, now_ms)
    }

    /// The time after `now_ms` at which a cron is due that was due at `due_ms` last. What was
    /// missed in between is left out.
    #[must_use]
    pub fn next_after(&self, due_ms: i64, now_ms: i64) -> Option<i64> {
        match self {
            Self::Interval { seconds } => {
                let period = i64::try_from(*seconds).ok()?.checked_mul(1000)?;
                // An interval keeps its beat: late by half a period, it is not late for ever.
                let missed = now_ms.checked_sub(due_ms)?.max(0) / period;
                due_ms.checked_add(period.checked_mul(missed + 1)?)
            }
            Self::Cron {
                expression,
                timezone,
            } => expression.next_after(now_ms.max(due_ms), timezone),
        }
    }
}

fn zone(name: &str) -> Result<TimeZone, InputError> {
    let unknown = || InputError::TimeZone {
        name: excerpt(name),
    };
    // The library also reads paths and POSIX rules in some of its forms; a name of the database is
    // letters and a few marks.
    let fits = name.len() <= 64
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"/_+-".contains(&byte));
    let zone = if fits { TimeZone::get(name).ok() } else { None };
    zone.filter(|zone| zone.iana_name().is_some() && !zone.is_unknown())
        .ok_or_else(unknown)
}

impl Serialize for Schedule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(tag = "type", rename_all = "lowercase")]
        enum Written<'a> {
            Interval {
                seconds: u64,
            },
            Cron {
                expression: &'a str,
                timezone: &'a str,
            },
        }
        match self {
            Self::Interval { seconds } => Written::Interval { seconds: *seconds },
            Self::Cron {
                expression,
                timezone,
            } => Written::Cron {
                expression: expression.as_str(),
                timezone: timezone.iana_name().unwrap_or("UTC"),
            },
        }
        .serialize(serializer)
    }
}

/// Something that is done again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cron {
    /// Its name, one of its own in its tenant.
    pub name: CronName,
    /// When.
    pub schedule: Schedule,
    /// What it does each time.
    pub mutation: Mutation,
}

impl Cron {
    /// Reads a cron as clients write it:
    /// `{"name": "nightly", "schedule": {…}, "mutation": {"type": "insert", …}}`; the schedule as
    /// [`Schedule::from_json`] reads it.
    pub fn from_json(text: &str) -> Result<Self, InputError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Written<'a> {
            name: String,
            #[serde(borrow)]
            schedule: &'a RawValue,
            #[serde(borrow)]
            mutation: &'a RawValue,
        }
        let written: Written<'_> =
            json_object::object(text).map_err(|reason| InputError::Cron { reason })?;
        let mutation = Mutation::from_json(written.mutation.get())?;
        if mutation.is_conditional() {
            let reason = "it runs again and again, and a version is there once: leave \"if_version\" out, and use no check";
            return Err(InputError::Cron {
                reason: reason.to_owned(),
            });
        }
        Ok(Self {
            name: written.name.parse()?,
            schedule: Schedule::from_json(written.schedule.get())?,
            mutation,
        })
    }
}

/// Who a cron belongs to: only they change or remove it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Origin {
    /// Made by itself, through the API.
    Api,
    /// Part of what was deployed.
    Deploy,
}

/// A cron as it stands in its tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CronState {
    /// What it is.
    #[serde(flatten)]
    pub cron: Cron,
    /// Who it belongs to.
    pub origin: Origin,
    /// When it is due next.
    #[serde(rename = "next_run_at")]
    pub next_due_ms: i64,
    /// Its last run, once there was one.
    pub last_run: Option<LastRun>,
}

/// A run of a cron.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastRun {
    /// When it was due.
    #[serde(rename = "run_at")]
    pub run_at_ms: i64,
    /// When it was done.
    #[serde(rename = "finished_at")]
    pub finished_at_ms: i64,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
}
