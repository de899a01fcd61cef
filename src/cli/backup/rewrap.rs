//! `nimbus backup rewrap`: the manifests in a repository move to the current key.

use std::path::Path;

use clap::Args;

use super::super::encryption::{audited_deployment, counting_bar, stop_on_signals};
use super::super::output::{self, Format};
use super::super::{CliError, CommandOutcome, block_on, settings};
use crate::backup::rewrap::Moved;
use crate::backup::{Location, Repository};
use crate::config::keys::{self, Purpose};
use crate::pluralize::pluralize;

/// Move the manifests in a repository to the current key, so that the key before can be destroyed
#[derive(Debug, Args)]
#[command(after_help = "\
Example: nimbus backup rewrap --from /mnt/backup/nimbus

Run it after `nimbus encryption rotate-kek`. The current key wraps, and the keys
before, as in NIMBUS_ENCRYPTION_PREVIOUS_…, open what they wrapped. An interrupted
run leaves both; run it again. Exit 3: something still needs a key before.")]
pub(super) struct RewrapBackups {
    /// The repository
    #[arg(long, value_name = "R", value_parser = Location::from_flag)]
    from: Location,

    /// Form of the answer
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl RewrapBackups {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        let settings = settings(config, None)?;
        let (bar, progress) = counting_bar("wrapping anew");
        let moved = block_on(async {
            stop_on_signals()?;
            let envelope = keys::connect(&settings, Purpose::Inspect).await?.envelope;
            let envelope = audited_deployment(envelope, &settings)?;
            let repository = Repository::open(&self.from, &settings.backup_s3).await?;
            Ok(repository.rewrap(&envelope, progress).await?)
        });
        bar.finish_and_clear();
        let moved = moved?;
        let answer = match self.format {
            Format::Json => serde_json::to_string_pretty(&moved).map_err(std::io::Error::from)?,
            Format::Text => text(&moved),
        };
        output::answer(&answer)?;
        Ok(match moved.failed.is_empty() {
            true => CommandOutcome::Done,
            false => CommandOutcome::Problems,
        })
    }
}

fn text(moved: &Moved) -> String {
    let mut text = format!(
        "{} in {}: {} wrapped anew, {} of before removed.\n",
        pluralize(moved.looked_at, "data key"),
        moved.repository,
        moved.rewrapped,
        moved.removed,
    );
    for failed in &moved.failed {
        text.push_str(&format!("NOT moved: {failed}\n"));
    }
    text.push_str(match moved.failed.is_empty() {
        true => DONE,
        false => "Do not destroy the key before yet.\n",
    });
    text
}

const DONE: &str = "\
Everything in it opens with the current key alone. The control files of snapshots made before hold copies of manifests as they were: those open with
the key before, until it is destroyed or `nimbus backup prune` removes the snapshots.
";
