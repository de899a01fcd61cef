//! `nimbus token`: the admin token, through the running server when there is one.

use std::path::Path;
use std::time::Duration;

use clap::Subcommand;
use serde::de::IgnoredAny;
use ureq::http::Method;

use super::remote::Remote;
use super::{CliError, CommandOutcome, output, settings};
use crate::server::token;

/// The admin token of a running server.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example: nimbus token rotate")]
pub(super) enum Token {
    /// Replace the admin token, through the running server when there is one
    #[command(after_help = "Example: nimbus token rotate && nimbus auth token")]
    Rotate,
}

impl Token {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        let Self::Rotate = self;
        let data_dir = settings(config, None)?.data_dir;
        match Remote::on(&data_dir)? {
            Some(server) => {
                let _answer: IgnoredAny =
                    server.ask(Method::POST, "/api/admin/token/rotate", PATIENCE)?;
            }
            None => drop(token::rotate(&token::default_path()?)?),
        }
        output::note(&format!(
            "The admin token in {} was replaced; the old one is no longer accepted. `nimbus auth token` prints the new one.",
            token::default_path()?.display()
        ));
        Ok(CommandOutcome::Done)
    }
}

const PATIENCE: Duration = Duration::from_secs(30);
