//! Cron expressions, and what they mean where clocks are changed.
//!
//! `croner` parses and searches. Where a zone's clocks go forward, a time of day that is skipped
//! counts as the first moment after the gap; where they go back, a time of day that comes twice
//! counts the first time. Both hold for expressions that name one second, one minute and one hour;
//! the others (`*/10 * * * *`) go by the wall clock: they fire in both passes of an hour that comes
//! twice, and not in one that is skipped.

use std::{cmp::Ordering, fmt, str::FromStr};

use croner::{
    CivilDateTime, CronDateTime, Resolution, Weekday,
    errors::CronError,
    parser::{CronParser, Seconds, Year},
};
use jiff::{Timestamp, ToSpan as _, Zoned, civil::Date, tz::TimeZone};

use crate::documents::{InputError, error::excerpt};
use crate::pluralize::pluralize;

/// The longest cron expression, in bytes.
pub const MAX_EXPRESSION_BYTES: usize = 256;

/// A cron expression of five fields, or of six with seconds first: one that fires some day.
#[derive(Debug, Clone)]
pub struct Expression {
    text: Box<str>,
    cron: Box<croner::Cron>,
}

impl Expression {
    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The first time after `after_ms`, by the clocks of `zone`. `None` when there is none within
    /// 41 years: at the end of time, and for times that this zone skips whenever they come.
    #[must_use]
    pub fn next_after(&self, after_ms: i64, zone: &TimeZone) -> Option<i64> {
        let after = Timestamp::from_millisecond(after_ms).ok()?;
        let at = after.to_zoned(zone.clone());
        let last_year = i32::from(at.year()) + SEARCH_YEARS;
        let after = Bounded { at, last_year };
        let next = self.cron.find_next_occurrence(&after, false).ok()?;
        Some(next.at.timestamp().as_millisecond())
    }

    /// Whether any day fits. The search for the next time would go on for thousands of years to
    /// find out; every weekday has met every day of the year within 40.
    fn fits_some_day(&self) -> bool {
        let pattern = &self.cron.pattern;
        let first = Date::constant(2000, 1, 1);
        let days = first.series(1.day()).take(40 * 366);
        let mut days =
            days.filter(|day| pattern.month_match(unsigned(day.month())).unwrap_or(false));
        days.any(|day| {
            let weekday =
                Weekday::from_days_from_sunday(unsigned(day.weekday().to_sunday_zero_offset()));
            let (year, month) = (i32::from(day.year()), unsigned(day.month()));
            pattern
                .day_match(year, month, unsigned(day.day()), weekday)
                .unwrap_or(false)
        })
    }
}

/// A time from which the search goes no further than some years: `croner` would go on for
/// thousands.
#[derive(Debug, Clone)]
struct Bounded {
    at: Zoned,
    last_year: i32,
}

impl CronDateTime for Bounded {
    fn to_civil(&self) -> CivilDateTime {
        self.at.to_civil()
    }

    fn civil_weekday(&self) -> Weekday {
        self.at.civil_weekday()
    }

    fn resolve_civil(&self, civil: CivilDateTime) -> Result<Resolution<Self>, CronError> {
        if civil.year() > self.last_year {
            return Err(CronError::TimeSearchLimitExceeded);
        }
        let bounded = |at| Self {
            at,
            last_year: self.last_year,
        };
        Ok(match self.at.resolve_civil(civil)? {
            Resolution::Single(at) => Resolution::Single(bounded(at)),
            Resolution::Ambiguous(a, b) => Resolution::Ambiguous(bounded(a), bounded(b)),
            Resolution::Gap => Resolution::Gap,
        })
    }

    fn checked_add_seconds(&self, seconds: i64) -> Option<Self> {
        let at = CronDateTime::checked_add_seconds(&self.at, seconds)?;
        let last_year = self.last_year;
        Some(Self { at, last_year })
    }

    fn cmp_instant(&self, other: &Self) -> Ordering {
        self.at.cmp_instant(&other.at)
    }
}

fn unsigned(part: i8) -> u32 {
    u32::from(part.unsigned_abs())
}

impl FromStr for Expression {
    type Err = InputError;

    fn from_str(text: &str) -> Result<Self, InputError> {
        let refuse = |reason: String| InputError::CronExpression {
            expression: excerpt(text),
            reason,
        };
        if text.len() > MAX_EXPRESSION_BYTES || !text.is_ascii() {
            let reason = format!("it is ASCII text of at most {MAX_EXPRESSION_BYTES} bytes");
            return Err(refuse(reason));
        }
        let cron = parse(text).map_err(|_in_its_words| refuse(fault(text)))?;
        let expression = Self {
            text: text.into(),
            cron: Box::new(cron),
        };
        if expression.fits_some_day() {
            Ok(expression)
        } else {
            Err(refuse("it never fires: there is no such day".to_owned()))
        }
    }
}

fn parse(text: &str) -> Result<croner::Cron, CronError> {
    CronParser::builder()
        .seconds(Seconds::Optional)
        .year(Year::Disallowed)
        .build()
        .parse(text)
}

/// What is wrong with an expression that cannot be parsed: the first field that cannot be, among
/// others that can.
fn fault(text: &str) -> String {
    if text.trim_start().starts_with('@') {
        return "of names there are @hourly, @daily, @weekly, @monthly and @yearly".to_owned();
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    let Some(skipped) = FIELDS.len().checked_sub(fields.len()).filter(|n| *n <= 1) else {
        let count = pluralize(fields.len(), "field");
        return format!("it has {count}, and 5 are accepted, or 6 with the second first");
    };
    for (place, (name, accepted)) in FIELDS[skipped..].iter().enumerate() {
        let mut alone = vec!["*"; fields.len()];
        alone[place] = fields[place];
        if parse(&alone.join(" ")).is_err() {
            let field = excerpt(fields[place]);
            return format!(
                "its {name} is {field:?}, and {accepted} is accepted, also with `*`, `,`, `-` and `/`"
            );
        }
    }
    "its fields do not go together".to_owned()
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Expression {}

/// The fields, and what may stand in each.
const FIELDS: [(&str, &str); 6] = [
    ("second", "0 to 59"),
    ("minute", "0 to 59"),
    ("hour", "0 to 23"),
    ("day of the month", "1 to 31, L or 15W"),
    ("month", "1 to 12 or JAN to DEC"),
    ("weekday", "0 to 7, SUN to SAT, 5L or 1#2"),
];
/// How far ahead the next time is looked for: every weekday meets every day of the year within 40.
const SEARCH_YEARS: i32 = 41;
