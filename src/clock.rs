//! The clock: all other code takes the time from here. The machine's clock may be set to anything,
//! and nothing here panics because of it.
//!
//! The wall clock is held within 1970 and 9998, which is what manifests, identifiers and time
//! stamps can say; a server does not start outside of it. A [`Moment`] is for measuring: it only
//! moves forward, and counts the time for which the machine slept.

use std::ops::Add;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use uuid::{ContextV7, Uuid};

/// A moment since the machine was started, the time for which it was suspended included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        let time = rustix::time::clock_gettime(CLOCK);
        Self(Duration::try_from(time).unwrap_or_default())
    }

    /// How long ago `earlier` was; nothing when it is later.
    #[must_use]
    pub fn saturating_duration_since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Milliseconds, for an atomic.
    pub(crate) fn milliseconds(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

#[cfg(target_os = "linux")]
const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Boottime;
/// There it goes on while the machine sleeps.
#[cfg(not(target_os = "linux"))]
const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;

/// The machine's clock stands where no server can work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the clock of this machine does not stand between the years 1970 and 9998; set it (`timedatectl set-time`, or NTP), then start again"
)]
pub struct WrongClock;

/// Refuses a clock that stands outside of what can be written down.
///
/// # Errors
///
/// [`WrongClock`].
pub fn check() -> Result<(), WrongClock> {
    let now = system();
    match now == within(now) {
        true => Ok(()),
        false => Err(WrongClock),
    }
}

/// The time now, within 1970 and 9998.
#[must_use]
pub fn now() -> Timestamp {
    Timestamp::try_from(within(system())).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Milliseconds since the Unix epoch.
#[must_use]
pub fn now_ms() -> i64 {
    now().as_millisecond()
}

/// The time now as answers and logs have it: UTC, to the millisecond.
#[must_use]
pub fn stamp() -> String {
    now().strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

/// A time in milliseconds since the Unix epoch, in that form.
#[must_use]
pub fn stamp_of(ms: i64) -> String {
    let time = Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH);
    time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

/// A time in RFC 3339, in milliseconds since the Unix epoch; `None` when it is none.
#[must_use]
pub fn ms_of(stamp: &str) -> Option<i64> {
    Some(stamp.parse::<Timestamp>().ok()?.as_millisecond())
}

/// A fresh UUID version 7. Within one process each is greater than all before it, also when the
/// clock is set back.
#[must_use]
pub fn uuid() -> Uuid {
    static CONTEXT: Mutex<ContextV7> = Mutex::new(ContextV7::new());
    let now = now();
    let seconds = u64::try_from(now.as_second()).unwrap_or(0);
    let nanoseconds = u32::try_from(now.subsec_nanosecond()).unwrap_or(0);
    Uuid::new_v7(uuid::Timestamp::from_unix(&CONTEXT, seconds, nanoseconds))
}

fn within(time: SystemTime) -> SystemTime {
    time.clamp(UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(LAST_SECOND))
}

#[expect(clippy::disallowed_methods, reason = "the one owner of the clock")]
fn system() -> SystemTime {
    ::fail::fail_point!("clock::now", |seconds| test_time(seconds.as_deref()));
    SystemTime::now()
}

/// The time that a test sets: seconds since the Unix epoch.
#[cfg(feature = "failpoints")]
fn test_time(seconds: Option<&str>) -> SystemTime {
    let seconds: i64 = seconds.and_then(|text| text.parse().ok()).unwrap_or(0);
    let distance = Duration::from_secs(seconds.unsigned_abs());
    match seconds < 0 {
        true => UNIX_EPOCH - distance,
        false => UNIX_EPOCH + distance,
    }
}

/// 9998-12-31T23:59:59Z: the last second that a manifest can hold.
const LAST_SECOND: u64 = 253_370_764_799;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_outside_of_what_can_be_written_are_held_at_its_ends() {
        let last = i64::try_from(LAST_SECOND).unwrap();
        for (distance, expected) in [
            (-62_135_596_800, 0),
            (-1, 0),
            (0, 0),
            (1_800_000_000, 1_800_000_000),
            (last, last),
            (last + 1, last),
            (253_402_300_799, last),
            (253_402_300_800, last),
            (i64::from(u32::MAX) * 1000, last),
        ] {
            let apart = Duration::from_secs(i64::unsigned_abs(distance));
            let time = match distance < 0 {
                true => UNIX_EPOCH - apart,
                false => UNIX_EPOCH + apart,
            };
            let held = Timestamp::try_from(within(time)).unwrap();
            assert_eq!(held.as_second(), expected, "{distance}");
            let manifest = nimbus_manifests::Timestamp::from_unix(expected);
            assert!(manifest.is_some(), "{distance}");
        }
    }

    #[test]
    fn each_uuid_is_greater_than_the_one_before() {
        let drawn: Vec<Uuid> = (0..1000).map(|_| uuid()).collect();
        assert!(drawn.is_sorted_by(|a, b| a < b));
        assert_eq!(drawn[0].get_version_num(), 7);
    }

    #[test]
    fn moments_only_move_forward() {
        let first = Moment::now();
        let later = Moment::now();
        assert!(first <= later);
        assert_eq!(
            first.saturating_duration_since(first + Duration::from_secs(1)),
            Duration::ZERO
        );
        assert!(check().is_ok());
    }
}
