//! `nimbus tenant`: one file a verb.

mod copy;
mod end;

use std::path::Path;

use clap::{Args, Subcommand};

use super::output::{self, Format};
use super::{CliError, CommandOutcome};

pub(super) use end::PlaceError;

/// Move tenants
#[derive(Debug, Args)]
#[command(after_help = "\
Example: nimbus tenant copy --tenant-id demo --from this --to postgres.json --unencrypted")]
pub(super) struct Tenant {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Copy a tenant to another backend, or to another deployment
    Copy(copy::Copy),
}

impl Tenant {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        output::init_log(Format::Text, output::COMMAND_LOG);
        match self.verb {
            Verb::Copy(verb) => verb.run(config),
        }
    }
}
