//! The control socket as a listener: the same routes and credentials as over TCP, for commands of
//! this machine.

use std::io;

use tokio::net::{UnixListener, UnixStream};

use super::connections::{Accepts, Listener};
use super::pace::Patience;
use crate::process::{ControlListener, Place};

/// A control socket that accepts connections. Its name goes before it stops to.
#[derive(Debug)]
pub struct Local {
    // Dropped in this order: nobody finds a socket that refuses.
    _place: Place,
    socket: UnixListener,
}

impl Accepts for Local {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        let (stream, _peer) = self.socket.accept().await?;
        Ok(stream)
    }
}

/// Where commands of this machine come from. Their connections do not compete with those of
/// clients.
///
/// # Errors
///
/// What the operating system said.
pub fn local(listener: ControlListener) -> io::Result<Listener<Local>> {
    let (socket, place) = listener.into_parts();
    Ok(Listener {
        socket: Local {
            _place: place,
            socket: UnixListener::from_std(socket)?,
        },
        tls: None,
        most: MOST,
        patience: Patience::default(),
    })
}

/// How many commands may be connected at a time.
const MOST: u32 = 64;
