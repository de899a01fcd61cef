//! `nimbus encryption migrate`: a plaintext database becomes an encrypted one.

use std::path::Path;

use clap::Args;
use nimbus_manifests::TenantId;

use super::super::{CliError, CommandOutcome, block_on, output, settings};
use super::audited::audited;
use super::{progress_bar, stop_on_signals};
use crate::config::keys::{self, Purpose};
use crate::encryption::migrate::{Migrate, Migrated};

/// Encrypt a plaintext database
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nimbus encryption migrate --provider sqlite --tenant-id demo \\
      --source data/demo.sqlite3 --in-place --retire-source
  nimbus encryption migrate --provider redb \\
      --source data/nimbus-control.db --in-place --retire-source
  nimbus encryption migrate --provider sqlite --tenant-id demo \\
      --source old/demo.sqlite3 --target data/demo.sqlite3

Stop the server first. A migration that was cut short is run again. Removing a
plaintext file does not wipe its blocks on the disk.")]
pub(super) struct MigrateCommand {
    #[command(flatten)]
    migrate: Migrate,
}

impl MigrateCommand {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        let settings = settings(config, None)?;
        let (bar, progress) = progress_bar("encrypting");
        let migrated = block_on(async {
            stop_on_signals()?;
            let keys = keys::connect(&settings, Purpose::Inspect).await?;
            let envelope = audited(keys.envelope, &settings, &self.migrate.source)?;
            let control_dir = &settings.control_data_dir;
            let migrated = self.migrate.run(&envelope, control_dir, Some(progress));
            Ok(migrated.await.map_err(Box::new)?)
        })?;
        bar.finish_and_clear();
        say(&migrated);
        Ok(CommandOutcome::Done)
    }
}

fn say(migrated: &Migrated) {
    let Migrated {
        subject,
        encrypted,
        plaintext,
        served,
    } = migrated;
    output::note(&format!(
        "{} is encrypted, as {subject}.",
        encrypted.display()
    ));
    let name = encrypted.file_name().and_then(|name| name.to_str());
    if name != Some(subject.file_name()) {
        output::note(&format!(
            "It opens under the name {}, with its manifest beside it.",
            subject.file_name()
        ));
    }
    if !served {
        output::note(&format!(
            "It is another application's database: no server serves it, and a tenant of this name is answered 503. It can be kept, and taken out \
             again with `nimbus encryption export --provider sqlite --tenant-id {} --source {} --target <file>`.",
            subject.tenant().map_or("", TenantId::as_str),
            encrypted.display()
        ));
    }
    match plaintext {
        Some(plaintext) => output::note(&format!(
            "The plaintext is still in {}; remove it when you have seen that all is well.",
            plaintext.display()
        )),
        None => output::note(
            "The plaintext file is removed. Its blocks may stay readable on the disk, and in backups of it, until they are overwritten.",
        ),
    }
}
