//! The socket by which commands of this machine reach a running server.
//!
//! It lies in a private directory of the server's user, never in the data directory, which is
//! untrusted storage. A client sends the admin token only to a process of a user who can read the
//! token's file anyway.
#![expect(
    clippy::disallowed_methods,
    reason = "the socket's directory is none of SQLite's files"
)]

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::{Errno, FdFlags};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketType};

use super::LockId;

/// Why the socket cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlSocketError {
    /// Nobody listens there.
    #[error("no server listens on {}", .path.display())]
    Absent {
        /// The socket.
        path: PathBuf,
    },
    /// Others could have put something there.
    #[error("{} is not private to the user of the admin token, so nothing is sent through it; find out who made it, then remove it and restart the server", .path.display())]
    NotPrivate {
        /// The directory, or the socket in it.
        path: PathBuf,
    },
    /// Another user's process listens.
    #[error("user {uid} listens on {} and not the user of the admin token, so nothing is sent there; stop that process, then restart the server", .path.display())]
    Foreign {
        /// The socket.
        path: PathBuf,
        /// Who listens.
        uid: u32,
    },
    /// Somebody listens, and takes no connection.
    #[error("the connection at {} is not accepted within {} s", .path.display(), ANSWERS_WITHIN.as_secs())]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The directory, or the socket in it.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Where the server that holds one lock takes commands.
#[derive(Debug, Clone)]
pub struct ControlSocket {
    dir: PathBuf,
    name: String,
    /// The owner of the admin token.
    owner: u32,
}

impl ControlSocket {
    /// The socket in `dir` of whoever holds `lock`, for a token that belongs to `owner`.
    #[must_use]
    pub fn new(dir: PathBuf, lock: LockId, owner: u32) -> Self {
        let name = lock.to_string();
        Self { dir, name, owner }
    }

    /// Its path, for messages.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.join(&self.name)
    }

    /// Listens. Only the holder of the lock may do so: it removes what a killed server left.
    ///
    /// # Errors
    ///
    /// [`ControlSocketError`].
    pub fn listen(&self) -> Result<ControlListener, ControlSocketError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(|source| self.failed("make", &self.dir, source))?;
        let dir = self.open_dir()?;
        let path = self.path();
        match rustix::fs::unlinkat(&dir, &self.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(self.failed("remove", &path, errno.into())),
        }
        let socket = UnixListener::bind(self.address(&dir))
            .and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
            .map_err(|source| self.failed("listen on", &path, source))?;
        let listener = ControlListener {
            socket,
            place: Place {
                dir,
                name: self.name.clone(),
            },
        };
        // The directory alone keeps others out until then.
        rustix::fs::chmodat(
            &listener.place.dir,
            &self.name,
            Mode::RUSR | Mode::WUSR,
            AtFlags::empty(),
        )
        .map_err(|errno| self.failed("set the mode of", &path, errno.into()))?;
        Ok(listener)
    }

    /// A connection to a server that may be sent the admin token.
    ///
    /// # Errors
    ///
    /// [`ControlSocketError::Absent`] when nobody listens.
    pub fn connect(&self) -> Result<UnixStream, ControlSocketError> {
        let path = self.path();
        let dir = self.open_dir()?;
        let about = rustix::fs::statat(&dir, &self.name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| self.failed("look at", &path, errno.into()))?;
        if FileType::from_raw_mode(about.st_mode) != FileType::Socket || !self.is_private(&about) {
            return Err(ControlSocketError::NotPrivate { path });
        }
        let stream = connect(&self.address(&dir)).map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => ControlSocketError::Silent { path: path.clone() },
            _ => self.failed("connect to", &path, source),
        })?;
        match listening_user(&stream) {
            Ok(Some(uid)) if !self.trusts(uid) => Err(ControlSocketError::Foreign { path, uid }),
            Ok(_trusted) => Ok(stream),
            Err(source) => Err(self.failed("ask who listens on", &path, source)),
        }
    }

    /// The directory, opened, so that what was checked is what is used.
    fn open_dir(&self) -> Result<OwnedFd, ControlSocketError> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let not_private = || ControlSocketError::NotPrivate {
            path: self.dir.clone(),
        };
        let failed = |errno: Errno| match errno {
            // A symbolic link, or a file.
            Errno::LOOP | Errno::NOTDIR => not_private(),
            errno => self.failed("open", &self.dir, errno.into()),
        };
        let dir = rustix::fs::open(&self.dir, flags, Mode::empty()).map_err(failed)?;
        let about = rustix::fs::fstat(&dir).map_err(failed)?;
        self.is_private(&about)
            .then_some(dir)
            .ok_or_else(not_private)
    }

    fn is_private(&self, about: &Stat) -> bool {
        self.trusts(about.st_uid) && about.st_mode & 0o077 == 0
    }

    /// Whether this user can read the admin token anyway.
    fn trusts(&self, uid: u32) -> bool {
        uid == self.owner || uid == 0
    }

    /// The socket's address. A path of any length is reached through the directory's descriptor;
    /// addresses hold some hundred bytes.
    fn address(&self, dir: &OwnedFd) -> PathBuf {
        if cfg!(target_os = "linux") {
            Path::new("/proc/self/fd")
                .join(dir.as_raw_fd().to_string())
                .join(&self.name)
        } else {
            self.path()
        }
    }

    fn failed(&self, action: &'static str, path: &Path, source: io::Error) -> ControlSocketError {
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ControlSocketError::Absent { path: self.path() }
            }
            _ => ControlSocketError::Io {
                action,
                path: path.to_owned(),
                source,
            },
        }
    }
}

/// Connects to the socket at `address`. A process that takes no connections would be waited for
/// without end once its queue is full.
fn connect(address: &Path) -> io::Result<UnixStream> {
    let stream = net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    rustix::io::fcntl_setfd(&stream, FdFlags::CLOEXEC)?;
    set_socket_timeout(&stream, Timeout::Send, Some(ANSWERS_WITHIN))?;
    net::connect(&stream, &SocketAddrUnix::new(address)?)?;
    set_socket_timeout(&stream, Timeout::Send, None)?;
    Ok(stream.into())
}

/// Within this time a running server takes a connection of this machine, and answers what needs no
/// work.
pub const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// The user of the process that listens; `None` where only the directory vouches for it.
#[cfg(target_os = "linux")]
fn listening_user(stream: &UnixStream) -> io::Result<Option<u32>> {
    let peer = rustix::net::sockopt::socket_peercred(stream)?;
    Ok(Some(peer.uid.as_raw()))
}

#[cfg(not(target_os = "linux"))]
fn listening_user(_: &UnixStream) -> io::Result<Option<u32>> {
    Ok(None)
}

/// A socket that listens, and whose name is gone before it stops to.
#[derive(Debug)]
pub struct ControlListener {
    socket: UnixListener,
    place: Place,
}

impl ControlListener {
    /// The socket, and what removes its name when dropped.
    pub(crate) fn into_parts(self) -> (UnixListener, Place) {
        (self.socket, self.place)
    }
}

/// The name of a socket, removed when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    dir: OwnedFd,
    name: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        // Best effort: a socket that is left refuses connections, and the next server removes it.
        let _left = rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty());
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;
    use crate::process::DataDirLock;

    struct Case {
        root: tempfile::TempDir,
        socket: ControlSocket,
        _lock: DataDirLock,
    }

    fn case() -> Case {
        let root = tempfile::tempdir().unwrap();
        let lock = DataDirLock::acquire(root.path()).unwrap();
        let owner = rustix::process::geteuid().as_raw();
        let dir = root.path().join("nimbus/run");
        Case {
            socket: ControlSocket::new(dir, lock.id(), owner),
            root,
            _lock: lock,
        }
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn absent(result: Result<UnixStream, ControlSocketError>) -> bool {
        matches!(result, Err(ControlSocketError::Absent { .. }))
    }

    fn not_private<T>(result: Result<T, ControlSocketError>) -> bool {
        matches!(result, Err(ControlSocketError::NotPrivate { .. }))
    }

    #[test]
    fn is_reached_while_it_listens_and_gone_afterwards() {
        let Case { socket, .. } = case();
        assert!(absent(socket.connect()));
        let listener = socket.listen().unwrap();
        drop(socket.connect().unwrap());
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&socket.dir), 0o700);
        assert_eq!(mode(&socket.path()), 0o600);
        drop(listener);
        assert!(!socket.path().exists());
        assert!(absent(socket.connect()));
    }

    #[test]
    fn what_a_killed_server_left_is_nobody_and_is_replaced() {
        let Case { socket, .. } = case();
        let (listening, place) = socket.listen().unwrap().into_parts();
        std::mem::forget(place);
        drop(listening);
        assert!(socket.path().exists());
        assert!(absent(socket.connect()));
        let _listener = socket.listen().unwrap();
        drop(socket.connect().unwrap());
    }

    #[test]
    fn a_path_longer_than_an_address_is_reached() {
        let mut case = case();
        case.socket.dir = case.root.path().join("x".repeat(200)).join("run");
        let _listener = case.socket.listen().unwrap();
        drop(case.socket.connect().unwrap());
    }

    #[test]
    fn a_directory_or_socket_that_others_may_write_is_refused() {
        let Case { socket, .. } = case();
        let _listener = socket.listen().unwrap();
        for mode in [0o701, 0o710, 0o770, 0o777] {
            set_mode(&socket.dir, mode);
            assert!(not_private(socket.connect()), "{mode:o}");
            assert!(not_private(socket.listen()), "{mode:o}");
        }
        set_mode(&socket.dir, 0o700);
        set_mode(&socket.path(), 0o622);
        assert!(not_private(socket.connect()));
        set_mode(&socket.path(), 0o600);
        drop(socket.connect().unwrap());
    }

    #[test]
    fn a_link_is_not_followed() {
        let mut case = case();
        let _listener = case.socket.listen().unwrap();
        let real = case.socket.clone();
        case.socket.dir = case.root.path().join("link");
        symlink(&real.dir, &case.socket.dir).unwrap();
        assert!(not_private(case.socket.connect()));
        assert!(not_private(case.socket.listen()));
        // Nor where the link has the socket's name.
        let moved = real.dir.join("moved");
        fs::rename(real.path(), &moved).unwrap();
        symlink(&moved, real.path()).unwrap();
        assert!(not_private(real.connect()));
    }

    #[test]
    fn trusts_the_owner_of_the_token_and_root_alone() {
        let mut case = case();
        case.socket.owner = 1234;
        for (uid, trusted) in [(1234, true), (0, true), (65534, false), (1235, false)] {
            assert_eq!(case.socket.trusts(uid), trusted, "{uid}");
        }
    }

    #[test]
    fn two_data_directories_have_two_sockets() {
        let (one, other) = (case(), case());
        assert_ne!(one.socket.name, other.socket.name);
    }
}
