//! `nimbus usage`: monthly active identities, from the running server when there is one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use nimbus_manifests::Cipher;
use tokio::time::sleep;
use ureq::http::Method;

use super::output::{self, Format};
use super::remote::Remote;
use super::{CliError, CommandOutcome, block_on, settings};
use crate::audit::{ControlLost, LogError};
use crate::config::Settings;
use crate::config::keys::{self, Purpose};
use crate::control::{self, Control, ControlError, Month, MonthUsage, UsageReport};
use crate::envelope::{Envelope, Intent, Prepared};
use crate::pluralize::pluralize;
use crate::process::DataDirLock;
use crate::runtime::blocking;

/// How many identities each tenant had in each month
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nimbus usage
  nimbus usage --month 2026-11 --format json

An identity is a tenant access key, or the name that requests under one carry in
the header X-Nimbus-Identity. Each counts once a calendar month (UTC).

Servers on one database count for themselves. With --control-data-dir for each of
them, under keys that the settings name, what they counted is added up: an
identity that used two of them counts twice.")]
pub(super) struct Usage {
    /// Form of the answer
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,

    /// This month alone, as 2026-11
    #[arg(long, value_name = "YYYY-MM")]
    month: Option<Month>,

    /// Add up what the servers counted whose control directories these are; may be given several
    /// times
    #[arg(long = "control-data-dir", value_name = "DIR")]
    control_dirs: Vec<PathBuf>,
}

/// What only this command meets.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UsageError {
    /// Nothing was ever counted here.
    #[error("there is no control file at {}; `nimbus start` makes one, or name the directory in NIMBUS_DATA_DIR or NIMBUS_CONTROL_DATA_DIR", .path.display())]
    NoControlFile {
        /// Where it would be.
        path: PathBuf,
    },
    /// It would be counted twice.
    #[error("{} was named twice, and would count twice", .path.display())]
    Twice {
        /// The control file.
        path: PathBuf,
    },
}

impl Usage {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        output::init_log(Format::Text, output::COMMAND_LOG);
        let settings = settings(config, None)?;
        let report = match (&self.control_dirs[..], Remote::on(&settings.data_dir)) {
            ([], Ok(Some(server))) => ask(&server, self.month)?,
            ([], server) => {
                let _none = server?;
                here(&settings, self.month)?
            }
            (dirs, _) => added_up(&settings, dirs, self.month)?,
        };
        match self.format {
            Format::Json => output::answer(
                &serde_json::to_string_pretty(&report).map_err(std::io::Error::from)?,
            )?,
            Format::Text => output::answer(&text(&report))?,
        }
        Ok(CommandOutcome::Done)
    }
}

/// From a running server.
fn ask(server: &Remote, month: Option<Month>) -> Result<UsageReport, CliError> {
    let query = month.map(|month| format!("?month={month}"));
    let path = format!("/debug/usage{}", query.unwrap_or_default());
    server.ask(Method::GET, &path, PATIENCE)
}

/// From several control files, which are only looked at: their servers may run, here or elsewhere.
fn added_up(
    settings: &Settings,
    dirs: &[PathBuf],
    month: Option<Month>,
) -> Result<UsageReport, CliError> {
    block_on(async {
        let envelope = keys::connect(settings, Purpose::Inspect).await?.envelope;
        let (mut reports, mut seen) = (Vec::new(), BTreeSet::new());
        for dir in dirs {
            let path = Control::path_in(dir);
            if !path.exists() {
                return Err(UsageError::NoControlFile { path }.into());
            }
            if !seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())) {
                return Err(UsageError::Twice { path }.into());
            }
            let mut tries = 0..LOOKS;
            let months = loop {
                match seen_in(&envelope, dir, month).await {
                    Err(_) if tries.next().is_some() => sleep(PAUSE).await,
                    looked => break looked?,
                }
            };
            reports.push(UsageReport {
                months,
                not_counted: 0,
            });
        }
        Ok(UsageReport::sum(reports))
    })
}

/// What was counted in the control file of a directory. Fails where its server writes meanwhile.
async fn seen_in(
    envelope: &Envelope,
    dir: &Path,
    month: Option<Month>,
) -> Result<Vec<MonthUsage>, ControlError> {
    let path = Control::path_in(dir);
    let prepared = envelope
        .prepare(&path, &control::subject(), Cipher::Blocks1, Intent::Open)
        .await?;
    match prepared {
        Prepared::Keyed(file) => blocking(move || Control::usage_seen(&file, month)).await,
        Prepared::Plain(_) => Control::open(envelope, dir).await?.usage(month),
    }
}

/// From the control file: no server runs.
fn here(settings: &Settings, month: Option<Month>) -> Result<UsageReport, CliError> {
    let path = Control::path_in(&settings.control_data_dir);
    if !path.exists() {
        if let Some(lost) = ControlLost::look(&settings.control_data_dir, &settings.data_dir) {
            return Err(LogError::ControlLost(lost).into());
        }
        return Err(UsageError::NoControlFile { path }.into());
    }
    let _lock = DataDirLock::acquire(&settings.data_dir)?;
    block_on(async {
        let envelope = keys::connect(settings, Purpose::Inspect).await?.envelope;
        let control = Control::open(&envelope, &settings.control_data_dir).await?;
        Ok(UsageReport {
            months: control.usage(month)?,
            not_counted: 0,
        })
    })
}

/// One line a tenant and month, and each month's sum.
fn text(report: &UsageReport) -> String {
    let rows: Vec<_> = report.months.iter().flat_map(rows).collect();
    let mut text = String::new();
    if rows.is_empty() {
        text.push_str("Nothing was counted.\n");
    } else {
        let width = rows.iter().map(|(_, whose, _)| whose.chars().count());
        let width = width.max().unwrap_or(0).max(WHOSE.len());
        text.push_str(&format!("MONTH    {WHOSE:<width$}  {IDENTITIES}\n"));
        for (month, whose, identities) in rows {
            let digits = IDENTITIES.len();
            text.push_str(&format!(
                "{month}  {whose:<width$}  {identities:>digits$}\n"
            ));
        }
    }
    if report.months.iter().any(|month| month.capped) {
        text.push_str("+ more than are counted of one tenant in one month\n");
    }
    if report.not_counted > 0 {
        text.push_str(&format!(
            "{} since the server's start found no place in the queue; their identities count with their next request\n",
            pluralize(report.not_counted, "request")
        ));
    }
    text
}

fn rows(month: &MonthUsage) -> Vec<(String, String, String)> {
    let name = month.month.to_string();
    let row = |whose: &str, identities: u64, capped: bool| {
        let more = if capped { "+" } else { "" };
        (
            name.clone(),
            whose.to_owned(),
            format!("{identities}{more}"),
        )
    };
    let mut rows: Vec<_> = month
        .tenants
        .iter()
        .map(|one| row(&one.tenant, one.identities, one.capped))
        .collect();
    if month.deleted_tenants > 0 {
        rows.push(row("(deleted tenants)", month.deleted_tenants, false));
    }
    rows.push(row("(all)", month.identities, month.capped));
    rows
}

const WHOSE: &str = "TENANT";
const IDENTITIES: &str = "IDENTITIES";
const PATIENCE: Duration = Duration::from_secs(60);
/// How often, and how long apart, a file is looked at again that its server writes.
const LOOKS: usize = 20;
const PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::TenantUsage;

    #[test]
    fn stands_in_columns() {
        let tenant = |tenant: &str, identities, capped| TenantUsage {
            tenant: tenant.to_owned(),
            identities,
            capped,
        };
        let month = |text: &str, identities, deleted_tenants, capped, tenants| MonthUsage {
            month: text.parse().unwrap(),
            identities,
            deleted_tenants,
            capped,
            tenants,
        };
        let report = UsageReport {
            months: vec![
                month("2026-11", 12, 0, false, vec![tenant("demo", 12, false)]),
                month(
                    "2026-10",
                    1_000_008,
                    3,
                    true,
                    vec![
                        tenant("a-longer-one-than-others", 1_000_000, true),
                        tenant("demo", 5, false),
                    ],
                ),
            ],
            not_counted: 7,
        };
        assert_eq!(
            text(&report),
            "\
MONTH    TENANT                    IDENTITIES
2026-11  demo                              12
2026-11  (all)                             12
2026-10  a-longer-one-than-others    1000000+
2026-10  demo                               5
2026-10  (deleted tenants)                  3
2026-10  (all)                       1000008+
+ more than are counted of one tenant in one month
7 requests since the server's start found no place in the queue; their identities count with their next request
"
        );
        assert_eq!(text(&UsageReport::default()), "Nothing was counted.\n");
    }
}
