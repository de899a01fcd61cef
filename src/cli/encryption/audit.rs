//! `nimbus encryption audit`: the key-event log, read, and proven whole.

use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use ureq::http::Method;

use super::super::output::{self, Format};
use super::super::remote::Remote;
use super::super::{CliError, CommandOutcome, block_on, settings};
use super::require_deployment;
use crate::audit::{Accepted, Line, LogError, OfflineLog, Verified, lines};
use crate::config::Settings;
use crate::config::keys::{self, Purpose};
use crate::envelope::Envelope;
use crate::pluralize::pluralize;
use crate::process::DataDirLock;

/// Read the log of key events; with --verify, prove that nothing in it was changed
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nimbus encryption audit --since 2026-11-01T00:00:00Z
  nimbus encryption audit --verify
  nimbus encryption audit --accept-broken

Without --verify no key is needed, and nothing is proven. With it the exit code
is 3 when a line was changed, removed, moved or cut off.")]
pub(super) struct Audit {
    /// Prove the whole log: its chain, its MACs, and its end
    #[arg(long)]
    verify: bool,

    /// Accept that the log is not whole: from its last fault on it counts, and the log says who
    /// accepted that; no server may run
    #[arg(long, conflicts_with_all = ["since", "verify"])]
    accept_broken: bool,

    /// Only what happened at this time or after it
    #[arg(long, value_name = "RFC 3339 TIME", value_parser = time)]
    since: Option<jiff::Timestamp>,

    /// Form of the answer
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl Audit {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        let settings = settings(config, None)?;
        if self.accept_broken {
            require_deployment(&settings)?;
            return accept(&settings, self.format);
        }
        // A log whose control file is lost can be read, and not proven.
        let log = settings.control_data_dir.join(crate::audit::FILE_NAME);
        if self.verify || !log.exists() {
            require_deployment(&settings)?;
        }
        let verified = self.verify.then(|| verify(&settings)).transpose()?;
        let lines = lines(&settings.control_data_dir, self.since);
        let lines = lines.map_err(|source| LogError::Io {
            dir: settings.control_data_dir.clone(),
            source,
        })?;
        match self.format {
            Format::Text => {
                // With --verify alone the answer is the proof, and not the whole log.
                if verified.is_none() || self.since.is_some() {
                    output::answer(&table(&lines))?;
                }
                if let Some(verified) = &verified {
                    output::answer(&describe(verified))?;
                }
            }
            Format::Json => {
                let answer = serde_json::json!({"events": lines, "verified": verified});
                output::answer(
                    &serde_json::to_string_pretty(&answer).map_err(std::io::Error::from)?,
                )?;
            }
        }
        Ok(match verified {
            Some(verified) if !verified.is_whole() => CommandOutcome::Problems,
            _ => CommandOutcome::Done,
        })
    }
}

fn verify(settings: &Settings) -> Result<Verified, CliError> {
    match Remote::on(&settings.data_dir)? {
        Some(server) => server.ask(Method::GET, "/api/admin/encryption/audit", PATIENCE),
        None => {
            let _lock = DataDirLock::acquire(&settings.data_dir)?;
            block_on(async {
                let envelope = keys::connect(settings, Purpose::Inspect).await?.envelope;
                Ok(offline(envelope, settings).verify().await?)
            })
        }
    }
}

fn offline(envelope: Envelope, settings: &Settings) -> OfflineLog {
    let (dir, data_dir) = (&settings.control_data_dir, &settings.data_dir);
    OfflineLog::new(envelope, dir.clone(), data_dir.clone())
}

/// Accepts that the log is not whole. The lock says who runs, if anybody does.
fn accept(settings: &Settings, format: Format) -> Result<CommandOutcome, CliError> {
    let _lock = DataDirLock::acquire(&settings.data_dir)?;
    let accepted = block_on(async {
        let envelope = keys::connect(settings, Purpose::Inspect).await?.envelope;
        Ok(offline(envelope, settings).accept().await?)
    })?;
    let said = match (&accepted, format) {
        (None, Format::Text) => "The audit log is whole: there is nothing to accept.\n".to_owned(),
        (
            Some(Accepted {
                from,
                faults,
                first,
            }),
            Format::Text,
        ) => format!(
            "Accepted, and recorded: the audit log counts from line {from} on. Before it there stay {}, the first: {first}\n",
            pluralize(*faults, "fault")
        ),
        (None, Format::Json) => serde_json::json!({"accepted": null}).to_string(),
        (
            Some(Accepted {
                from,
                faults,
                first,
            }),
            Format::Json,
        ) => serde_json::json!({"accepted": {"from": from, "faults": faults, "first": first}})
            .to_string(),
    };
    output::answer(&said)?;
    Ok(CommandOutcome::Done)
}

/// One line an event, its detail below it.
fn table(lines: &[Line]) -> String {
    if lines.is_empty() {
        return "No key events.\n".to_owned();
    }
    let heads = ["TIME", "EVENT", "OUTCOME", "ACTOR", "SUBJECT"];
    let cells: Vec<[Cow<'_, str>; 5]> = lines
        .iter()
        .map(|line| {
            let subject = line.subject.as_deref().unwrap_or("-");
            [
                &*line.time,
                &*line.event,
                &*line.outcome,
                &*line.actor,
                subject,
            ]
            .map(output::cell)
        })
        .collect();
    let rows: Vec<[&str; 5]> = cells
        .iter()
        .map(|row| std::array::from_fn(|column| &*row[column]))
        .collect();
    let width = |column: usize| {
        let all = rows
            .iter()
            .chain([&heads])
            .map(|row| row[column].chars().count());
        all.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let mut text = String::new();
    let mut write = |row: &[&str; 5]| {
        for (column, cell) in row.iter().enumerate() {
            let last = column + 1 == row.len();
            let width = if last { 0 } else { widths[column] };
            text.push_str(&format!("{cell:width$}{}", if last { "" } else { "  " }));
        }
        text.push('\n');
    };
    write(&heads);
    rows.iter().for_each(write);
    text
}

fn describe(verified: &Verified) -> String {
    let Verified {
        lines,
        sealed,
        head,
        base,
        faults,
        problems,
        rolled_back,
    } = verified;
    let mut text = rolled_back
        .iter()
        .map(|said| format!("The log and the control file are not of one time: {said}.\n"))
        .collect::<String>();
    if problems.is_empty() {
        let from = match base {
            0 => String::new(),
            base => format!(
                " from line {} on, as an operator accepted (event log-accepted)",
                base + 1
            ),
        };
        text.push_str(&format!(
            "The audit log is whole{from}: {}, the last {} number {head}; {} checked, the others are vouched for by the chain.\n",
            pluralize(*lines, "line"),
            if rolled_back.is_some() { "that the control file knows is" } else { "is" },
            pluralize(*sealed, "MAC")
        ));
        return text;
    }
    text.push_str(&format!(
        "The audit log was tampered with, or damaged ({} in {}):\n",
        pluralize(*faults, "fault"),
        pluralize(*lines, "line")
    ));
    for problem in problems {
        text.push_str(&format!(
            "  {} line {}: {}\n",
            problem.file, problem.line, problem.problem
        ));
    }
    if *faults > problems.len() {
        let more = pluralize(faults - problems.len(), "fault");
        text.push_str(&format!("  and {more} more\n"));
    }
    text.push_str(
        "Compare it with the copies that your log collector keeps (tracing target nimbus::audit), and find out who could write there. Then, with the \
         server stopped, `nimbus encryption audit --accept-broken` lets the log count from its last fault on, and records that.\n",
    );
    text
}

fn time(text: &str) -> Result<jiff::Timestamp, &'static str> {
    text.parse().map_err(|_in_its_words| {
        "a time is written as 2026-11-01T00:00:00Z, or with an offset: 2026-11-01T00:00:00+01:00"
    })
}

/// A log of some years is read whole.
const PATIENCE: Duration = Duration::from_secs(300);
