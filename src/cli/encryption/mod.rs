//! `nimbus encryption`: one file a verb.

mod inspect;
mod keygen;

use std::path::Path;

use clap::{Args, Subcommand};

use super::{CliError, Outcome};

/// Look at, make, move and check what is encrypted.
#[derive(Debug, Args)]
pub(super) struct Encryption {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Read one manifest, without any key
    Inspect(inspect::Inspect),
    /// Make a new key file
    Keygen(keygen::Keygen),
}

/// What only these commands meet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncryptionError {
    /// A manifest cannot be read.
    #[error(transparent)]
    Inspect(#[from] inspect::InspectError),
    /// A key file cannot be made.
    #[error(transparent)]
    KeyFile(#[from] nimbus_keyproviders::KeyFileError),
}

impl Encryption {
    pub(super) fn run(self, _config: Option<&Path>) -> Result<Outcome, CliError> {
        match self.verb {
            Verb::Inspect(verb) => verb.run(),
            Verb::Keygen(verb) => verb.run(),
        }
    }
}
