//! Lengths of time as an operator says them: `60s`, `1h 30m`, `90d`.

use std::str::FromStr;
use std::time::Duration;

use jiff::SignedDuration;
use serde::Deserialize;

/// A length of time, not negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Time(Duration);

/// Text that is no length of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no length of time; write 60s, 15m, 1h 30m or 90d")]
pub struct NoTime {
    text: String,
}

impl Time {
    /// As the clock counts it.
    #[must_use]
    pub fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for Time {
    type Err = NoTime;

    fn from_str(text: &str) -> Result<Self, NoTime> {
        // A day is 24 hours here, whatever the calendar says: jiff leaves it out for that.
        let days = text
            .strip_suffix('d')
            .and_then(|days| days.parse::<u16>().ok());
        let parsed = match days {
            Some(days) => Some(SignedDuration::from_hours(i64::from(days) * 24)),
            None => text.parse::<SignedDuration>().ok(),
        };
        let duration = parsed.and_then(|duration| Duration::try_from(duration).ok());
        duration.map(Self).ok_or_else(|| NoTime {
            text: text.chars().take(40).collect(),
        })
    }
}

/// A length of time, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum OrOff {
    /// So long.
    Time(Time),
    /// `off`.
    Off,
}

impl FromStr for OrOff {
    type Err = NoTime;

    fn from_str(text: &str) -> Result<Self, NoTime> {
        match text {
            "off" => Ok(Self::Off),
            text => text.parse().map(Self::Time),
        }
    }
}

impl TryFrom<String> for OrOff {
    type Error = NoTime;

    fn try_from(text: String) -> Result<Self, NoTime> {
        text.parse()
    }
}

impl TryFrom<String> for Time {
    type Error = NoTime;

    fn try_from(text: String) -> Result<Self, NoTime> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_operators_write_and_nothing_else() {
        for (text, seconds) in [
            ("60s", 60),
            ("15m", 900),
            ("1h 30m", 5400),
            ("PT2M", 120),
            ("90d", 7_776_000),
            ("0s", 0),
        ] {
            assert_eq!(
                text.parse::<Time>().unwrap().duration().as_secs(),
                seconds,
                "{text}"
            );
        }
        for text in [
            "",
            "60",
            "-5s",
            "1 fortnight",
            "-1d",
            "1.5d",
            "d",
            "1mo",
            "soon",
        ] {
            assert!(text.parse::<Time>().is_err(), "{text}");
        }
    }
}
