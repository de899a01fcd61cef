//! `nimbus encryption recover`: from an age identity, when every other key is lost.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use nimbus_keyproviders::identity::RecoveryIdentities;

use super::super::{CliError, CommandOutcome, settings};
use super::EncryptionError;
use super::rotate_kek;
use crate::encryption::rotate_kek::Request;
use crate::process::DataDirLock;

/// Open files with a recovery identity, and wrap their keys by the provider of the settings
#[derive(Debug, Args)]
#[command(after_help = "\
Example, after the loss of the master key:
  nimbus encryption keygen \\
      --master-key-file ~/.local/share/nimbus/keys/master.key
  nimbus encryption recover --identity recovery.txt --path data --all

Stop the server first. The settings name the new key. The identity is the file
that age-keygen wrote; it is only read.")]
pub(super) struct Recover {
    /// The file with the line AGE-SECRET-KEY-1…
    #[arg(long, value_name = "FILE")]
    identity: PathBuf,

    /// A protected file or its manifest; with --all, a data directory
    #[arg(long, value_name = "PATH")]
    path: PathBuf,

    /// Every file in the directory, and the control file
    #[arg(long)]
    all: bool,
}

impl Recover {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        let settings = settings(config, None)?;
        let request = Request {
            path: self.path,
            all: self.all,
            ..Request::default()
        };
        let rotate = request.check()?;
        rotate.check_path()?;
        // First of all: with a server there, nothing else is worth asking for.
        drop(DataDirLock::acquire(rotate.dir())?);
        let identities = RecoveryIdentities::open(self.identity).map_err(EncryptionError::from)?;
        rotate_kek::offline(&settings, rotate, Some(Arc::new(identities)))
    }
}
