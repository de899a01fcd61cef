//! `nimbus token`: the admin token, through the running server when there is one.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use clap::Subcommand;
use zeroize::Zeroizing;

use super::{CliError, Outcome, output, settings};
use crate::process::{RunningServer, running_server};
use crate::server::token;

/// The admin token of a running server.
#[derive(Debug, Subcommand)]
pub(super) enum Token {
    /// Replace the admin token, through the running server when there is one
    #[command(after_help = "Example: nimbus token rotate && nimbus auth token")]
    Rotate,
}

/// Why a running server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// It does not answer.
    #[error(
        "the server at {address} (process {pid}) does not answer; see its log, or stop it and run the command again"
    )]
    Unreachable {
        /// Where it listens.
        address: SocketAddr,
        /// Its process id.
        pid: u32,
        /// What the connection said.
        source: Box<ureq::Error>,
    },
    /// It refused.
    #[error("the server at {address} refused: {status} {message}")]
    Refused {
        /// Where it listens.
        address: SocketAddr,
        /// The HTTP status.
        status: u16,
        /// Its message.
        message: String,
    },
}

impl Token {
    pub(super) fn run(self, config: Option<&Path>) -> Result<Outcome, CliError> {
        let Self::Rotate = self;
        let settings = settings(config)?;
        let path = token::default_path()?;
        match running_server(&settings.data_dir)? {
            Some(RunningServer {
                pid,
                address: Some(address),
            }) => {
                let token = token::read(&path)?;
                let _answer = post(pid, address, "/api/admin/token/rotate", token.expose())?;
            }
            _ => drop(token::rotate(&path)?),
        }
        output::note(&format!(
            "The admin token in {} was replaced; the old one does not count any more. `nimbus auth token` prints the new one.",
            path.display()
        ));
        Ok(Outcome::Done)
    }
}

/// Asks the running server, with the admin token of its file.
pub(super) fn post(
    pid: u32,
    address: SocketAddr,
    path: &str,
    token: &str,
) -> Result<serde_json::Value, RemoteError> {
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .timeout_global(Some(PATIENCE))
        .build()
        .new_agent();
    let bearer = Zeroizing::new(format!("Bearer {token}"));
    let unreachable = |source| RemoteError::Unreachable {
        address,
        pid,
        source: Box::new(source),
    };
    let mut response = agent
        .post(format!("http://{address}{path}"))
        .header("authorization", bearer.as_str())
        .send_empty()
        .map_err(unreachable)?;
    let status = response.status();
    let body: serde_json::Value = response.body_mut().read_json().map_err(unreachable)?;
    if status.is_success() {
        return Ok(body);
    }
    let message = body
        .pointer("/error/message")
        .and_then(|message| message.as_str());
    Err(RemoteError::Refused {
        address,
        status: status.as_u16(),
        message: message.unwrap_or("(no message)").to_owned(),
    })
}

const PATIENCE: Duration = Duration::from_secs(30);
