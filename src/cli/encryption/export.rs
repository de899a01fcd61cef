//! `nimbus encryption export`: one encrypted database in plaintext.

use std::path::Path;

use clap::Args;

use super::super::{CliError, CommandOutcome, block_on, output, settings};
use super::audited::audited;
use super::{progress_bar, stop_on_signals};
use crate::config::keys::{self, Purpose};
use crate::data_dir::protected_by;
use crate::encryption::export::Export;

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
pub(super) struct ExportCommand {
    #[command(flatten)]
    export: Export,
}

impl ExportCommand {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        let settings = settings(config, None)?;
        let (bar, progress) = progress_bar("exporting");
        let mut export = self.export;
        export.source = protected_by(&export.source).unwrap_or(export.source);
        let target = export.target.clone();
        let subject = block_on(async {
            stop_on_signals()?;
            let keys = keys::connect(&settings, Purpose::Inspect).await?;
            let envelope = audited(keys.envelope, &settings, &export.source)?;
            let exported = export.run(&envelope, Some(progress)).await;
            Ok(exported.map_err(Box::new)?)
        })?;
        bar.finish_and_clear();
        output::note(&format!(
            "Wrote {subject} to {} in PLAINTEXT. Delete it when you are done.",
            target.display()
        ));
        Ok(CommandOutcome::Done)
    }
}
