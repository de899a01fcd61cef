//! Whether the control file is older than the log beside it: then it does not know what happened
//! since.
//!
//! Each line says up to which line the head was durable in the control file when it was written
//! (`settled`). What a crash leaves beyond the head was written while that very head was the
//! durable one, however many lines it is. So one authentic line that was written after a later head
//! was durable proves that the control file had a later head once.
//!
//! A line that goes on from the head under another data key of the control file proves nothing, and
//! no crash leaves it: the head is settled before the key changes. It counts as a roll-back, and
//! what it says as unproven.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use nimbus_manifests::TenantId;
use sha2::{Digest as _, Sha256};

use super::files;
use super::line::{LineError, Sealer, check};
use super::reapply::{BeyondLine, Deeds};
use crate::control;
use crate::control::AuditHead as Head;
use crate::envelope::{Event, EventKind, EventOutcome};
use crate::pluralize::pluralize;

/// What the log holds beyond the head.
#[derive(Debug)]
pub(super) struct Beyond {
    /// In their order.
    pub(super) lines: Vec<BeyondLine>,
    /// Where the chain ends that goes on from the head.
    pub(super) end: Head,
    rolled_back: bool,
}

/// A control file that is older than its audit log.
#[derive(Debug, Clone)]
pub struct RolledBack {
    /// The control data directory.
    pub(super) dir: PathBuf,
    head: u64,
    lines: usize,
    unproven: usize,
    kinds: BTreeMap<String, usize>,
    first: String,
    last: String,
    deleted: BTreeSet<TenantId>,
}

/// The event that ends the acceptance of an older control file.
pub(super) fn accepted(found: &RolledBack, deeds: usize) -> Event {
    Event::new(EventKind::Restore, EventOutcome::Done)
        .about(&control::subject())
        .saying(format!(
            "an older control file was accepted; the log held {found}. Done again: {deeds}. Not known any more: access keys made since, usage \
             and due times counted since, and copies of manifests until each tenant is opened"
        ))
}

impl RolledBack {
    /// The tenants that were deleted or shredded since, by what the log says.
    #[must_use]
    pub fn deleted(&self) -> &BTreeSet<TenantId> {
        &self.deleted
    }
}

impl fmt::Display for RolledBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", pluralize(self.lines, "line"))?;
        write!(f, " after number {}", self.head)?;
        write!(f, ", from {} to {}: ", self.first, self.last)?;
        for (index, (kind, times)) in self.kinds.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{times} {kind}")?;
        }
        if self.unproven > 0 {
            write!(
                f,
                "; {} of them cannot be verified: they do not go on from that line, or are sealed under a data key that this control file \
                 does not have",
                self.unproven
            )?;
        }
        Ok(())
    }
}

/// Looks beyond `head`. Reads the part that grows, and the full ones before it as far as they are
/// later than the head.
pub(super) fn look(dir: &Path, head: Head, sealer: Sealer<'_>) -> io::Result<Beyond> {
    let mut beyond = Beyond {
        lines: Vec::new(),
        end: head,
        rolled_back: false,
    };
    let mut at = (head == Head::START).then_some(head);
    for text in later_parts(dir, head)? {
        let mut lines = text.split_inclusive('\n').peekable();
        if at.is_none() {
            // Most often the head is the last line of all.
            let is_head = |line: &str| {
                let line = line.strip_suffix('\n').unwrap_or(line);
                <[u8; 32]>::from(Sha256::digest(line)) == head.hash
            };
            let mut looking = lines.clone();
            if looking.any(is_head) {
                lines = looking;
                at = Some(head);
            }
        }
        for line in lines {
            // Cut short by a crash.
            let Some(line) = line.strip_suffix('\n') else {
                break;
            };
            beyond.take(line, head, &mut at, sealer);
        }
    }
    Ok(beyond)
}

impl Beyond {
    fn take(&mut self, text: &str, head: Head, at: &mut Option<Head>, sealer: Sealer<'_>) {
        // The head may be the last line of a part that is gone.
        let before = at.unwrap_or(head);
        let (chained, checked) = match check(Some(sealer), Some(before), text) {
            Err(LineError::OutOfOrder { .. } | LineError::Unchained) => {
                (false, check(Some(sealer), None, text))
            }
            checked => (true, checked),
        };
        let Ok((line, here, sealed)) = checked else {
            *at = None;
            return;
        };
        if line.seq <= head.seq {
            return;
        }
        *at = chained.then_some(here);
        if sealed {
            self.rolled_back |= line.settled.is_some_and(|settled| settled > head.seq);
        } else if !chained || head == Head::START {
            // Anybody can write such a line; and a control file that was made anew knows none of
            // the lines before it.
            return;
        } else {
            self.rolled_back = true;
        }
        if chained {
            self.end = here;
        }
        let proven = chained && sealed && self.lines.iter().all(|before| before.proven);
        self.lines.push(BeyondLine { line, proven });
    }

    /// The message about a roll-back; `None` when there is none.
    pub(super) fn rolled_back(&self, dir: &Path, head: Head) -> Option<RolledBack> {
        let (first, last) = (self.lines.first()?, self.lines.last()?);
        if !self.rolled_back {
            return None;
        }
        let mut kinds = BTreeMap::new();
        for beyond in &self.lines {
            let line = &beyond.line;
            let kind = match line.outcome.as_str() {
                "done" => line.event.clone(),
                outcome => format!("{} {outcome}", line.event),
            };
            *kinds.entry(kind).or_default() += 1;
        }
        Some(RolledBack {
            dir: dir.to_owned(),
            head: head.seq,
            lines: self.lines.len(),
            unproven: self.lines.iter().filter(|line| !line.proven).count(),
            kinds,
            first: first.line.time.clone(),
            last: last.line.time.clone(),
            deleted: Deeds::deleted(&self.lines),
        })
    }

    /// Whether every line of them is proven, so that the log goes on behind them.
    pub(super) fn is_proven(&self) -> bool {
        self.lines.iter().all(|line| line.proven)
    }
}

/// The texts of the parts that may hold the head or later lines, in order.
fn later_parts(dir: &Path, head: Head) -> io::Result<Vec<String>> {
    let mut texts = vec![files::read_growing(dir)?];
    let mut full = files::full_parts(dir)?;
    // A part is earlier than the head when the one after it begins no later.
    let mut first = texts[0].lines().next().and_then(number);
    while first.is_none_or(|first| first > head.seq.saturating_add(1))
        && let Some((number, path)) = full.pop()
    {
        texts.push(files::read(&path)?);
        first = Some(number);
    }
    texts.reverse();
    Ok(texts)
}

fn number(line: &str) -> Option<u64> {
    check(None, None, line).ok().map(|(line, ..)| line.seq)
}
