//! Times: UTC, to the second, with one spelling.

use std::fmt;
use std::str::FromStr;

use crate::error::Problem;

/// A second in UTC, from 1970 to 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(jiff::Timestamp);

impl Timestamp {
    /// The time that lies `seconds` after 1970-01-01T00:00:00Z; `None` outside 1970 to 9999.
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

/// 9999-12-30T22:00:00Z: the last second that the library's time stamps hold.
const LAST_SECOND: i64 = 253_402_207_200;
