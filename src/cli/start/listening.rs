//! What a server is reached by: its socket, TLS, and the socket for commands.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;

use super::{Start, StartError};
use crate::backup::{BackupError, Places};
use crate::cli::CliError;
use crate::config::{ProviderChoice, Settings};
use crate::error_chain::error_chain;
use crate::process::{
    ControlListener, ControlSocket, LockError, LockId, harden, holder, inherited_listener,
};
use crate::runtime::{self, Background, Kept, blocking, panic_point};
use crate::server::tls::Tls;
use crate::server::token::{self, AdminToken, TokenError};
use crate::server::{Listener, Local, local};
use crate::sqlcipher::check_library;
use crate::{clock, metrics};

/// Refuses a network address to a token that was never rotated, and to one that the first start
/// would make.
fn reject_first_token(host: IpAddr, token: Result<AdminToken, TokenError>) -> Result<(), CliError> {
    match token {
        Ok(token) if token.rotations() > 0 => Ok(()),
        Ok(_) | Err(TokenError::Missing { .. }) => {
            Err(StartError::TokenNeverRotated { host }.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// The socket to serve, and its address. Nothing was made yet: a port in use leaves no data
/// directory behind.
async fn listen(
    inherited: Option<(std::net::TcpListener, SocketAddr)>,
    address: SocketAddr,
    data_dir: &Path,
) -> Result<(TcpListener, SocketAddr), CliError> {
    let bind = |source| StartError::Bind { address, source };
    let socket = match inherited {
        Some((socket, _address)) => TcpListener::from_std(socket),
        None => TcpListener::bind(address).await,
    };
    let socket = match socket {
        Ok(socket) => socket,
        Err(source) => {
            // Most often it is the same server, started twice.
            let dir = data_dir.to_owned();
            let holder = blocking(move || holder(&dir)).await.ok().flatten();
            return Err(match holder {
                Some(holder) => LockError::Busy {
                    dir: data_dir.to_owned(),
                    pid: holder.pid,
                }
                .into(),
                None => bind(source).into(),
            });
        }
    };
    let address = socket.local_addr().map_err(bind)?;
    Ok((socket, address))
}

/// What a server is reached by.
pub(super) struct Door {
    pub(super) socket: TcpListener,
    pub(super) address: SocketAddr,
    pub(super) tls: Option<Arc<Tls>>,
    /// The file of the admin token.
    pub(super) token: PathBuf,
}

/// Where commands of this machine are taken; makes the admin token where there is none. A server
/// that cannot take any serves its clients all the same.
pub(super) async fn commands(
    token: &Path,
    lock: LockId,
) -> Result<Option<Listener<Local>>, CliError> {
    let path = token.to_owned();
    drop(blocking(move || token::read_or_create(&path)).await?);
    let token = token.to_owned();
    let listen = move || -> Result<ControlListener, CliError> {
        let owner = token::owner(&token)?.ok_or(TokenError::Missing { path: token })?;
        Ok(ControlSocket::new(token::control_dir()?, lock, owner).listen()?)
    };
    let listener = blocking(listen).await.and_then(|one| Ok(local(one)?));
    let listener = listener
        .inspect_err(|error| {
            let error = error_chain(error);
            tracing::error!(
                error,
                "commands of this machine cannot reach this server; the admin token over HTTP can do what they do"
            );
        })
        .ok();
    Ok(listener)
}

/// Keeps the TLS certificate and its key up to date: they are read again at each SIGHUP.
pub(super) fn keep_reloading(
    hangups: watch::Receiver<u64>,
    tls: Option<Arc<Tls>>,
) -> Kept<Infallible> {
    runtime::keep(Background::TlsReload, move || {
        reload_on_hangup(hangups.clone(), tls.clone())
    })
}

/// Reads at each SIGHUP again what can change under a running server: the TLS certificate and its
/// key.
async fn reload_on_hangup(mut hangups: watch::Receiver<u64>, tls: Option<Arc<Tls>>) -> Infallible {
    loop {
        if hangups.changed().await.is_err() {
            // Nobody is left who could send one.
            std::future::pending::<()>().await;
        }
        panic_point!("tls::reload");
        let Some(tls) = tls.clone() else {
            tracing::info!("SIGHUP: there is no TLS certificate to read again");
            continue;
        };
        blocking(move || reload(&tls)).await;
    }
}

fn reload(tls: &Tls) {
    match tls.reload() {
        Ok(()) => tracing::info!("SIGHUP: the TLS certificate was read again"),
        Err(error) => {
            let error = error_chain(&error);
            tracing::error!(error, "SIGHUP: the TLS certificate in force is kept");
        }
    }
}

impl Start {
    /// Checks what can be refused before anything is touched, and takes the address.
    pub(super) async fn bind(&self, settings: &Settings) -> Result<Door, CliError> {
        clock::check().map_err(StartError::from)?;
        if let Some(shipping) = &settings.shipping {
            if settings.provider == ProviderChoice::Off {
                return Err(BackupError::Plaintext.into());
            }
            let (places, to) = (Places::of(settings), shipping.to.clone().absolute()?);
            blocking(move || to.check_place(&places)).await?;
        }
        let inherited = inherited_listener().map_err(StartError::from)?;
        let address = match &inherited {
            Some((_socket, address)) => *address,
            None => SocketAddr::new(self.host, self.port),
        };
        if !address.ip().is_loopback() && !self.allow_network {
            return Err(StartError::NotLoopback { host: address.ip() }.into());
        }
        let token = token::default_path()?;
        if !address.ip().is_loopback() {
            let path = token.clone();
            reject_first_token(address.ip(), blocking(move || token::read(&path)).await)?;
        }
        let tls = self.tls().await?;
        metrics::install().map_err(StartError::from)?;
        runtime::show_metrics();
        let hardening = harden();
        tracing::info!(?hardening, "process hardened");
        check_library()?;
        // Who connects while the rest comes up waits in the kernel's queue, as at a socket of the
        // service manager's.
        let (socket, address) = listen(inherited, address, &settings.data_dir).await?;
        Ok(Door {
            socket,
            address,
            tls,
            token,
        })
    }

    async fn tls(&self) -> Result<Option<Arc<Tls>>, StartError> {
        let (Some(certificate), Some(key)) = (self.tls_cert.clone(), self.tls_key.clone()) else {
            return Ok(None);
        };
        let tls = blocking(move || Tls::load(certificate, key)).await?;
        Ok(Some(Arc::new(tls)))
    }
}
