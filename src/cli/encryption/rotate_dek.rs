//! `nimbus encryption rotate-dek`: new data keys.

use std::path::{Path, PathBuf};

use clap::Args;
use nimbus_manifests::TenantId;

use super::super::remote::Remote;
use super::super::{CliError, CommandOutcome, block_on, output, settings};
use super::audited::{offline, opened};
use super::{EncryptionError, Provider, progress_bar, protected, stop_on_signals};
use crate::config::Settings;
use crate::config::keys::{self, Purpose};
use crate::control::Control;
use crate::data_dir::parent;
use crate::encryption::rotate_dek::{Request, Rotated, rotate_dek};
use crate::encryption::{OperationError, protected_files};
use crate::envelope::{Envelope, manifest_path};
use crate::error_chain::error_chain;
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
    /// A protected file or its manifest; with --all, a data directory
    #[arg(long, value_name = "PATH")]
    path: PathBuf,

    /// Every file in the directory, and the control file
    #[arg(long, conflicts_with_all = ["provider", "tenant_id"])]
    all: bool,

    /// What kind of database it is [default: what its manifest says]
    #[arg(long, value_enum)]
    provider: Option<Provider>,

    /// Whose it is; only the control file needs none
    #[arg(long, value_name = "TENANT")]
    tenant_id: Option<TenantId>,
}

impl RotateDek {
    pub(super) fn run(mut self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        let settings = settings(config, None)?;
        self.path = protected(self.path);
        let path = self.path.clone();
        match (self.all, path.is_dir()) {
            (false, true) => return Err(EncryptionError::Directory { path }.into()),
            (true, false) => return Err(EncryptionError::NoDirectory { path }.into()),
            _ => {}
        }
        let dir = if self.all {
            &*self.path
        } else {
            parent(&self.path)
        };
        let Some(server) = Remote::on(dir)? else {
            let _lock = DataDirLock::acquire(dir)?;
            return block_on(self.here(&settings));
        };
        // The server has a directory of its own: paths are sent whole.
        let request = Request {
            path: std::path::absolute(&self.path)?,
            all: self.all,
            provider: self.provider.map(Provider::engine),
            tenant_id: self.tenant_id.as_ref().map(TenantId::to_string),
        };
        let (bar, progress) = progress_bar("encrypting anew");
        let rotated = server.operate("/api/admin/encryption/rotate-dek", &request, &progress);
        bar.finish_and_clear();
        let rotated: Rotated = rotated?;
        for one in &rotated.rotated {
            output::answer(&format!("{}: {} has a new data key", one.path, one.subject))?;
        }
        for failure in &rotated.failed {
            output::note(&format!("{}: {}", failure.path, failure.error));
        }
        output::note(COPIES);
        Ok(if rotated.failed.is_empty() {
            CommandOutcome::Done
        } else {
            CommandOutcome::Failed
        })
    }

    async fn here(self, settings: &Settings) -> Result<CommandOutcome, CliError> {
        stop_on_signals()?;
        let envelope = keys::connect(settings, Purpose::Inspect).await?.envelope;
        let control = Control::path_in(&settings.control_data_dir);
        let dir = if self.all {
            &*self.path
        } else {
            parent(&self.path)
        };
        // A copy elsewhere is none of this deployment's.
        let ours = dir.canonicalize().ok() == settings.data_dir.canonicalize().ok();
        let files = if self.all {
            let control_dir = ours.then_some(&*settings.control_data_dir);
            protected_files(&self.path, control_dir).map_err(|(path, source)| {
                Box::new(OperationError::Io {
                    action: "read",
                    path,
                    source,
                })
            })?
        } else {
            vec![self.path.clone()]
        };
        let is_control = |path: &PathBuf| path.canonicalize().ok() == control.canonicalize().ok();
        let (own, tenants): (Vec<_>, Vec<_>) = files.into_iter().partition(is_control);
        let mut outcome = CommandOutcome::Done;
        if !tenants.is_empty() {
            // The control file keeps the copies of the tenants' manifests; its own turn comes when it is closed.
            let mut core = envelope.clone();
            if ours && manifest_path(&control).exists() {
                core = opened(core, settings).await?.envelope;
            } else if ours {
                core = offline(core, settings);
            }
            for path in tenants {
                outcome = self.rotate(&core, &path, outcome).await?;
            }
        }
        let envelope = if ours {
            offline(envelope, settings)
        } else {
            envelope
        };
        for path in own {
            outcome = self.rotate(&envelope, &path, outcome).await?;
        }
        output::note(COPIES);
        Ok(outcome)
    }

    /// One file. With --all, a failure is said and does not keep the others.
    async fn rotate(
        &self,
        envelope: &Envelope,
        path: &Path,
        outcome: CommandOutcome,
    ) -> Result<CommandOutcome, CliError> {
        let owner = if self.all {
            owner(path)
        } else {
            self.tenant_id.clone()
        };
        let engine = self.provider.map(Provider::engine);
        let (bar, progress) = progress_bar("encrypting anew");
        let rotated = rotate_dek(envelope, path, engine, owner.as_ref(), progress).await;
        bar.finish_and_clear();
        match rotated {
            Ok(subject) => {
                output::answer(&format!("{}: {subject} has a new data key", path.display()))?;
                Ok(outcome)
            }
            Err(error) if self.all => {
                output::note(&format!("{}: {}", path.display(), error_chain(&error)));
                Ok(CommandOutcome::Failed)
            }
            Err(error) => Err(Box::new(error).into()),
        }
    }
}

const COPIES: &str = "Backups and copies made before are under the old data keys, and open with their own manifests as before.";

/// Whose a file is by its manifest: with --all, everybody's turn comes.
fn owner(path: &Path) -> Option<TenantId> {
    let sealed = crate::envelope::read_manifest(&manifest_path(path)).ok()??;
    sealed.claims().subject().tenant().cloned()
}
