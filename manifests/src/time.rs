//! Times: UTC, to the second, with one spelling.

use std::fmt;
use std::str::FromStr;

use crate::error::Problem;

/// A second in UTC, in the years 1970 to 9998.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(jiff::Timestamp);

impl Timestamp {
    /// The time that lies `seconds` after 1970-01-01T00:00:00Z; `None` outside the years 1970 to
    /// 9998.
    #[must_use]
    pub fn from_unix(seconds: i64) -> Option<Self> {
        if !(0..=LAST_SECOND).contains(&seconds) {
            return None;
        }
        jiff::Timestamp::from_second(seconds).ok().map(Self)
    }

    /// Seconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub fn unix(self) -> i64 {
        self.0.as_second()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
    }
}

impl FromStr for Timestamp {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let time: jiff::Timestamp = text.parse().map_err(|_not_a_time| Problem::Time)?;
        let time = Self::from_unix(time.as_second()).ok_or(Problem::Time)?;
        // The library reads other spellings of the same second; this format has one.
        if time.to_string() == text {
            Ok(time)
        } else {
            Err(Problem::Time)
        }
    }
}

/// 9998-12-31T23:59:59Z. The library's time stamps end a day before the year 9999 does, so the last
/// whole year is the one before.
const LAST_SECOND: i64 = 253_370_764_799;

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) {
        assert_eq!(text.parse::<Timestamp>(), Err(Problem::Time), "{text:?}");
    }

    #[test]
    fn accepts_the_first_and_the_last_second() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2024-02-29T12:34:56Z", 1_709_210_096),
            ("9998-12-31T23:59:59Z", 253_370_764_799),
        ] {
            let time: Timestamp = text.parse().unwrap();
            assert_eq!(time.unix(), seconds);
            assert_eq!(Timestamp::from_unix(seconds), Some(time));
            assert_eq!(time.to_string(), text);
        }
    }

    #[test]
    fn rejects_the_seconds_before_and_after() {
        refused("1969-12-31T23:59:59Z");
        refused("9999-01-01T00:00:00Z");
        refused("-000001-01-01T00:00:00Z");
        refused("10000-01-01T00:00:00Z");
        assert_eq!(Timestamp::from_unix(-1), None);
        assert_eq!(Timestamp::from_unix(253_370_764_800), None);
        assert_eq!(Timestamp::from_unix(i64::MAX), None);
    }

    #[test]
    fn rejects_days_and_seconds_that_do_not_exist() {
        for text in [
            "2026-02-29T00:00:00Z",
            "2100-02-29T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-04-31T00:00:00Z",
            "2026-11-22T24:00:00Z",
            "2026-11-22T18:60:00Z",
            "2016-12-31T23:59:60Z",
        ] {
            refused(text);
        }
    }

    #[test]
    fn rejects_other_spellings_of_a_time() {
        for text in [
            "",
            "2026-11-22",
            "2026-11-22T18:04Z",
            "2026-11-22T18:04:05",
            "2026-11-22T18:04:05z",
            "2026-11-22t18:04:05Z",
            "2026-11-22 18:04:05Z",
            "2026-11-22T18:04:05.0Z",
            "2026-11-22T18:04:05.5Z",
            "2026-11-22T18:04:05+00:00",
            "2026-11-22T19:04:05+01:00",
            "2026-11-22T18:04:05Z[UTC]",
            "20261122T180405Z",
            "+002026-11-22T18:04:05Z",
            "2026-11-22T18:04:05Z ",
            " 2026-11-22T18:04:05Z",
            "1795370645",
        ] {
            refused(text);
        }
    }
}
