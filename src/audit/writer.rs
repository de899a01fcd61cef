//! The one thread that writes the log.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::chain::Chain;
use super::held;
use super::openings::Openings;
use crate::envelope::{AuditError, Event, EventKind, EventOutcome};
use crate::runtime::panic_point;

pub(super) enum Message {
    Record(Vec<Event>, oneshot::Sender<Result<(), AuditError>>),
    Note(Event),
    /// Writes what was noted, and says when that is done.
    Flush(oneshot::Sender<Result<(), AuditError>>),
    Close,
}

/// The thread: takes what waits, writes it with one flush, and answers.
pub(super) fn write(mut chain: Chain, messages: &Receiver<Message>, openings: &Mutex<Openings>) {
    let mut noted = Noted::default();
    loop {
        let due = noted.due().into_iter().chain(held(openings).due()).min();
        let first = match due {
            None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(due) => messages.recv_timeout(due.saturating_duration_since(Instant::now())),
        };
        let mut waiting = Vec::new();
        let mut flush = false;
        let mut closing = false;
        match first {
            Ok(message) => {
                for message in std::iter::once(message).chain(messages.try_iter()) {
                    match message {
                        Message::Note(event) => noted.take(event),
                        Message::Record(events, answer) => waiting.push((events, answer)),
                        Message::Flush(answer) => {
                            flush = true;
                            waiting.push((Vec::new(), answer));
                        }
                        Message::Close => closing = true,
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => flush = true,
            Err(RecvTimeoutError::Disconnected) => closing = true,
        }
        let ended = match closing {
            true => held(openings).end_all(),
            false => held(openings).sweep(Instant::now()),
        };
        noted.events.extend(ended);
        if flush || closing || !waiting.is_empty() || noted.is_full() {
            write_down(&mut chain, &mut noted, waiting, openings);
        }
        if closing {
            return;
        }
    }
}

type Waiting = (Vec<Event>, oneshot::Sender<Result<(), AuditError>>);

fn write_down(
    chain: &mut Chain,
    noted: &mut Noted,
    waiting: Vec<Waiting>,
    openings: &Mutex<Openings>,
) {
    panic_point!("audit::write-down");
    let others = waiting.iter().flat_map(|(events, _)| events);
    let ended = held(openings).end(noted.events.iter().chain(others));
    // How often it was opened is said before what else happens to a file.
    drop(noted.events.splice(0..0, ended));
    let (mut events, count) = noted.events();
    events.extend(waiting.iter().flat_map(|(events, _)| events).cloned());
    let written = if events.is_empty() {
        Ok(())
    } else {
        chain.append(&events)
    };
    match &written {
        Ok(()) => {
            noted.lost = 0;
            events.iter().for_each(Event::trace);
        }
        Err(error) => {
            // An opening that was not recorded is news when it happens again.
            noted.lost += count + held(openings).lose();
            tracing::error!(
                target: "nimbus::audit",
                error = crate::error_chain::error_chain(error),
                events = events.len(),
                "the audit log cannot be written"
            );
        }
    }
    let written = written.map_err(AuditError::new);
    for (_events, answer) in waiting {
        drop(answer.send(written.clone()));
    }
}

/// Events that nobody waits for.
#[derive(Default)]
struct Noted {
    events: Vec<Event>,
    since: Option<Instant>,
    /// How many could not be written.
    lost: u64,
    /// Failures recorded lately, and how often since.
    repeated: HashMap<(EventKind, String), (Instant, u64)>,
}

impl Noted {
    /// Keeps an event for the next writing. A failure that repeats itself, at each request perhaps,
    /// is recorded once a minute and counted.
    fn take(&mut self, mut event: Event) {
        if event.outcome == EventOutcome::Failed {
            let subject = event.subject.as_ref().map(ToString::to_string);
            let now = Instant::now();
            let key = (event.kind, subject.unwrap_or_default());
            if self.repeated.len() >= MAX_REPEATED {
                self.repeated
                    .retain(|_, (told, _)| now.duration_since(*told) < REPEAT);
            }
            let room = self.repeated.len() < MAX_REPEATED;
            match self.repeated.get_mut(&key) {
                Some((told, count)) if now.duration_since(*told) < REPEAT => {
                    *count += 1;
                    return;
                }
                Some((told, count)) => {
                    if *count > 0 {
                        let said = event.detail.take().unwrap_or_default();
                        event.detail = Some(format!("{said} ({count} times more before)"));
                    }
                    (*told, *count) = (now, 0);
                }
                None if room => {
                    self.repeated.insert(key, (now, 0));
                }
                None => {}
            }
        }
        self.since.get_or_insert_with(Instant::now);
        self.events.push(event);
    }

    fn due(&self) -> Option<Instant> {
        self.since.map(|since| since + LINGER)
    }

    fn is_full(&self) -> bool {
        self.events.len() >= MAX_NOTED
    }

    /// All that must be written, and how many of them nobody waits for.
    fn events(&mut self) -> (Vec<Event>, u64) {
        self.since = None;
        let mut events = std::mem::take(&mut self.events);
        let count = events.len() as u64;
        if self.lost > 0 {
            let gap = Event::new(EventKind::LogGap, EventOutcome::Failed)
                .saying(format!("{} events could not be written", self.lost));
            events.insert(0, gap);
        }
        (events, count)
    }
}

/// How long what nobody waits for may lie unwritten.
const LINGER: Duration = Duration::from_secs(1);
const MAX_NOTED: usize = 1024;
/// How often a repeated failure is recorded.
const REPEAT: Duration = Duration::from_secs(60);
const MAX_REPEATED: usize = 10_000;
