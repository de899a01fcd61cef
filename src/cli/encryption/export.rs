//! `nimbus encryption export`: one encrypted database in plaintext.

use std::path::{Path, PathBuf};

use clap::Args;
use nimbus_manifests::TenantId;

use super::super::{CliError, CommandOutcome, block_on, output, settings};
use super::audited::audited;
use super::{Provider, progress_bar, protected, stop_on_signals};
use crate::config::keys::{self, Purpose};
use crate::encryption::export;

/// Write an encrypted database out in plaintext, to a new file that only you can read
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nimbus encryption export --provider sqlite --tenant-id demo \\
      --source data/demo.sqlite3 --target out/demo.sqlite3
  nimbus encryption export --provider redb \\
      --source data/nimbus-control.db --target out/nimbus-control.db

A tenant may be exported while the server runs; the control file only when it
is stopped.")]
pub(super) struct Export {
    /// The encrypted database, or its manifest; they stand side by side
    #[arg(long, value_name = "FILE")]
    source: PathBuf,

    /// The new plaintext file; a missing directory is made
    #[arg(long, value_name = "FILE")]
    target: PathBuf,

    /// What kind of database it is
    #[arg(long, value_enum)]
    provider: Provider,

    /// Whose it is; only the control file needs none
    #[arg(long, value_name = "TENANT")]
    tenant_id: Option<TenantId>,
}

impl Export {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        let settings = settings(config, None)?;
        let (bar, progress) = progress_bar("exporting");
        let (source, target) = (protected(self.source), self.target.clone());
        let subject = block_on(async {
            stop_on_signals()?;
            let keys = keys::connect(&settings, Purpose::Inspect).await?;
            let envelope = audited(keys.envelope, &settings, &source)?;
            let export = export::Export {
                source,
                target: self.target,
                engine: self.provider.engine(),
                tenant: self.tenant_id,
            };
            let exported = export.run(&envelope, Some(progress)).await;
            Ok(exported.map_err(Box::new)?)
        })?;
        bar.finish_and_clear();
        output::note(&format!(
            "{} now holds {subject} in PLAINTEXT. Remove it when it has served.",
            target.display()
        ));
        Ok(CommandOutcome::Done)
    }
}
