//! `nimbus encryption rotate-dek`: new data keys, through the running server when there is one.

use std::path::Path;

use clap::Args;

use super::super::remote::Remote;
use super::super::{CliError, CommandOutcome, block_on, output, settings};
use super::{progress_bar, stop_on_signals};
use crate::config::keys::{self, Purpose};
use crate::data_dir::protected_by;
use crate::encryption::rotate_dek::{self, Place, Request, Rotated};
use crate::process::DataDirLock;

/// Give a file, or all of them, a new data key: every page is encrypted anew
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nimbus encryption rotate-dek --provider sqlite --tenant-id demo \\
      --path data/demo.sqlite3
  nimbus encryption rotate-dek --path data --all

Goes through the running server when there is one; it goes on serving meanwhile.
It needs room for a second copy of the file. One that was cut short is settled
by the next opening, or by running it again.")]
pub(super) struct RotateDek {
    #[command(flatten)]
    request: Request,
}

impl RotateDek {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        let settings = settings(config, None)?;
        let mut request = self.request;
        request.path = protected_by(&request.path).unwrap_or(request.path);
        request.check_path().map_err(Box::new)?;
        let (bar, progress) = progress_bar("encrypting anew");
        let rotated = match Remote::on(request.dir())? {
            Some(server) => {
                // The server has a directory of its own: paths are sent whole.
                request.path = std::path::absolute(&request.path)?;
                server.operate("/api/admin/encryption/rotate-dek", &request, &progress)
            }
            None => {
                let _lock = DataDirLock::acquire(request.dir())?;
                block_on(async {
                    stop_on_signals()?;
                    let envelope = keys::connect(&settings, Purpose::Inspect).await?.envelope;
                    let place = Place {
                        data_dir: &settings.data_dir,
                        control_dir: &settings.control_data_dir,
                    };
                    let rotated = rotate_dek::offline(&envelope, &request, &place, progress).await;
                    Ok(rotated.map_err(Box::new)?)
                })
            }
        };
        bar.finish_and_clear();
        let rotated: Rotated = rotated?;
        for one in &rotated.rotated {
            output::answer(&format!("{}: {} has a new data key", one.path, one.subject))?;
        }
        for failure in &rotated.failed {
            output::note(&format!("{}: {}", failure.path, failure.error));
        }
        output::note(COPIES);
        Ok(match rotated.failed.is_empty() {
            true => CommandOutcome::Done,
            false => CommandOutcome::Failed,
        })
    }
}

const COPIES: &str = "Backups and copies made before are under the old data keys, and open with their own manifests as before.";
