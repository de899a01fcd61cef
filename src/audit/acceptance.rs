//! An operator accepts that the log is not whole: what is missing or changed stays so, and the log
//! counts from behind it.
//!
//! The line that says so is written first, and then the place from which the log counts is put into
//! the control file. A crash in between leaves a log that is still not whole, with a line that says
//! that it was to be accepted.

use std::path::PathBuf;
use std::sync::Arc;

use super::line::check;
use super::{AuditLog, LogError, files, verify_log};
use crate::control::{AuditHead as Head, Control};
use crate::envelope::{AuditSink as _, Event, EventKind, EventOutcome};
use crate::failpoints::crash_point;
use crate::pluralize::pluralize;
use crate::runtime::blocking;

/// What was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The first line that counts.
    pub from: u64,
    /// How many faults were found before it.
    pub faults: usize,
    /// The first of them.
    pub first: String,
}

/// Accepts the faults of the log in `dir`, if there are any.
pub(super) async fn accept(
    control: Arc<Control>,
    log: &AuditLog,
    dir: PathBuf,
) -> Result<Option<Accepted>, LogError> {
    let io_error = |source| LogError::Io {
        dir: dir.clone(),
        source,
    };
    let verified = blocking({
        let (control, dir) = (control.clone(), dir.clone());
        move || verify_log(&control, &dir)
    })
    .await?;
    let Some(first) = verified.problems.first() else {
        return Ok(None);
    };
    let base = blocking({
        let (dir, head) = (dir.clone(), control.audit_head()?);
        move || base_of(&dir, head)
    })
    .await
    .map_err(io_error)?;
    let accepted = Accepted {
        from: base.seq + 1,
        faults: verified.faults,
        first: format!("{} line {}: {}", first.file, first.line, first.problem),
    };
    let event = Event::new(EventKind::LogAccepted, EventOutcome::Done).saying(format!(
        "the log counts from line {} on; before it: {}, the first: {}",
        accepted.from,
        pluralize(accepted.faults, "fault"),
        accepted.first
    ));
    let recorded = log.record(vec![event]).await;
    recorded.map_err(|error| io_error(std::io::Error::other(error)))?;
    crash_point!("audit::accepted");
    blocking(move || control.set_audit_base(base)).await?;
    Ok(Some(accepted))
}

/// Behind which line the chain is whole up to `head`.
fn base_of(dir: &std::path::Path, head: Head) -> std::io::Result<Head> {
    let (mut base, mut before) = (head, None);
    for part in files::Parts::open(dir)?.texts() {
        let (_file, text) = part?;
        for line in text.split_inclusive('\n') {
            let Some(line) = line.strip_suffix('\n') else {
                break;
            };
            let chained = before.is_some() && check(None, before, line).is_ok();
            let Ok((read, here, _)) = check(None, None, line) else {
                before = None;
                continue;
            };
            if !chained {
                base = read.follows();
            }
            before = Some(here);
        }
    }
    Ok(if before == Some(head) { base } else { head })
}
