//! `nimbus encryption migrate`: a plaintext database becomes an encrypted one.

use std::path::{Path, PathBuf};

use clap::Args;
use nimbus_manifests::TenantId;

use super::super::{CliError, CommandOutcome, block_on, output, settings};
use super::audited::audited;
use super::{Provider, progress_bar, stop_on_signals};
use crate::config::keys::{self, Purpose};
use crate::data_dir;
use crate::encryption::migrate::{self, Destination, Migrated};

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
pub(super) struct Migrate {
    /// The plaintext database
    #[arg(long, value_name = "FILE")]
    source: PathBuf,

    /// What kind of database it is
    #[arg(long, value_enum)]
    provider: Provider,

    /// Whose it is; only the control file needs none
    #[arg(long, value_name = "TENANT")]
    tenant_id: Option<TenantId>,

    /// Where the encrypted database goes; a missing directory is made [default: <source>.encrypted]
    #[arg(long, value_name = "FILE")]
    target: Option<PathBuf>,

    /// Put the encrypted database in the place of the source, which is kept as <source>.plaintext
    #[arg(long, conflicts_with = "target")]
    in_place: bool,

    /// Do not compare the copy with the source, nor read its pages again
    #[arg(long, conflicts_with = "retire_source")]
    skip_validation: bool,

    /// Remove the plaintext when the encrypted database is verified
    #[arg(long)]
    retire_source: bool,
}

impl Migrate {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        let settings = settings(config, None)?;
        let (bar, progress) = progress_bar("encrypting");
        let destination = match (self.in_place, self.target) {
            (true, _) => Destination::InPlace,
            (false, Some(target)) => Destination::File(target),
            (false, None) => Destination::File(data_dir::beside(&self.source, data_dir::ENCRYPTED)),
        };
        let migrated = block_on(async {
            stop_on_signals()?;
            let keys = keys::connect(&settings, Purpose::Inspect).await?;
            let source = self.source.clone();
            let migrate = migrate::Migrate {
                source: self.source,
                destination,
                engine: self.provider.engine(),
                tenant: self.tenant_id,
                validate: !self.skip_validation,
                retire_source: self.retire_source,
                control_dir: settings.control_data_dir.clone(),
            };
            let envelope = audited(keys.envelope, &settings, &source)?;
            let migrated = migrate.run(&envelope, Some(progress)).await;
            Ok(migrated.map_err(Box::new)?)
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
