//! `nimbus doctor`: keys, files and machine, looked at as an auditor would.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use ureq::http::Method;

use super::output::{self, Format};
use super::remote::Remote;
use super::{CliError, CommandOutcome, block_on, settings};
use crate::audit::{LogError, OfflineLog};
use crate::config::Settings;
use crate::config::keys::{self, Purpose};
use crate::deployment;
use crate::encryption::doctor::{Diagnosis, Doctor, Verdict};
use crate::encryption::status::{InDatabase, StatusReader};
use crate::error_chain::error_chain;
use crate::pluralize::pluralize;
use crate::process::FileLimit;

/// Look at keys, files and machine; exit code 3 when something needs an operator
#[derive(Debug, Args)]
#[command(after_help = "\
Example: nimbus doctor

Through the running server when there is one: its limits are what counts.
Nothing is changed. Warnings leave the exit code 0.")]
pub(super) struct DoctorCommand {
    /// Form of the answer
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,

    /// Directory of the tenants' databases [default: that of the settings]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl DoctorCommand {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        output::init_log(Format::Text, output::COMMAND_LOG);
        let settings = settings(config, self.data_dir)?;
        let found: Diagnosis = match Remote::on(&settings.data_dir)? {
            Some(server) => server.ask(Method::GET, "/debug/doctor", PATIENCE)?,
            None => block_on(here(&settings))?,
        };
        match self.format {
            Format::Json => output::answer(
                &serde_json::to_string_pretty(&found).map_err(std::io::Error::from)?,
            )?,
            Format::Text => output::answer(&text(&found))?,
        }
        Ok(if found.problems == 0 {
            CommandOutcome::Done
        } else {
            CommandOutcome::Problems
        })
    }
}

/// Looks from this process: no server runs.
async fn here(settings: &Settings) -> Result<Diagnosis, CliError> {
    let keys = keys::connect(settings, Purpose::Inspect).await;
    let envelope = keys.map(|keys| keys.envelope);
    let audit = match &envelope {
        Ok(envelope) if envelope.keys().is_some() => {
            let (dir, data_dir) = (&settings.control_data_dir, &settings.data_dir);
            let log = OfflineLog::new(envelope.clone(), dir.clone(), data_dir.clone());
            log.verify().await
        }
        Ok(_off) => Err(LogError::EncryptionOff),
        Err(_told_by_the_provider) => Err(LogError::NoKey),
    };
    let (envelope, rolled_back) = match envelope {
        Ok(envelope) => {
            let (envelope, rolled_back) =
                deployment::look(envelope, &settings.data_dir, &settings.control_data_dir).await;
            (Ok(envelope), rolled_back)
        }
        Err(error) => (Err(error_chain(&error)), None),
    };
    let doctor = Doctor {
        status_reader: StatusReader {
            data_dir: settings.data_dir.clone(),
            control_dir: settings.control_data_dir.clone(),
            provider: settings.provider.clone(),
            database: InDatabase::of(&settings.tenants).await,
            envelope,
            dek_max_age: settings.dek_max_age,
            holds_control: false,
            rolled_back,
        },
        max_open_tenants: settings.max_open_tenants.within(FileLimit::raise()),
        proofs: None,
        limits: settings.limits,
    };
    Ok(doctor.run(audit).await?)
}

/// A line a check, and below it what to do.
fn text(found: &Diagnosis) -> String {
    let width = found
        .checks
        .iter()
        .map(|check| check.name.len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for check in &found.checks {
        let mark = match check.verdict {
            Verdict::Ok => "ok     ",
            Verdict::Warning => "warning",
            Verdict::Problem => "PROBLEM",
        };
        text.push_str(&format!("{mark}  {:width$}  {}\n", check.name, check.found));
        if let Some(remedy) = &check.remedy {
            text.push_str(&format!("{:9}{:width$}  -> {remedy}\n", "", ""));
        }
    }
    text.push_str(&format!(
        "\n{}, {}, {}\n",
        pluralize(found.checks.len(), "check"),
        pluralize(found.warnings, "warning"),
        pluralize(found.problems, "problem")
    ));
    text
}

/// A log of some years is read whole.
const PATIENCE: Duration = Duration::from_secs(300);
