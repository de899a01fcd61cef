//! The running server, asked by the command line: found by the lock file, authorised by the token file.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use ureq::http::Method;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector as _, TcpConnector};
use zeroize::Zeroizing;

use super::CliError;
use super::pinned::Pinned;
use crate::process::{LockError, RunningServer, running_server};
use crate::server::token;
use crate::sqlcipher::Progress;

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
    /// It began what it was asked, and failed.
    #[error("the server at {address} could not do it: {message}")]
    Operation {
        /// Where it listens.
        address: SocketAddr,
        /// What it said.
        message: String,
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

/// A server that runs on a data directory.
pub(super) struct Remote {
    pid: u32,
    address: SocketAddr,
    /// Its certificate's fingerprint, when it speaks TLS.
    certificate: Option<String>,
}

impl Remote {
    /// The server that runs on `data_dir`; `None` when none does.
    ///
    /// A process that has the directory and does not listen (yet) is an error: what it does meanwhile must not be disturbed.
    pub(super) fn on(data_dir: &Path) -> Result<Option<Self>, CliError> {
        match running_server(data_dir)? {
            None => Ok(None),
            Some(RunningServer {
                pid,
                address: Some(address),
                certificate,
            }) => Ok(Some(Self {
                pid,
                address,
                certificate,
            })),
            Some(holder) => Err(LockError::Busy {
                dir: data_dir.to_owned(),
                holder: Some(holder),
            }
            .into()),
        }
    }

    /// One request with the admin token of its file, and the answer.
    pub(super) fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        patience: Duration,
    ) -> Result<T, CliError> {
        self.send(method, path, &[], patience)
    }

    /// As [`ask`](Self::ask), with a body.
    pub(super) fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        request: &impl Serialize,
        patience: Duration,
    ) -> Result<T, CliError> {
        let body = serde_json::to_vec(request).map_err(std::io::Error::from)?;
        self.send(Method::POST, path, &body, patience)
    }

    /// Begins an operation of the server, watches it, and answers what came of it.
    pub(super) fn operate<T: DeserializeOwned>(
        &self,
        path: &str,
        request: &impl Serialize,
        progress: &Progress,
    ) -> Result<T, CliError> {
        #[derive(Deserialize)]
        struct Begun {
            operation: String,
        }
        #[derive(Deserialize)]
        struct Operation<T> {
            state: String,
            done: u64,
            total: u64,
            result: Option<T>,
            error: Option<String>,
        }
        let body = serde_json::to_vec(request).map_err(std::io::Error::from)?;
        let begun: Begun = self.send(Method::POST, path, &body, PATIENCE)?;
        let path = format!("/api/admin/operations/{}", begun.operation);
        loop {
            let now: Operation<T> = self.ask(Method::GET, &path, PATIENCE)?;
            // The operation is the server's: it goes on when this command is stopped.
            let _go_on = progress(now.done, now.total);
            if let Some(result) = now.result {
                return Ok(result);
            }
            if now.state != "running" {
                return Err(RemoteError::Operation {
                    address: self.address,
                    message: now.error.unwrap_or(now.state),
                }
                .into());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// One request with a body, and the answer.
    pub(super) fn send_json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        request: &impl Serialize,
        patience: Duration,
    ) -> Result<T, CliError> {
        let body = serde_json::to_vec(request).map_err(std::io::Error::from)?;
        self.send(method, path, &body, patience)
    }

    fn scheme(&self) -> &'static str {
        match self.certificate {
            Some(_) => "https",
            None => "http",
        }
    }

    fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &[u8],
        patience: Duration,
    ) -> Result<T, CliError> {
        let Self { pid, address, .. } = *self;
        let unreachable = |source| RemoteError::Unreachable {
            address,
            pid,
            source: Box::new(source),
        };
        let token = token::read(&token::default_path()?)?;
        let bearer = Zeroizing::new(format!("Bearer {}", token.expose()));
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(patience))
            .build();
        let pinned = Pinned {
            certificate: self.certificate.clone(),
        };
        let connector = TcpConnector::default().chain(pinned);
        let agent = ureq::Agent::with_parts(config, connector, DefaultResolver::default());
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}://{address}{path}", self.scheme()))
            .header("authorization", bearer.as_str())
            .header("content-type", "application/json")
            .body(body)
            .map_err(|error| unreachable(error.into()))?;
        let mut response = agent.run(request).map_err(unreachable)?;
        let status = response.status();
        let body = response.body_mut().with_config().limit(MAX_ANSWER_BYTES);
        if status.is_success() {
            return Ok(body.read_json().map_err(unreachable)?);
        }
        let body: serde_json::Value = body.read_json().map_err(unreachable)?;
        let message = body
            .pointer("/error/message")
            .and_then(|message| message.as_str());
        Err(RemoteError::Refused {
            address,
            status: status.as_u16(),
            message: message.unwrap_or("(no message)").to_owned(),
        }
        .into())
    }
}

/// How long a request may take that only begins something or asks after it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two questions how far an operation has come.
const PAUSE: Duration = Duration::from_millis(100);
/// The status of a hundred thousand tenants.
const MAX_ANSWER_BYTES: u64 = 256 << 20;
