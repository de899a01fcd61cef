//! `nimbus start`: from settings to a server that listens, and to an end that loses nothing.

mod announcements;
mod listening;
mod parts;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::sync::watch;

use super::output::{self, Format};
use super::{CliError, CommandOutcome};
use crate::clock::WrongClock;
use crate::config::{NoTime, Persistence, Settings, Time, pieces};
use crate::metrics;
use crate::process::{DataDirLock, FileLimit, InheritedError, exit_now};
use crate::runtime::signals::{Signals, Stop, end_waits_for};
use crate::runtime::{self, act_as, log, short_task};
use crate::scheduler::Scheduler;
use crate::server::tls::TlsError;
use crate::server::token::TokenKeeper;
use crate::server::{App, Listener, Parts, Patience, serve};
use announcements::announce_address;
use listening::{commands, keep_reloading};
use parts::{backups, due_index, keep_leases, shipper, sqlite_options, status_reader};

/// Run the server
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nimbus start
      the first start makes a master key and an admin token
  nimbus start --data-dir /srv/nimbus --encryption-key-provider aws-kms \\
      --encryption-aws-kms-key-id alias/nimbus
      production: the key stays in KMS")]
pub(super) struct Start {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS", value_parser = host)]
    host: IpAddr,

    /// Port to listen on; 0 picks a free one
    #[arg(long, default_value = "8080", value_parser = port)]
    port: u16,

    /// Allow a --host that other machines reach; the admin token must have been rotated once
    #[arg(long)]
    allow_network: bool,

    /// Serve HTTPS with this certificate: a PEM file, the server's own first, then its issuers'
    #[arg(long, requires = "tls_key", value_name = "FILE")]
    tls_cert: Option<PathBuf>,

    /// The certificate's private key: a PEM file, mode 0600, without a passphrase
    #[arg(long, requires = "tls_cert", value_name = "FILE")]
    tls_key: Option<PathBuf>,

    /// How long a connection waits for its next request: longer than a load balancer keeps it
    #[arg(
        long,
        env = "NIMBUS_KEEP_ALIVE",
        value_name = "TIME",
        default_value = "75s",
        value_parser = keep_alive
    )]
    keep_alive: Duration,

    /// Accept browsers on this origin besides loopback ones; may be given several times
    #[arg(
        long = "cors-allow-origin",
        env = "NIMBUS_CORS_ALLOW_ORIGINS",
        value_name = "ORIGIN",
        value_delimiter = ','
    )]
    cors_allow_origins: Vec<String>,

    /// Go on with a control file that is older than its audit log: what was revoked, locked or
    /// deleted since is so again
    #[arg(long)]
    accept_rolled_back_control: bool,

    /// Form of the log on standard error
    #[arg(long, value_enum, default_value_t = Format::Text)]
    log_format: Format,

    #[command(flatten)]
    persistence: Persistence,
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Other machines would reach it.
    #[error(
        "{host} can be reached from other machines; allow it with --allow-network, or listen on 127.0.0.1"
    )]
    NotLoopback {
        /// The address.
        host: IpAddr,
    },
    /// The token of the first boot would guard a network address.
    #[error(
        "before the server listens on {host}, rotate the admin token once: `nimbus auth rotate-admin`"
    )]
    TokenNeverRotated {
        /// The address.
        host: IpAddr,
    },
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {address}; if another program has the port, choose one with --port (0 picks a free one)"
    )]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// The service manager's socket is none to serve.
    #[error(transparent)]
    Inherited(#[from] InheritedError),
    /// The clock is wrong.
    #[error(transparent)]
    Clock(#[from] WrongClock),
    /// TLS cannot be had.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Metrics cannot be recorded.
    #[error(transparent)]
    Metrics(#[from] metrics::InstallError),
    /// The data directory cannot be used.
    #[error("cannot use the directory {}; this user must be able to write there, or name another with --data-dir", .path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl Start {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        let settings = Settings::check(self.persistence.clone(), config)?;
        log::start()?;
        output::init_log(self.log_format, "info");
        runtime::log_panics();
        let signals = Signals::listen()?;
        act_as("nimbus");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        let served = runtime.block_on(self.serve(settings, signals));
        end_waits_for("threads that do not end");
        // Some may wait for a key provider that does not answer: nothing that they do counts any
        // more.
        runtime.shutdown_timeout(LAST_PATIENCE);
        DataDirLock::name_nobody();
        served.map(|()| CommandOutcome::Done)
    }

    async fn serve(self, settings: Settings, signals: Signals) -> Result<(), CliError> {
        // Until it serves there is nothing to end in order.
        let starting = short_task(end_if_stopped(signals.stop.clone()));
        let door = self.bind(&settings).await?;
        let files = FileLimit::raise();
        let max_open_tenants = settings.max_open_tenants.within(files);
        let (deployment, lock) = self.open(&settings).await?;
        let leases = keep_leases(&deployment.envelope);
        let home = deployment.home(&settings.tenants).await?;
        let (due_index, clock) = due_index(&deployment, &home).await?;
        let options = sqlite_options(&settings, files, max_open_tenants, due_index.clone());
        let tenants = deployment.tenants_in(&home, options).await?;
        let commands = commands(&door.token, lock).await?;
        let reloading = keep_reloading(signals.hangups, door.tls.clone());
        let scheduler = Scheduler::start(tenants.clone(), due_index, clock);
        let backups = backups(&settings)?;
        let shipper = shipper(&settings, &backups, &deployment, &tenants)?;
        let app = Arc::new(App::new(Parts {
            tenants,
            scheduler,
            shipper,
            backups,
            status_reader: status_reader(
                &settings,
                &deployment.envelope,
                deployment.manifests(&home),
            ),
            keys: deployment.access_keys(&home),
            control: deployment.control,
            envelope: deployment.envelope,
            audit: deployment.audit,
            max_open_tenants,
            limits: settings.limits,
            tokens: TokenKeeper::new(door.token),
            allowed_origins: pieces(self.cors_allow_origins),
        }));
        if let Some(max_age) = settings.dek_max_age {
            app.keep_data_keys_young(max_age);
        }
        app.prove_backups();
        app.prune_backups();
        // From here on it ends in order.
        starting.abort();
        drop(starting.await);
        announce_address(door.address, self.log_format);
        let listener = Listener {
            socket: door.socket,
            tls: door.tls,
            most: files.connections(),
            patience: Patience {
                keep_alive: self.keep_alive,
                ..Patience::default()
            },
        };
        let served = serve(listener, commands, app, signals.stop).await;
        drop(reloading);
        served?;
        drop(leases);
        tracing::info!("stopped; every tenant is closed and its keys are wiped");
        Ok(())
    }
}

fn host(text: &str) -> Result<IpAddr, &'static str> {
    let refused =
        "it is no IP address; write 127.0.0.1, ::1, or 0.0.0.0 for every address of this machine";
    text.parse().map_err(|_in_its_words| refused)
}

fn port(text: &str) -> Result<u16, &'static str> {
    text.parse()
        .map_err(|_in_its_words| "a port is a whole number, 0 to 65535")
}

fn keep_alive(text: &str) -> Result<Duration, String> {
    let time: Time = text.parse().map_err(|error: NoTime| error.to_string())?;
    let kept = time.duration();
    if !(MIN_KEEP_ALIVE..=MAX_KEEP_ALIVE).contains(&kept) {
        return Err("it is 1s to 1h; load balancers need it longer than their own".to_owned());
    }
    Ok(kept)
}

/// Ends the process when it is told to stop before it serves: what was begun is what a crash
/// leaves, which the next start finishes.
async fn end_if_stopped(mut stop: watch::Receiver<Stop>) {
    if stop.wait_for(|stop| *stop > Stop::No).await.is_ok() {
        tracing::info!("stopped before it served");
        log::flush();
        exit_now(0);
    }
}

const MIN_KEEP_ALIVE: Duration = Duration::from_secs(1);
const MAX_KEEP_ALIVE: Duration = Duration::from_secs(3600);
/// How long threads have to end once every tenant is closed.
const LAST_PATIENCE: Duration = Duration::from_secs(2);
