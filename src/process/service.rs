//! What a service manager gives a server and wants to hear from it: sockets that listen already, and word when it is ready.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;

use listenfd::ListenFd;

/// The socket that the service manager listens on for this process (`LISTEN_FDS`), when it does; ready for an async runtime.
///
/// # Errors
///
/// What was handed over is no TCP socket that listens.
pub fn inherited_listener() -> io::Result<Option<TcpListener>> {
    let Some(listener) = ListenFd::from_env().take_tcp_listener(0)? else {
        return Ok(None);
    };
    listener.set_nonblocking(true)?;
    Ok(Some(listener))
}

/// Tells the service manager, if there is one that listens (`NOTIFY_SOCKET`), what became of this process: `READY=1`, `STOPPING=1`.
pub fn notify(state: &str) {
    let name = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty());
    let Some(name) = name else {
        return;
    };
    if let Err(error) = send(&name, state) {
        tracing::warn!(%error, "the service manager cannot be told {state}");
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
