//! `nimbus encryption status`: every protected file, through the running server when there is one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use ureq::http::Method;

use super::super::output::{self, Format};
use super::super::remote::Remote;
use super::super::{CliError, CommandOutcome, block_on, settings};
use crate::clock;
use crate::config::Settings;
use crate::config::keys::{self, Purpose};
use crate::deployment;
use crate::encryption::status::{EncryptionStatus, FileReport, InDatabase, StatusReader, Verify};
use crate::error_chain::error_chain;
use crate::process::DataDirLock;

/// Look at every protected file; exit code 3 when one needs an operator
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nimbus encryption status
  nimbus encryption status --verify pages --format json

Without --verify: unwrap where keys are local files; none with aws-kms, where
each unwrapping is a call that costs. Nothing is ever changed.")]
pub(super) struct Status {
    /// Form of the answer
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,

    /// How closely to look at each file
    #[arg(long, value_enum)]
    verify: Option<Verify>,

    /// Directory of the tenants' databases [default: that of the settings]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Status {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        let settings = settings(config, self.data_dir)?;
        let status = match Remote::on(&settings.data_dir)? {
            Some(server) => {
                let query = self
                    .verify
                    .map(|verify| format!("?verify={}", verify.as_str()));
                let path = format!("/debug/encryption/status{}", query.unwrap_or_default());
                server.ask(Method::GET, &path, PATIENCE)?
            }
            None => here(&settings, self.verify)?,
        };
        match self.format {
            Format::Json => output::answer(
                &serde_json::to_string_pretty(&status).map_err(std::io::Error::from)?,
            )?,
            Format::Text => output::answer(&text(&status, clock::now()))?,
        }
        Ok(if status.summary.problems == 0 {
            CommandOutcome::Done
        } else {
            CommandOutcome::Problems
        })
    }
}

/// Looks from this process: no server runs.
fn here(settings: &Settings, verify: Option<Verify>) -> Result<EncryptionStatus, CliError> {
    // Opening a database touches its WAL: no server may start meanwhile. Only looking needs no
    // lock, and works on a read-only copy.
    let _lock = match verify {
        // Looking leaves no lock behind where nobody has used the directory.
        Some(Verify::Open | Verify::Pages) => DataDirLock::acquire_if_used(&settings.data_dir)?,
        _ => None,
    };
    block_on(async {
        let keys = keys::connect(settings, Purpose::Inspect).await;
        let mut rolled_back = None;
        let envelope = match keys {
            // Looking into the control file takes its key.
            Ok(keys) if Verify::of(verify, &settings.provider) > Verify::None => {
                let (envelope, found) = deployment::look(
                    keys.envelope,
                    &settings.data_dir,
                    &settings.control_data_dir,
                )
                .await;
                rolled_back = found;
                Ok(envelope)
            }
            Ok(keys) => Ok(keys.envelope),
            Err(error) => Err(error_chain(&error)),
        };
        let status_reader = StatusReader {
            data_dir: settings.data_dir.clone(),
            control_dir: settings.control_data_dir.clone(),
            provider: settings.provider.clone(),
            database: InDatabase::of(&settings.tenants).await,
            envelope,
            dek_max_age: settings.dek_max_age,
            holds_control: false,
            rolled_back,
        };
        Ok(status_reader.run(verify).await?)
    })
}

/// One line a file, the trouble in full below, and the sum.
fn text(status: &EncryptionStatus, now: jiff::Timestamp) -> String {
    let mut rows = vec![
        [
            "FILE",
            "STATE",
            "CIPHER",
            "WRAPPED BY",
            "KEY",
            "DATA KEY AGE",
            "HEALTH",
            "PROVEN RESTORE",
        ]
        .map(str::to_owned),
    ];
    rows.extend(status.files.iter().map(|file| row(file, now)));
    let is_proven = status.files.iter().any(|file| file.restored.is_some());
    let columns = rows[0].len() - usize::from(!is_proven);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    text.push_str(&heading(status));
    text.push_str(&unencrypted(status));
    if !status.files.is_empty() {
        text.push('\n');
        for row in &rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }
    let details: Vec<String> = status
        .files
        .iter()
        .filter_map(|file| Some((file, file.detail.as_ref()?)))
        .map(|(file, detail)| format!("{}: {detail}\n", file.path))
        .collect();
    if !details.is_empty() {
        text.push('\n');
        text.push_str(&details.concat());
    }
    let summary = status.summary;
    text.push_str(&format!(
        "\n{} {}, {} ok, {} {}; {}\n",
        summary.files,
        if summary.files == 1 { "file" } else { "files" },
        summary.ok,
        summary.problems,
        if summary.problems == 1 {
            "problem"
        } else {
            "problems"
        },
        match status.verify {
            Verify::None => "no key was used: --verify unwrap, open or pages looks closer",
            Verify::Unwrap => "looked at with --verify unwrap: open or pages looks closer",
            Verify::Open => "looked at with --verify open: pages reads all of each file",
            Verify::Pages => "looked at with --verify pages: all of each file",
        }
    ));
    text
}

/// Which tenants of a database are not encrypted.
fn unencrypted(status: &EncryptionStatus) -> String {
    let Some(place) = &status.unencrypted_tenants_in else {
        return String::new();
    };
    let named = &status.unencrypted_tenants;
    let some = named.iter().take(NAMED).map(String::as_str);
    let some = some.collect::<Vec<_>>().join(", ");
    let more = if named.len() > NAMED { ", …" } else { "" };
    match named.len() {
        0 => format!(
            "Tenants are in {place}: Nimbus does NOT encrypt those that are made from now on (--encryption-seal-external).\n"
        ),
        count => format!(
            "Tenants are in {place}: Nimbus does NOT encrypt {count} of them: {some}{more}. What is sealed, and what it keeps here:\n"
        ),
    }
}

fn heading(status: &EncryptionStatus) -> String {
    let Some(provider) = &status.provider else {
        return "Encryption is OFF (--encryption-key-provider none): files are stored in plaintext\n"
            .to_owned();
    };
    let mut text = format!("Key provider {}", provider.kind);
    for part in [&provider.key_id, &provider.path].into_iter().flatten() {
        text.push_str("  ");
        text.push_str(part);
    }
    text.push('\n');
    if let Some(error) = &provider.error {
        text.push_str(&format!("  cannot be used: {error}\n"));
    }
    text
}

fn row(file: &FileReport, now: jiff::Timestamp) -> [String; 8] {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let first = file.wraps.first();
    let more = match file.wraps.len() {
        0 | 1 => String::new(),
        wraps => format!(" +{}", wraps - 1),
    };
    [
        file.path.clone(),
        or_dash(&file.state),
        or_dash(&file.cipher),
        first.map_or("-".to_owned(), |wrap| format!("{}{more}", wrap.provider)),
        or_dash(&first.map(|wrap| wrap.key_id.clone())),
        file.dek_created
            .as_ref()
            .and_then(|created| created.parse::<jiff::Timestamp>().ok())
            .map_or("-".to_owned(), |created| {
                age(now.as_second() - created.as_second())
            }),
        match file.locked {
            true => format!("{}, locked", file.health.as_str()),
            false => file.health.as_str().to_owned(),
        },
        or_dash(&file.restored),
    ]
}

fn age(seconds: i64) -> String {
    match seconds {
        ..0 => "in the future".to_owned(),
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Tenants that are named at most.
const NAMED: usize = 10;
/// Every page of every tenant may be read.
const PATIENCE: Duration = Duration::from_secs(3600);
