//! Which snapshots are kept.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::catalogue::Catalogue;

/// The rules of a retention. A snapshot is kept if any of them keeps it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    /// All that were taken within so many seconds before the newest.
    pub within: Option<u64>,
    /// The last of each day, for so many days that have one.
    pub daily: Option<u32>,
    /// The same of weeks, which begin on Monday.
    pub weekly: Option<u32>,
    /// The same of months.
    pub monthly: Option<u32>,
    /// Keep each commit that was shipped within so many seconds before the newest; without it,
    /// all.
    pub commits: Option<u64>,
}

/// What of a snapshot decides whether it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    number: u64,
    taken: Timestamp,
    /// The one tenant that it holds; `None` where it holds all.
    tenant: Option<String>,
}

impl Kept {
    /// Of a catalogue; `None` where its time is none.
    pub(super) fn of(catalogue: &Catalogue) -> Option<Self> {
        Some(Self {
            number: catalogue.number,
            taken: catalogue.taken.parse().ok()?,
            tenant: catalogue.tenant.clone(),
        })
    }
}

impl Keep {
    /// Whether there is no rule.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The snapshots that are kept. Those of all tenants, and those of each one alone, are looked
    /// at apart; the newest of each is always kept, and days, weeks and months are those of
    /// UTC.
    pub(super) fn keeps(&self, snapshots: &[Kept]) -> BTreeSet<u64> {
        let mut apart: BTreeMap<&Option<String>, Vec<&Kept>> = BTreeMap::new();
        for snapshot in snapshots {
            apart.entry(&snapshot.tenant).or_default().push(snapshot);
        }
        let mut kept = BTreeSet::new();
        for mut one in apart.into_values() {
            one.sort_by_key(|snapshot| std::cmp::Reverse((snapshot.taken, snapshot.number)));
            let Some(newest) = one.first() else { continue };
            let _new = kept.insert(newest.number);
            if let Some(within) = self.within {
                let since = newest.taken.as_second().saturating_sub_unsigned(within);
                let within = one
                    .iter()
                    .filter(|snapshot| snapshot.taken.as_second() >= since);
                kept.extend(within.map(|snapshot| snapshot.number));
            }
            for (count, first_day) in [
                (self.daily, day as fn(Date) -> Date),
                (self.weekly, monday),
                (self.monthly, Date::first_of_month),
            ] {
                let mut seen = BTreeSet::new();
                for snapshot in &one {
                    let day = snapshot.taken.to_zoned(TimeZone::UTC).date();
                    if seen.len() < count.unwrap_or(0) as usize && seen.insert(first_day(day)) {
                        let _new = kept.insert(snapshot.number);
                    }
                }
            }
        }
        kept
    }
}

fn day(day: Date) -> Date {
    day
}

fn monday(day: Date) -> Date {
    let since_monday = i32::from(day.weekday().to_monday_zero_offset());
    day.checked_sub(jiff::Span::new().days(since_monday))
        .unwrap_or(day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(times: &[&str]) -> Vec<Kept> {
        let kept = |(number, taken): (u64, &&str)| Kept {
            number,
            taken: format!("{taken}:00Z").parse().unwrap(),
            tenant: None,
        };
        (1..).zip(times).map(kept).collect()
    }

    fn kept(keep: Keep, snapshots: &[Kept]) -> Vec<u64> {
        keep.keeps(snapshots).into_iter().collect()
    }

    #[test]
    fn keeps_the_last_of_each_day_week_and_month_that_has_one() {
        let snapshots = at(&[
            "2026-10-31T23:59",
            "2026-11-22T10:00", // Sunday
            "2026-11-23T00:00", // Monday
            "2026-11-23T23:00",
            "2026-11-27T09:00",
            "2026-11-27T10:00",
            "2026-11-30T10:00", // Monday
        ]);
        let none = Keep::default();
        assert_eq!(kept(none, &snapshots), [7], "the newest always");
        for (keep, expected) in [
            (
                Keep {
                    daily: Some(1),
                    ..none
                },
                &[7][..],
            ),
            (
                Keep {
                    daily: Some(3),
                    ..none
                },
                &[4, 6, 7],
            ),
            (
                Keep {
                    daily: Some(100),
                    ..none
                },
                &[1, 2, 4, 6, 7],
            ),
            (
                Keep {
                    weekly: Some(2),
                    ..none
                },
                &[6, 7],
            ),
            (
                Keep {
                    weekly: Some(3),
                    ..none
                },
                &[2, 6, 7],
            ),
            (
                Keep {
                    monthly: Some(2),
                    ..none
                },
                &[1, 7],
            ),
            (
                Keep {
                    within: Some(0),
                    ..none
                },
                &[7],
            ),
            (
                Keep {
                    within: Some(3 * 24 * 3600),
                    ..none
                },
                &[6, 7],
            ),
            (
                Keep {
                    within: Some(u64::MAX),
                    ..none
                },
                &[1, 2, 3, 4, 5, 6, 7],
            ),
            (
                Keep {
                    daily: Some(2),
                    monthly: Some(2),
                    ..none
                },
                &[1, 6, 7],
            ),
        ] {
            assert_eq!(kept(keep, &snapshots), expected, "{keep:?}");
        }
    }

    #[test]
    fn looks_at_snapshots_of_one_tenant_apart() {
        let mut snapshots = at(&["2026-11-01T10:00", "2026-11-02T10:00", "2026-11-03T10:00"]);
        snapshots[1].tenant = Some("a".to_owned());
        let none = Keep::default();
        assert_eq!(kept(none, &snapshots), [2, 3]);
        assert_eq!(
            kept(
                Keep {
                    daily: Some(2),
                    ..none
                },
                &snapshots
            ),
            [1, 2, 3]
        );
    }

    #[test]
    fn a_clock_that_was_set_back_keeps_the_newest_by_its_time() {
        let snapshots = at(&["2026-11-03T10:00", "2026-11-01T10:00"]);
        assert_eq!(
            kept(
                Keep {
                    daily: Some(1),
                    ..Keep::default()
                },
                &snapshots
            ),
            [1]
        );
    }
}
