//! The audit log: `nimbus-audit.log` in the control data directory, one JSON line a key event, each
//! chained to the one before by its hash and under a MAC whose key comes from the control file's
//! data key. The head of the chain stands in the control file, so that lines that are cut off are
//! missed.
//!
//! One thread writes. What changes something waits until its line is durable, with all that wait at
//! the time; what only tells that a file was opened is written within a second, and counted where
//! it repeats itself (`openings`).

mod acceptance;
mod files;
mod line;
mod lost;
mod offline;
mod openings;
mod part;
mod reapply;
mod reported;
mod rolled_back;
mod verify;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SendError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::oneshot;

pub use acceptance::Accepted;
pub use files::FILE_NAME;
pub use line::{Line, LineError};
pub use lost::ControlLost;
pub(crate) use lost::{has_tenants, mark_deployed};
pub use offline::{OfflineLog, os_actor};
pub(crate) use part::LogPart;
pub use reported::Reported;
pub use rolled_back::RolledBack;
pub use verify::{Problem, Verified, lines};

use crate::clock;
use crate::control::{AuditHead, AuditHead as Head, Control, ControlError};
use crate::envelope::{AuditError, AuditSink, Event, EventKind, EventOutcome, KeyedFile, Stage};
use crate::failpoints::crash_point;
use crate::runtime::{self, Background, blocking, panic_point};
use files::GrowingFile;
use openings::Openings;
use reapply::Deeds;

/// Why the log cannot be opened or verified.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// Its file cannot be read or written.
    #[error("cannot use the audit log in {}", .dir.display())]
    Io {
        /// The control data directory.
        dir: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The control file, which holds its head, fails.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The control file is older than the log.
    #[error(
        "the control file in {} is older than the audit log beside it: an older copy was put back, which does not know what was revoked, locked or deleted \
         since. The log holds {found}. Put the newest control file and its manifest back; if there is none, `nimbus start \
         --accept-rolled-back-control` goes on with this one and does again what can be done again (docs/runbook.md)",
        .found.dir.display()
    )]
    RolledBack {
        /// What the log holds that the control file does not know.
        found: Box<RolledBack>,
    },
    /// The control file is gone, and the log's head with it.
    #[error("{0}")]
    ControlLost(ControlLost),
    /// There is no control file, which would hold the log's head.
    #[error("there is no control file at {}: no server has run here yet, or the directory is another", .path.display())]
    NoControlFile {
        /// Where it would be.
        path: PathBuf,
    },
    /// The key of the settings cannot be used.
    #[error("the audit log cannot be verified without the key of the settings")]
    NoKey,
    /// Encryption is off: there is no key to seal lines with, and no key events.
    #[error("encryption is off: there is no audit log")]
    EncryptionOff,
}

impl LogError {
    pub(crate) fn rolled_back(found: RolledBack) -> Self {
        let found = Box::new(found);
        Self::RolledBack { found }
    }
}

/// The log of an open control file.
#[derive(Debug)]
pub struct AuditLog {
    dir: PathBuf,
    control: Arc<Control>,
    queue: Sender<Message>,
    openings: Arc<Mutex<Openings>>,
    done_again: Vec<String>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

enum Message {
    Record(Vec<Event>, oneshot::Sender<Result<(), AuditError>>),
    Note(Event),
    /// Writes what was noted, and says when that is done.
    Flush(oneshot::Sender<Result<(), AuditError>>),
    Close,
}

impl AuditLog {
    /// Opens the log in `dir`, mends what a crash left, and records that it was broken if it was.
    /// Beside the log of a control file that is gone, the new one learns what that says was locked.
    /// The tenants' files are in `data_dir`. Blocks.
    ///
    /// # Errors
    ///
    /// [`LogError`].
    pub fn open(control: Arc<Control>, dir: &Path, data_dir: &Path) -> Result<Self, LogError> {
        Self::open_with(control, dir, data_dir, FULL, false)
    }

    /// As [`AuditLog::open`], and goes on with a control file that is older than the log: what was
    /// revoked, locked and deleted since is so again, as far as the log proves it. Deletions are
    /// left to the start. Blocks.
    ///
    /// # Errors
    ///
    /// [`LogError`].
    pub fn open_accepting(
        control: Arc<Control>,
        dir: &Path,
        data_dir: &Path,
    ) -> Result<Self, LogError> {
        Self::open_with(control, dir, data_dir, FULL, true)
    }

    fn open_with(
        control: Arc<Control>,
        dir: &Path,
        data_dir: &Path,
        full: u64,
        accepting: bool,
    ) -> Result<Self, LogError> {
        let (chain, done_again) = Chain::open(control.clone(), dir, data_dir, full, accepting)?;
        let (queue, messages) = mpsc::channel();
        let openings = Arc::<Mutex<Openings>>::default();
        let counted = Arc::clone(&openings);
        let work = move || write(chain, &messages, &counted);
        let thread =
            runtime::thread(Background::AuditLog, work).map_err(|source| LogError::Io {
                dir: dir.to_owned(),
                source,
            })?;
        Ok(Self {
            dir: dir.to_owned(),
            control,
            queue,
            openings,
            done_again,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// What the acceptance of an older control file did again, a line each.
    pub(crate) fn done_again(&self) -> &[String] {
        &self.done_again
    }

    /// Proves the log, with all that was noted so far.
    ///
    /// # Errors
    ///
    /// [`LogError`] when it cannot be read; what is wrong with it is part of the answer.
    pub async fn verify(&self) -> Result<Verified, LogError> {
        let (done, flushed) = oneshot::channel();
        let _sent = self.queue.send(Message::Flush(done));
        // Where it cannot be flushed, what is there is verified all the same.
        drop(flushed.await);
        let (control, dir) = (self.control.clone(), self.dir.clone());
        blocking(move || verify_log(&control, &dir)).await
    }
}

/// Proves the log of `control` in `dir`. Blocks.
fn verify_log(control: &Control, dir: &Path) -> Result<Verified, LogError> {
    let io_error = |source| LogError::Io {
        dir: dir.to_owned(),
        source,
    };
    let (sealer, head, base, parts, beyond) = {
        // Of one moment: no line is written meanwhile, no part begun, and the key does not change.
        let _chaining = control.chaining();
        let sealer = control.audit_sealer().ok_or(LogError::EncryptionOff)?;
        let parts = files::Parts::open(dir).map_err(io_error)?;
        let (head, base) = (control.audit_head()?, control.audit_base()?);
        let by = line::Sealer {
            key: &sealer.0,
            id: sealer.1,
        };
        let beyond = rolled_back::look(dir, head, by).map_err(io_error)?;
        (sealer, head, base, parts, beyond)
    };
    let sealer = line::Sealer {
        key: &sealer.0,
        id: sealer.1,
    };
    let mut verified = verify::verify(parts, sealer, base, head).map_err(io_error)?;
    verified.rolled_back = beyond
        .rolled_back(dir, head)
        .map(|found| LogError::rolled_back(found).to_string());
    Ok(verified)
}

/// Whether the control file of `file` is older than the log beside it; nothing is changed. Blocks.
///
/// # Errors
///
/// [`LogError`]: one of the two cannot be read.
pub(crate) fn rolled_back(file: &KeyedFile, dir: &Path) -> Result<Option<RolledBack>, LogError> {
    if matches!(file.stage(), Stage::Rekeying { .. }) {
        // Which of its two keys it has is found out by who opens it, and that it is older as well.
        return Ok(None);
    }
    let head = AuditHead::of(file)?;
    let key = file.audit_key();
    let sealer = line::Sealer {
        key: &key,
        id: file.manifest().deks()[0].id,
    };
    let beyond = rolled_back::look(dir, head, sealer).map_err(|source| LogError::Io {
        dir: dir.to_owned(),
        source,
    })?;
    Ok(beyond.rolled_back(dir, head))
}

#[async_trait]
impl AuditSink for AuditLog {
    async fn record(&self, events: Vec<Event>) -> Result<(), AuditError> {
        let (answer, recorded) = oneshot::channel();
        let gone = || AuditError::new(GONE);
        self.queue
            .send(Message::Record(events, answer))
            .map_err(|_| gone())?;
        recorded.await.unwrap_or_else(|_| Err(gone()))
    }

    fn note(&self, event: Event) {
        // The thread is not woken for what is only counted.
        if !held(&self.openings).is_news(&event, Instant::now()) {
            return event.trace();
        }
        if let Err(SendError(Message::Note(event))) = self.queue.send(Message::Note(event)) {
            tracing::error!(target: "nimbus::audit", "{GONE}: an event is in this log alone");
            event.trace();
        }
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        let _sent = self.queue.send(Message::Close);
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            drop(thread.join());
        }
    }
}

/// The end of the chain.
struct Chain {
    control: Arc<Control>,
    part: GrowingFile,
    head: Head,
    /// The number of the head that is durable in the control file.
    settled: u64,
}

impl Chain {
    fn open(
        control: Arc<Control>,
        dir: &Path,
        data_dir: &Path,
        full: u64,
        accepting: bool,
    ) -> Result<(Self, Vec<String>), LogError> {
        let sealer = control.audit_sealer().ok_or(LogError::EncryptionOff)?;
        let sealer = line::Sealer {
            key: &sealer.0,
            id: sealer.1,
        };
        let known = control.audit_head()?;
        let io_error = |source| LogError::Io {
            dir: dir.to_owned(),
            source,
        };
        let beyond = rolled_back::look(dir, known, sealer).map_err(io_error)?;
        let own = |line: &str| matches!(line::check(Some(sealer), None, line), Ok((.., true)));
        let foreign = lost::is_of_another(dir, known, own).map_err(io_error)?;
        let mut done_again = Vec::new();
        let again = match (beyond.rolled_back(dir, known), accepting) {
            (Some(found), false) => return Err(LogError::rolled_back(found)),
            (Some(found), true) => {
                let deeds = Deeds::of(&beyond.lines).and_pending(control.pending_deletes()?);
                let mut events = deeds.apply(&control, data_dir)?;
                done_again = events.iter().map(reapply::told).collect();
                events.push(rolled_back::accepted(&found, events.len()));
                events
            }
            (None, _) if foreign => {
                let told = verify::lines(dir, None).map_err(io_error)?;
                let mut events = Deeds::of_lost(told).apply(&control, data_dir)?;
                events.push(reapply::made_anew(events.len()));
                events
            }
            // A crash left them, and what they tell was done; or a copy from just before was put
            // back.
            (None, _) => {
                let deeds = Deeds::of(&beyond.lines).restrictive();
                deeds.apply(&control, data_dir)?
            }
        };
        // Proven lines are the log's; of others, the first one breaks it.
        let from = if beyond.is_proven() {
            beyond.end
        } else {
            known
        };
        let found = files::Found::look(dir, from, sealer, foreign).map_err(io_error)?;
        let mut broken = found.broken.clone();
        if broken.is_some() {
            control.note_audit_broken()?;
        } else if control.audit_is_broken()? {
            broken = Some(files::Broken::CutShort);
        }
        let head = found.head;
        let part = GrowingFile::open(dir, &found, full).map_err(io_error)?;
        crash_point!("audit::set-aside");
        let mut chain = Self {
            control,
            part,
            head,
            settled: known.seq,
        };
        let mut events = Vec::new();
        match broken {
            Some(broken) => {
                events.push(Event::new(EventKind::LogBroken, EventOutcome::Failed).saying(broken))
            }
            None if head == Head::START => {
                let mut begun = Event::new(EventKind::LogBegun, EventOutcome::Done);
                if has_tenants(data_dir) {
                    tracing::error!(
                        "{BEGUN_AMONG_TENANTS}; where they were not brought here, see docs/audit.md, \"A lost control file\""
                    );
                    begun = begun.saying(BEGUN_AMONG_TENANTS);
                }
                events.push(begun);
            }
            None => {}
        }
        events.extend(again);
        if events.is_empty() {
            if head != known {
                chain.control.set_audit_head(head)?;
                chain.settled = head.seq;
            }
            return Ok((chain, done_again));
        }
        events.iter().for_each(Event::trace);
        if head != known {
            *chain.control.chaining() = Some(head);
        }
        // The head moves with the line that says what was done again: a crash before it leaves it
        // all to be done once more.
        chain.append(&events).map_err(|error| match error {
            Refused::Io(source) => io_error(source),
            Refused::Control(error) => error.into(),
            Refused::Off => LogError::EncryptionOff,
        })?;
        Ok((chain, done_again))
    }

    /// Appends a line an event, durably, and moves the head.
    fn append(&mut self, events: &[Event]) -> Result<(), Refused> {
        let control = Arc::clone(&self.control);
        let mut unsettled = control.chaining();
        let sealer = control.audit_sealer().ok_or(Refused::Off)?;
        let sealer = line::Sealer {
            key: &sealer.0,
            id: sealer.1,
        };
        let time = clock::stamp();
        if unsettled.is_none() {
            // By the last writing, or by who changed the key of the control file since.
            self.settled = self.head.seq;
        }
        let (mut head, mut lines) = (self.head, String::new());
        for event in events {
            let (line, after) = line::seal(sealer, head, self.settled, &time, event);
            lines.push_str(&line);
            head = after;
        }
        self.part
            .append(&lines, self.head.seq + 1)
            .map_err(Refused::Io)?;
        // They are in the log from here on, whatever becomes of the head.
        self.head = head;
        *unsettled = Some(head);
        crash_point!("audit::appended");
        control
            .settle_audit_head(&mut unsettled)
            .map_err(Refused::Control)?;
        crash_point!("audit::recorded");
        Ok(())
    }
}

/// Why lines were not appended.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("a line cannot be written")]
    Io(#[source] std::io::Error),
    #[error("the head cannot be put into the control file")]
    Control(#[source] ControlError),
    #[error("encryption is off")]
    Off,
}

fn held(openings: &Mutex<Openings>) -> MutexGuard<'_, Openings> {
    openings.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread: takes what waits, writes it with one flush, and answers.
fn write(mut chain: Chain, messages: &Receiver<Message>, openings: &Mutex<Openings>) {
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
            // An opening that was not told is news when it happens again.
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
    /// Failures told lately, and how often since.
    repeated: HashMap<(EventKind, String), (Instant, u64)>,
}

impl Noted {
    /// Keeps an event for the next writing. A failure that repeats itself, at each request perhaps,
    /// is told once a minute and counted.
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

    /// All that is to be written, and how many of them nobody waits for.
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

const BEGUN_AMONG_TENANTS: &str = "there are tenants already, and no log of before: what an earlier control file knew (locks, access keys, deletions \
                                   under way) is not known";
/// The thread is never begun again within a process: what stands on the disk after a fault is for
/// the next start to prove.
const GONE: &str = "the audit log's thread ended by a fault of the server; restart it";
/// A part of the log is full at this size: 16 MiB, some forty thousand lines.
const FULL: u64 = 16 << 20;
/// How long what nobody waits for may lie unwritten.
const LINGER: Duration = Duration::from_secs(1);
const MAX_NOTED: usize = 1024;
/// How often a failure that repeats itself is told.
const REPEAT: Duration = Duration::from_secs(60);
const MAX_REPEATED: usize = 10_000;

#[cfg(test)]
mod tests;
