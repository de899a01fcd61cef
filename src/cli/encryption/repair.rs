//! `nimbus encryption repair`: manifests that are lost come back from the control file.

use std::path::{Path, PathBuf};

use clap::Args;
use nimbus_manifests::TenantId;

use super::super::{CliError, CommandOutcome, block_on, output, settings};
use crate::config::keys::{self, Purpose};
use crate::encryption::repair::{Repair as Found, Repaired, repair};
use crate::envelope::migrate_command;

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

    /// Accept the older manifest and database of this tenant, from a backup, say; may be given
    /// several times
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
            if !matches!(
                repair.outcome,
                Repaired::PutBack { .. } | Repaired::Accepted
            ) {
                outcome = CommandOutcome::Problems;
            }
            output::answer(&format!("{}: {}", repair.path.display(), describe(repair)))?;
        }
        output::note(match (repairs.is_empty(), outcome) {
            (true, _) => {
                "No manifest is missing, unreadable, older than its copy or another file's."
            }
            (false, CommandOutcome::Done) => {
                "Now: `nimbus encryption status --verify open` proves that key and file belong together."
            }
            (false, _) => {
                "Not all is repaired: do what the lines above say, then look again with `nimbus encryption status --verify open`."
            }
        });
        Ok(outcome)
    }
}

/// What was done about one manifest, and what is left to do.
fn describe(repair: &Found) -> String {
    let tenant = repair.subject.tenant().map_or("", TenantId::as_str);
    let accept = format!("`nimbus encryption repair --accept-older {tenant}`");
    match &repair.outcome {
        Repaired::PutBack { set_aside: None } => "its manifest was put back".to_owned(),
        Repaired::PutBack {
            set_aside: Some(aside),
        } => format!(
            "its manifest was put back; what stood in its place is kept as {}",
            aside.display()
        ),
        Repaired::NoCopy(why) | Repaired::Deleting(why) | Repaired::Failed(why) => why.clone(),
        Repaired::DatabaseMissing => {
            "the database is gone; restore it from a backup, or delete the tenant".to_owned()
        }
        Repaired::Accepted => "the older manifest and its database are accepted".to_owned(),
        Repaired::BothOlder => format!(
            "its manifest is an older one, and the newer does not open the database; if both come from a backup, accept them with {accept}"
        ),
        Repaired::CopyUnavailable(why) => format!(
            "its manifest is an older one, and whether the newer one opens the database is not known, for its key cannot be had: {why}; then run \
             `nimbus encryption repair` again. Only if that key is lost for ever and both come from a backup: {accept}"
        ),
        Repaired::Plaintext => format!(
            "the database is plaintext and needs no manifest; encrypt it with `{}`",
            migrate_command(&repair.path)
        ),
    }
}
