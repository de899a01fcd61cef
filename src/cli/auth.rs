//! `nimbus auth`: the local admin token file.

use clap::Subcommand;

use super::{CliError, CommandOutcome, output};
use crate::server::token;

/// The local admin token file.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example: nimbus auth token")]
pub(super) enum Auth {
    /// Print the admin token
    #[command(
        after_help = "Example:\n  curl -H \"Authorization: Bearer $(nimbus auth token)\" \\\n      http://127.0.0.1:8080/api/tenants"
    )]
    Token,
    /// Replace the admin token in its file; a running server honours the new one at once
    #[command(after_help = "Example: nimbus auth rotate-admin")]
    RotateAdmin,
}

impl Auth {
    pub(super) fn run(self) -> Result<CommandOutcome, CliError> {
        let path = token::default_path()?;
        match self {
            Self::Token => output::answer(token::read(&path)?.expose())?,
            Self::RotateAdmin => {
                drop(token::rotate(&path)?);
                output::note(&format!(
                    "The admin token in {} was replaced; the old one is no longer accepted. `nimbus auth token` prints the new one.",
                    path.display()
                ));
            }
        }
        Ok(CommandOutcome::Done)
    }
}
