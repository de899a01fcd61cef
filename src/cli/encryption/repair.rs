//! `nimbus encryption repair`: manifests that are lost come back from the control file.

use std::path::{Path, PathBuf};

use clap::Args;
use nimbus_manifests::TenantId;

use super::super::{CliError, CommandOutcome, block_on, output, settings};
use crate::config::keys::{self, Purpose};
use crate::encryption::repair::{Repaired, repair};

/// Put lost manifests back from the copies in the control file
#[derive(Debug, Args)]
#[command(after_help = "\
Example: nimbus encryption repair && nimbus encryption status --verify open

Stop the server first. What stands in the place of a copy is kept as
<manifest>.set-aside-1.")]
pub(super) struct Repair {
    /// Directory of the tenants' databases [default: that of the settings]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Accept the older manifest and database of this tenant, from a backup, say; may be given several times
    #[arg(long, value_name = "TENANT")]
    accept_older: Vec<TenantId>,
}

impl Repair {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        let settings = settings(config, self.data_dir)?;
        let repairs = block_on(async {
            let keys = keys::connect(&settings, Purpose::Inspect).await?;
            let repairs = repair(
                &keys.envelope,
                &settings.data_dir,
                &settings.control_data_dir,
                &self.accept_older,
            )
            .await;
            Ok(repairs.map_err(Box::new)?)
        })?;
        let mut outcome = CommandOutcome::Done;
        for repair in &repairs {
            let path = repair.path.display();
            output::answer(&match &repair.outcome {
                Repaired::PutBack => format!("{path}: its manifest was put back"),
                Repaired::DatabaseMissing => {
                    outcome = CommandOutcome::Problems;
                    format!(
                        "{path}: the database is gone; restore it from a backup, or delete the tenant"
                    )
                }
                Repaired::Accepted => {
                    format!("{path}: the older manifest and its database are accepted")
                }
                Repaired::BothOlder => {
                    outcome = CommandOutcome::Problems;
                    let tenant = repair.subject.tenant().map_or("", |tenant| tenant.as_str());
                    format!(
                        "{path}: its manifest is an older one, and the newer does not open the database; if both come from a backup, accept them \
                         with `nimbus encryption repair --accept-older {tenant}`"
                    )
                }
                Repaired::Failed(why) => {
                    outcome = CommandOutcome::Problems;
                    format!("{path}: {why}")
                }
                Repaired::Plaintext => {
                    outcome = CommandOutcome::Problems;
                    format!(
                        "{path}: the database is plaintext and needs no manifest; encrypt it with `nimbus encryption migrate`"
                    )
                }
            })?;
        }
        output::note(match repairs.len() {
            0 => "No manifest is missing, unreadable, older than its copy or another file's.",
            _ => {
                "What stood in a manifest's place is kept beside it as .set-aside-<n>. Now: `nimbus encryption status --verify open` proves that key and file \
                 belong together."
            }
        });
        Ok(outcome)
    }
}
