//! `nimbus backup`: one file a verb.

mod create;
mod list;
mod prune;
mod restore;
mod restore_tenant;
mod rewrap;
mod verify;

use std::path::Path;

use clap::{Args, Subcommand};

use super::output::{self, Format};
use super::{CliError, CommandOutcome};

/// Make, look at, prove and restore backups
#[derive(Debug, Args)]
#[command(after_help = "\
Example: nimbus backup create --to /mnt/backup/nimbus

R is a directory, or s3://bucket/prefix. The keys are those of the settings:
environment and --config, as for `nimbus start`.")]
pub(super) struct Backup {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a snapshot of everything, of a running or a stopped deployment
    Create(create::Create),
    /// List the snapshots of a repository
    List(list::List),
    /// Prove that a repository is whole and authentic
    Verify(verify::VerifyBackups),
    /// Restore a deployment into an empty directory, or one tenant beside others
    Restore(restore::RestoreBackup),
    /// Move the manifests in a repository to the current key
    Rewrap(rewrap::RewrapBackups),
    /// Remove the snapshots that no rule keeps
    Prune(prune::Prune),
}

impl Backup {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        output::init_log(Format::Text, output::COMMAND_LOG);
        match self.verb {
            Verb::Create(verb) => verb.run(config),
            Verb::List(verb) => verb.run(config),
            Verb::Verify(verb) => verb.run(config),
            Verb::Restore(verb) => verb.run(config),
            Verb::Rewrap(verb) => verb.run(config),
            Verb::Prune(verb) => verb.run(config),
        }
    }
}

/// So many bytes, for people.
fn shown(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}
