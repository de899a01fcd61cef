//! Repeated openings. The first opening of a file by an actor under its keys is a line. The number
//! of repetitions is a line an hour later, so that the log does not grow with the traffic. Any
//! other event of the file or its keys ends the count: the next opening is a line again.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use nimbus_manifests::Subject;

use crate::clock;
use crate::envelope::{Event, EventKind, EventOutcome};

/// The openings that were recorded lately.
#[derive(Debug, Default)]
pub(super) struct Openings {
    files: HashMap<Subject, Vec<Opened>>,
    /// How many there are of all files.
    count: usize,
    /// When they were looked through last.
    swept: Option<Instant>,
}

/// An opening that was recorded.
#[derive(Debug)]
struct Opened {
    event: Event,
    told: Instant,
    /// The same, for the line that has the count.
    told_at: String,
    /// How often since.
    again: u64,
}

impl Openings {
    /// Whether an opening is recorded now, and not only counted.
    pub(super) fn is_news(&mut self, event: &Event, now: Instant) -> bool {
        if (event.kind, event.outcome) != (EventKind::Open, EventOutcome::Done) {
            return true;
        }
        let Some(subject) = &event.subject else {
            return true;
        };
        if let Some(opened) = self.files.get_mut(subject) {
            let same = |opened: &&mut Opened| opened.is_same(event);
            if let Some(opened) = opened.iter_mut().find(same) {
                opened.again += 1;
                return false;
            }
        }
        if self.count < MOST {
            self.swept.get_or_insert(now);
            let opened = Opened {
                event: event.clone(),
                told: now,
                told_at: clock::stamp(),
                again: 0,
            };
            self.files.entry(subject.clone()).or_default().push(opened);
            self.count += 1;
        }
        true
    }

    /// When [`Openings::sweep`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        self.swept.map(|swept| swept + SWEEP)
    }

    /// The counts whose hour has passed. What was not opened again in it is forgotten.
    pub(super) fn sweep(&mut self, now: Instant) -> Vec<Event> {
        let mut ended = Vec::new();
        if self.due().is_none_or(|due| now < due) {
            return ended;
        }
        let mut count = 0;
        self.files.retain(|_, opened| {
            opened.retain_mut(|opened| {
                if now.saturating_duration_since(opened.told) < INTERVAL {
                    return true;
                }
                let line = opened.line();
                let stays = line.is_some();
                ended.extend(line);
                opened.told = now;
                stays
            });
            count += opened.len();
            !opened.is_empty()
        });
        self.count = count;
        self.swept = (count > 0).then_some(now);
        ended
    }

    /// Forgets the openings of files that something else happens to; gives their counts, for the
    /// lines before.
    pub(super) fn end<'a>(&mut self, events: impl Iterator<Item = &'a Event>) -> Vec<Event> {
        let mut ended = Vec::new();
        for event in events.filter(|event| event.kind != EventKind::Open) {
            let opened = event
                .subject
                .as_ref()
                .and_then(|subject| self.files.remove(subject));
            for mut opened in opened.into_iter().flatten() {
                self.count -= 1;
                ended.extend(opened.line());
            }
        }
        ended
    }

    /// Forgets all; gives their counts.
    pub(super) fn end_all(&mut self) -> Vec<Event> {
        let files = std::mem::take(self).files;
        let opened = files.into_values().flatten();
        opened.filter_map(|mut opened| opened.line()).collect()
    }

    /// Forgets all, and how many openings were counted and not recorded.
    pub(super) fn lose(&mut self) -> u64 {
        let files = std::mem::take(self).files;
        files.values().flatten().map(|opened| opened.again).sum()
    }
}

impl Opened {
    fn is_same(&self, event: &Event) -> bool {
        self.event.deks == event.deks
            && self.event.keys == event.keys
            && self.event.actor == event.actor
    }

    /// The line with the count, if there is one; it is counted from it on.
    fn line(&mut self) -> Option<Event> {
        let again = std::mem::take(&mut self.again);
        let since = std::mem::replace(&mut self.told_at, clock::stamp());
        let event = self.event.clone();
        let times = if again == 1 { "once" } else { "times" };
        let said = match again {
            0 => return None,
            1 => format!("opened again {times} since {since}"),
            _ => format!("opened again {again} {times} since {since}"),
        };
        Some(event.saying(said))
    }
}

/// How long openings are counted before the count is recorded.
const INTERVAL: Duration = Duration::from_secs(3600);
/// How often it is looked which counts are due.
const SWEEP: Duration = Duration::from_secs(60);
/// How many openings are remembered, a third of a KiB each. Beyond that each one is recorded.
const MOST: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(tenant: &str) -> Subject {
        let file = format!("{tenant}.sqlite3");
        Subject::sqlite_tenant(&tenant.parse().unwrap(), &file).unwrap()
    }

    fn opening(tenant: &str, key: &str, actor: &str) -> Event {
        let mut event = Event::new(EventKind::Open, EventOutcome::Done).about(&subject(tenant));
        event.keys.push(key.to_owned());
        event.actor = actor.into();
        event
    }

    fn said(events: &[Event]) -> Vec<String> {
        let said = |event: &Event| {
            let detail = event.detail.clone().unwrap_or_default();
            let (what, _since) = detail.split_once(" since ").unwrap();
            format!("{} {what}", event.subject.as_ref().unwrap().file_name())
        };
        events.iter().map(said).collect()
    }

    #[test]
    fn the_first_is_news_for_each_file_key_and_who_opens_it() {
        let (mut openings, now) = (Openings::default(), Instant::now());
        for _ in 0..3 {
            let news = [
                openings.is_news(&opening("a", "k", "ana"), now),
                openings.is_news(&opening("a", "k", "bea"), now),
                openings.is_news(&opening("a", "l", "ana"), now),
                openings.is_news(&opening("b", "k", "ana"), now),
            ];
            assert_eq!(
                news,
                [openings.files.values().flatten().all(|o| o.again == 0); 4]
            );
        }
        assert_eq!(openings.count, 4);
        let mut ended = said(&openings.end_all());
        ended.sort();
        let again = |file: &str| format!("{file}.sqlite3 opened again 2 times");
        assert_eq!(ended, [again("a"), again("a"), again("a"), again("b")]);
        assert_eq!((openings.count, openings.due()), (0, None));
    }

    #[test]
    fn a_count_is_told_once_an_hour_and_what_is_not_opened_again_is_forgotten() {
        let (mut openings, start) = (Openings::default(), Instant::now());
        assert!(openings.is_news(&opening("busy", "k", "ana"), start));
        assert!(openings.is_news(&opening("once", "k", "ana"), start));
        assert!(!openings.is_news(&opening("busy", "k", "ana"), start));
        assert_eq!(openings.due(), Some(start + SWEEP));
        assert!(openings.sweep(start + INTERVAL - SWEEP).is_empty());
        let hour = start + INTERVAL;
        assert_eq!(
            said(&openings.sweep(hour)),
            ["busy.sqlite3 opened again once"]
        );
        assert_eq!(openings.count, 1);
        assert!(!openings.is_news(&opening("busy", "k", "ana"), hour));
        assert!(!openings.is_news(&opening("busy", "k", "ana"), hour));
        assert!(openings.is_news(&opening("once", "k", "ana"), hour));
        assert!(openings.sweep(hour + SWEEP).is_empty());
        let next = hour + INTERVAL;
        assert_eq!(
            said(&openings.sweep(next)),
            ["busy.sqlite3 opened again 2 times"]
        );
        assert!(openings.sweep(next + INTERVAL).is_empty());
        assert_eq!((openings.count, openings.due()), (0, None));
    }

    #[test]
    fn whatever_else_happens_to_a_file_makes_its_next_opening_news() {
        let (mut openings, now) = (Openings::default(), Instant::now());
        for kind in [
            EventKind::Lock,
            EventKind::Rekey,
            EventKind::UnwrapFailed,
            EventKind::Delete,
        ] {
            assert!(openings.is_news(&opening("a", "k", "ana"), now));
            assert!(!openings.is_news(&opening("a", "k", "ana"), now));
            let event = Event::new(kind, EventOutcome::Done).about(&subject("a"));
            let ended = openings.end([event].iter());
            assert_eq!(said(&ended), ["a.sqlite3 opened again once"]);
            let other = Event::new(kind, EventOutcome::Done).about(&subject("b"));
            assert!(openings.is_news(&opening("a", "k", "ana"), now));
            assert!(openings.end([other].iter()).is_empty());
            assert!(!openings.is_news(&opening("a", "k", "ana"), now));
            assert_eq!(openings.lose(), 1);
        }
    }
}
