//! Reading the log, and proving that nothing in it was changed, removed, moved or cut off.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::files::{FILE_NAME, Parts};
use super::line::{Line, LineError, Sealer, check};
use crate::control::AuditHead as Head;

/// The result of verifying the whole log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = AuditVerified)]
pub struct Verified {
    /// Lines there are.
    pub lines: u64,
    /// Lines whose MAC was checked by itself. The others are under a data key of the control file
    /// that was replaced since; the chain authenticates them.
    pub sealed: u64,
    /// The number of the last line, as the control file has it.
    pub head: u64,
    /// Behind which line the log counts: 0, or where an operator accepted that it is not whole
    /// before.
    #[serde(default)]
    #[schema(required)]
    pub base: u64,
    /// How many faults there are; `problems` has the first twenty.
    #[serde(default)]
    #[schema(value_type = u64, required)]
    pub faults: usize,
    /// The first twenty faults, in the order of the log. Where there is none, every line written
    /// after the base is there, unchanged.
    pub problems: Vec<Problem>,
    /// That the control file is older than the log, and what to do.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(nullable = false)]
    pub rolled_back: Option<String>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = AuditProblem)]
pub struct Problem {
    /// The file that it was found in.
    pub file: String,
    /// The line of that file, from 1.
    pub line: u64,
    /// What is wrong.
    pub problem: String,
}

/// Goes along the whole chain, from the line behind `base` to `head`.
pub(super) fn verify(
    parts: Parts,
    sealer: Sealer<'_>,
    base: Head,
    head: Head,
) -> io::Result<Verified> {
    let mut found = Verified {
        lines: 0,
        sealed: 0,
        head: head.seq,
        base: base.seq,
        faults: 0,
        problems: Vec::new(),
        rolled_back: None,
    };
    let mut before = base;
    let mut passed = head == base;
    // What stands before the base was accepted as it is.
    let mut counts = base == Head::START;
    let mut name = FILE_NAME.to_owned();
    let mut at = 0;
    for part in parts.texts() {
        let (file, text) = part?;
        (name, at) = (file, 0);
        for text in text.split_inclusive('\n') {
            // Cut short by a crash, and it was never acknowledged; the head is before it, or
            // is missed.
            let Some(text) = text.strip_suffix('\n') else {
                break;
            };
            at += 1;
            let checked = check(Some(sealer), Some(before), text);
            counts |= checked.is_ok();
            if !counts {
                continue;
            }
            found.lines += 1;
            let here = match checked {
                Ok((_line, here, sealed)) => {
                    found.sealed += u64::from(sealed);
                    // Beyond the head, which a crash left behind, nothing vouches for a line but
                    // its own MAC.
                    if passed && !sealed {
                        found.say(&name, at, LineError::Forged.to_string());
                    }
                    here
                }
                Err(error) => {
                    found.say(&name, at, error.to_string());
                    // Go on from what stands here, so that one change is reported once.
                    match check(None, None, text) {
                        Ok((_line, here, _)) => here,
                        Err(_) => continue,
                    }
                }
            };
            passed |= here == head;
            before = here;
        }
    }
    if !counts {
        let problem = format!(
            "line {}, behind which the log counts, is not followed by any: lines were cut off or changed",
            base.seq
        );
        found.say(&name, at, problem);
    } else if !passed {
        let problem = format!(
            "line {}, the last that the control file knows, is not there: lines were cut off or changed",
            head.seq
        );
        found.say(&name, at, problem);
    }
    Ok(found)
}

impl Verified {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.problems.is_empty() && self.rolled_back.is_none()
    }

    fn say(&mut self, file: &str, line: u64, problem: String) {
        self.faults += 1;
        // The first ones suffice; a log that was replaced whole would repeat it line by
        // line.
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem {
                file: file.to_owned(),
                line,
                problem,
            });
        }
    }
}

/// The lines written at `since` or after, as they stand there; nothing is verified. What is no line
/// is passed over.
///
/// # Errors
///
/// What the operating system said.
pub fn lines(dir: &Path, since: Option<jiff::Timestamp>) -> io::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for part in Parts::open(dir)?.texts() {
        let (_file, text) = part?;
        let readable = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Line>(line).ok());
        lines.extend(readable.filter(|line| {
            let time = line.time.parse::<jiff::Timestamp>();
            since.is_none_or(|since| time.is_ok_and(|time| time >= since))
        }));
    }
    Ok(lines)
}

const MAX_PROBLEMS: usize = 20;
