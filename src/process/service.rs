//! What a service manager gives a server and wants to hear from it: sockets that listen already,
//! and word when it is ready.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixDatagram;

use listenfd::ListenFd;

/// What the service manager handed over is not one TCP socket that listens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InheritedError {
    /// It is a Unix socket, a datagram socket, or no socket.
    #[error("{ACCEPTED}; what the service manager handed over is something else")]
    NotTcp {
        /// What the operating system said.
        source: io::Error,
    },
    /// There are several.
    #[error("{ACCEPTED}; the service manager handed over {count} sockets")]
    Several {
        /// How many.
        count: usize,
    },
    /// It cannot be used.
    #[error("the socket that the service manager handed over cannot be listened on")]
    Unusable {
        /// What the operating system said.
        source: io::Error,
    },
}

const ACCEPTED: &str = "nimbus serves one TCP socket that listens: give the socket unit one line like `ListenStream=127.0.0.1:8080`, with a port and no path";

/// The socket that the service manager listens on for this process (`LISTEN_FDS`), when it does,
/// and its address; ready for an async runtime.
///
/// # Errors
///
/// [`InheritedError`].
pub fn inherited_listener() -> Result<Option<(TcpListener, SocketAddr)>, InheritedError> {
    let mut handed = ListenFd::from_env();
    if handed.len() > 1 {
        return Err(InheritedError::Several {
            count: handed.len(),
        });
    }
    let taken = handed.take_tcp_listener(0);
    let Some(listener) = taken.map_err(|source| InheritedError::NotTcp { source })? else {
        return Ok(None);
    };
    let address = listener
        .set_nonblocking(true)
        .and_then(|()| listener.local_addr());
    match address {
        Ok(address) => Ok(Some((listener, address))),
        Err(source) => Err(InheritedError::Unusable { source }),
    }
}

/// Tells the service manager, if there is one that listens (`NOTIFY_SOCKET`), what became of this
/// process: `READY=1`, `STOPPING=1`.
pub fn notify(state: &str) {
    let name = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty());
    let Some(name) = name else {
        return;
    };
    if let Err(error) = send(&name, state) {
        tracing::warn!(%error, "the service manager cannot be notified of {state}");
    }
}

fn send(name: &std::ffi::OsStr, state: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    #[cfg(target_os = "linux")]
    {
        use std::os::linux::net::SocketAddrExt as _;
        use std::os::unix::ffi::OsStrExt as _;
        // An abstract socket's name is written with `@` for its first byte, which is 0.
        if let Some(name) = name.as_bytes().strip_prefix(b"@") {
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            let _bytes = socket.send_to_addr(state.as_bytes(), &address)?;
            return Ok(());
        }
    }
    let _bytes = socket.send_to(state.as_bytes(), name)?;
    Ok(())
}
