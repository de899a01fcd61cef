//! The running server, asked by the command line: found by the lock it holds, reached through its
//! control socket, authorised by the token file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::Method;
use ureq::unversioned::resolver::DefaultResolver;
use zeroize::Zeroizing;

use super::CliError;
use super::local::{Local, Silence, answers};
use crate::process::{ANSWERS_WITHIN, ControlSocket, ControlSocketError, Holder, holder, process};
use crate::runtime::Progress;
use crate::server::{Begun, OperationReport, token};

/// Why a running server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// Somebody has the data directory, and takes no commands.
    #[error(
        "the data directory {} is in use by {}, and nobody takes commands at {}: a server that starts or stops, another command, or a server of another user or home directory; \
         wait for it, or run the command as the server's user, with the same HOME and XDG_DATA_HOME",
        .dir.display(), process(*.pid), .socket.display()
    )]
    NoCommands {
        /// The data directory.
        dir: PathBuf,
        /// Who has it, when the lock file says so.
        pid: Option<u32>,
        /// Where a server of this user would take commands.
        socket: PathBuf,
    },
    /// It does not answer.
    #[error(
        "the server ({}) does not answer; see its log, or stop it and run the command again", process(*.pid)
    )]
    Unreachable {
        /// Its process id, when the lock file says so.
        pid: Option<u32>,
        /// What the connection said.
        source: Box<ureq::Error>,
    },
    /// It is there, and does nothing.
    #[error(
        "the server ({}) does not answer: it takes a connection and says nothing for {} s, as a process that is stopped or hangs does. \
         `ps -o stat= -p {}` says T for one that is stopped, which `kill -CONT {}` lets go on; otherwise see its log and restart it, \
         then run the command again",
        process(*.pid), ANSWERS_WITHIN.as_secs(), shown(*.pid), shown(*.pid)
    )]
    Silent {
        /// Its process id, when the lock file says so.
        pid: Option<u32>,
    },
    /// It began what it was asked, and failed.
    #[error("the server could not do it: {message}")]
    Operation {
        /// What it said.
        message: String,
    },
    /// It refused.
    #[error("the server refused: {status} {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its message.
        message: String,
    },
}

/// A server that runs on a data directory.
pub(super) struct Remote {
    pid: Option<u32>,
    socket: ControlSocket,
}

impl Remote {
    /// The server that runs on `data_dir`; `None` when none does.
    ///
    /// A process that has the directory and takes no commands (yet) is an error: what it does
    /// meanwhile must not be disturbed.
    pub(super) fn on(data_dir: &Path) -> Result<Option<Self>, CliError> {
        let Some(Holder { pid, lock }) = holder(data_dir)? else {
            return Ok(None);
        };
        let dir = token::control_dir()?;
        let no_commands = |socket| RemoteError::NoCommands {
            dir: data_dir.to_owned(),
            pid,
            socket,
        };
        let Some(owner) = token::owner(&token::default_path()?)? else {
            return Err(no_commands(dir).into());
        };
        let socket = ControlSocket::new(dir, lock, owner);
        match answers(&socket) {
            Ok(true) => Ok(Some(Self { pid, socket })),
            Ok(false) => Err(RemoteError::Silent { pid }.into()),
            Err(ControlSocketError::Absent { path }) => Err(no_commands(path).into()),
            Err(error) => Err(error.into()),
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
        let body = serde_json::to_vec(request).map_err(std::io::Error::from)?;
        let begun: Begun = self.send(Method::POST, path, &body, PATIENCE)?;
        let path = format!("/api/admin/operations/{}", begun.operation);
        loop {
            let now: OperationReport = self.ask(Method::GET, &path, PATIENCE)?;
            // The operation is the server's: it goes on when this command is stopped.
            let _go_on = progress(now.done, now.total);
            if now.is_running() {
                std::thread::sleep(PAUSE);
                continue;
            }
            if let Some(message) = now.error {
                return Err(RemoteError::Operation { message }.into());
            }
            let result = now.result.unwrap_or_default();
            return Ok(serde_json::from_value(result).map_err(std::io::Error::from)?);
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

    fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &[u8],
        patience: Duration,
    ) -> Result<T, CliError> {
        let unreachable = |source| RemoteError::Unreachable {
            pid: self.pid,
            source: Box::new(source),
        };
        let token = token::read(&token::default_path()?)?;
        let bearer = Zeroizing::new(format!("Bearer {}", token.expose()));
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(patience))
            .build();
        let connector = Local(self.socket.clone());
        let agent = ureq::Agent::with_parts(config, connector, DefaultResolver::default());
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("http://{HOST}{path}"))
            .header("authorization", bearer.as_str())
            .header("content-type", "application/json")
            .body(body)
            .map_err(|error| unreachable(error.into()))?;
        let mut response = agent.run(request).map_err(|error| match error {
            ureq::Error::Other(silent) if silent.is::<Silence>() => {
                RemoteError::Silent { pid: self.pid }
            }
            error => unreachable(error),
        })?;
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
            status: status.as_u16(),
            message: message.unwrap_or("(no message)").to_owned(),
        }
        .into())
    }
}

/// The process in a command to be typed.
fn shown(pid: Option<u32>) -> String {
    pid.map_or("<its process id>".to_owned(), |pid| pid.to_string())
}

/// What requests name as their host. An address needs no resolver; nothing connects to it.
const HOST: &str = "127.0.0.1";
/// How long a request may take that only begins something or asks after it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two questions how far an operation has come.
const PAUSE: Duration = Duration::from_millis(100);
/// The status of a hundred thousand tenants.
const MAX_ANSWER_BYTES: u64 = 256 << 20;
