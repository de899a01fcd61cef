//! The chain of lines: where the log ends, and what is appended to it.

use crate::control::ControlError;
use std::path::Path;
use std::sync::Arc;

use super::files::{self, GrowingFile};
use super::lost::{self, has_tenants};
use super::reapply::{self, Deeds};
use super::{LogError, line, rolled_back, verify};
use crate::clock;
use crate::control::{AuditHead as Head, Control};
use crate::envelope::{Event, EventKind, EventOutcome};
use crate::failpoints::crash_point;

/// The end of the chain.
pub(super) struct Chain {
    control: Arc<Control>,
    part: GrowingFile,
    pub(super) head: Head,
    /// The number of the head that is durable in the control file.
    pub(super) settled: u64,
}

/// Why lines were not appended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("a line cannot be written")]
    Io(#[source] std::io::Error),
    #[error("the head cannot be put into the control file")]
    Control(#[source] ControlError),
    #[error("encryption is off")]
    Off,
}

impl Chain {
    pub(super) fn open(
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
                done_again = events.iter().map(reapply::describe).collect();
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
    pub(super) fn append(&mut self, events: &[Event]) -> Result<(), Refused> {
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

const BEGUN_AMONG_TENANTS: &str = "there are tenants already, and no log of before: what an earlier control file knew (locks, access keys, deletions \
                                   under way) is not known";
/// The thread is never begun again within a process: what stands on the disk after a fault is for
/// the next start to prove.
pub(super) const GONE: &str = "the audit log's thread ended by a fault of the server; restart it";

/// A part of the log is full at this size: 16 MiB, some forty thousand lines.
pub(super) const FULL: u64 = 16 << 20;
