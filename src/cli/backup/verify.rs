//! `nimbus backup verify`: whether a repository is whole and authentic.

use std::path::Path;

use clap::Args;

use super::super::encryption::{progress_bar, stop_on_signals};
use super::super::output::{self, Format};
use super::super::{CliError, CommandOutcome, block_on, settings};
use super::shown;
use crate::backup::verify::Verified;
use crate::backup::{BackupError, Location, Repository};
use crate::config::keys::{self, Purpose};
use crate::error_chain::error_chain;
use crate::pluralize::pluralize;

/// Prove that a repository is whole and authentic: exit 1 on damage, 3 on other findings, or where
/// a key is missing
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nimbus backup verify --from /mnt/backup/nimbus
  nimbus backup verify --from s3://bucket/nimbus --deep")]
pub(super) struct VerifyBackups {
    /// The repository
    #[arg(long, value_name = "R", value_parser = Location::from_flag)]
    from: Location,

    /// One snapshot alone [default: all]
    #[arg(long, value_name = "ID")]
    snapshot: Option<u64>,

    /// Besides, restore the snapshot, or the newest, into a scratch directory in TMPDIR, and open
    /// every tenant there
    #[arg(long)]
    deep: bool,

    /// Form of the answer
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl VerifyBackups {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        let settings = settings(config, None)?;
        let (bar, progress) = progress_bar("verifying");
        let found = block_on(async {
            stop_on_signals()?;
            let envelope = keys::connect(&settings, Purpose::Inspect).await?.envelope;
            let repository = Repository::open(&self.from, &settings.backup_s3).await?;
            let verified = repository
                .verify(&envelope, self.snapshot, progress.clone())
                .await;
            let mut found = verified?;
            if self.deep {
                let rehearsed = repository.rehearse(
                    &envelope,
                    self.snapshot,
                    &settings.provider,
                    &mut found,
                    progress,
                );
                match rehearsed.await {
                    Ok(()) => {}
                    Err(BackupError::Stopped) => return Err(BackupError::Stopped.into()),
                    Err(error) => found
                        .damage
                        .push(format!("it was not restored: {}", error_chain(&error))),
                }
            }
            Ok(found)
        });
        bar.finish_and_clear();
        let found = found?;
        let answer = match self.format {
            Format::Json => serde_json::to_string_pretty(&found).map_err(std::io::Error::from)?,
            Format::Text => text(&found),
        };
        output::answer(&answer)?;
        let is_fine = found.findings.is_empty() && found.unproven.is_empty();
        Ok(match (found.damage.is_empty(), is_fine) {
            (false, _) => CommandOutcome::Failed,
            (true, false) => CommandOutcome::Problems,
            (true, true) => CommandOutcome::Done,
        })
    }
}

fn text(found: &Verified) -> String {
    let mut text = String::new();
    for damage in &found.damage {
        text.push_str(&format!("DAMAGED: {damage}\n"));
    }
    for unproven in &found.unproven {
        text.push_str(&format!("NOT PROVEN, its key is not at hand: {unproven}\n"));
    }
    for shredded in &found.shredded {
        text.push_str(&format!("shredded, and opens no more: {shredded}\n"));
    }
    for finding in &found.findings {
        text.push_str(&format!("note: {finding}\n"));
    }
    let packs = match found.packs {
        0 => String::new(),
        packs => format!(", {}", pluralize(packs, "pack")),
    };
    text.push_str(&format!(
        "{}{packs}, {} ({}) read",
        pluralize(found.snapshots.len(), "snapshot"),
        pluralize(found.objects, "object"),
        shown(found.bytes)
    ));
    if let Some(restored) = found.restored {
        text.push_str(&format!(
            "; snapshot {restored} {}was restored, and every page of it proven",
            match found.restored_packs {
                0 => String::new(),
                packs => format!("with {packs} packs over it "),
            }
        ));
    }
    let is_proven = found.damage.is_empty() && found.unproven.is_empty();
    text.push_str(if is_proven { "; all authentic\n" } else { "\n" });
    text
}
