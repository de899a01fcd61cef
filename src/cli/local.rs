//! HTTP over the control socket of this machine's server.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};

use crate::process::{ANSWERS_WITHIN, ControlSocket, ControlSocketError};

/// Whether the server answers at all. It is asked for nothing that takes work, and told nothing.
pub(super) fn answers(socket: &ControlSocket) -> Result<bool, ControlSocketError> {
    let mut stream = match socket.connect() {
        Err(ControlSocketError::Silent { .. }) => return Ok(false),
        connected => connected?,
    };
    let mut ask = || {
        stream.set_read_timeout(Some(ANSWERS_WITHIN))?;
        stream.set_write_timeout(Some(ANSWERS_WITHIN))?;
        stream
            .write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        // Whatever it says, it is not silent. One that ends just now shows in the request itself.
        stream.read(&mut [0]).map(drop)
    };
    let asked: io::Result<()> = ask();
    Ok(!asked.is_err_and(|error| is_timeout(&error)))
}

/// The server stopped answering while a command waited.
#[derive(Debug, thiserror::Error)]
#[error("the server no longer answers")]
pub(super) struct Silence;

/// Connects to one server, whatever address a request names.
#[derive(Debug)]
pub(super) struct Local(pub(super) ControlSocket);

impl Connector for Local {
    type Out = Connection;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _chained: Option<()>,
    ) -> Result<Option<Connection>, ureq::Error> {
        let stream = self.0.connect().map_err(|error| {
            ureq::Error::Other(match error {
                ControlSocketError::Silent { .. } => Silence.into(),
                error => error.into(),
            })
        })?;
        let (input, output) = (
            details.config.input_buffer_size(),
            details.config.output_buffer_size(),
        );
        let buffers = LazyBuffers::new(input, output);
        let socket = self.0.clone();
        Ok(Some(Connection {
            stream,
            buffers,
            socket,
        }))
    }
}

/// A connection to it.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    buffers: LazyBuffers,
    /// Asked whether the server still answers while an answer takes long.
    socket: ControlSocket,
}

impl Transport for Connection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.set_write_timeout(left(timeout))?;
        let output = &self.buffers.output()[..amount];
        self.stream
            .write_all(output)
            .map_err(|error| failed(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let until = left(timeout).map(|left| Instant::now() + left);
        let input = self.buffers.input_append_buf();
        let amount = loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let pause = left.map_or(ASKED_EACH, |left| left.min(ASKED_EACH));
            // No time at all would mean no limit.
            self.stream
                .set_read_timeout(Some(pause.max(Duration::from_millis(1))))?;
            match self.stream.read(input) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) && left.is_none_or(|left| left > ASKED_EACH) => {
                    if let Ok(false) = answers(&self.socket) {
                        return Err(ureq::Error::Other(Silence.into()));
                    }
                }
                Err(error) => return Err(failed(error, timeout)),
                Ok(amount) => break amount,
            }
        };
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        // Each request has a connection of its own.
        false
    }
}

/// The time that is left; none at all would mean no limit.
fn left(timeout: NextTimeout) -> Option<Duration> {
    timeout.not_zero().map(|left| *left)
}

fn failed(error: io::Error, timeout: NextTimeout) -> ureq::Error {
    match is_timeout(&error) {
        true => ureq::Error::Timeout(timeout.reason),
        false => error.into(),
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// How often a server is asked whether it still answers, while a command waits for it.
const ASKED_EACH: Duration = Duration::from_secs(5);
