//! `nimbus start`: from settings to a server that listens, and to an end that loses nothing.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::output::{self, Format};
use super::{CliError, CommandOutcome};
use crate::audit::ControlLost;
use crate::backup::proofs::ProofReport;
use crate::backup::ship::{Shipper, Shipping};
use crate::backup::{BackupError, Places, create};
use crate::clock::{self, WrongClock};
use crate::config::keys::{self, Keys, Purpose};
use crate::config::{NoTime, Persistence, ProviderChoice, Settings, Time, pieces};
use crate::data_dir::remove_leftovers;
use crate::deployment::{Deployment, Home, OlderControl};
use crate::encryption::status::StatusReader;
use crate::envelope::Envelope;
use crate::error_chain::error_chain;
use crate::metrics;
use crate::pluralize::pluralize;
use crate::process::{
    ControlListener, ControlSocket, DataDirLock, FileLimit, InheritedError, LockError, LockId,
    exit_now, harden, holder, inherited_listener, notify,
};
use crate::runtime::signals::{Signals, Stop, end_waits_for};
use crate::runtime::{self, Background, act_as, blocking, log, panic_point, short_task};
use crate::scheduler::{Clock, DueIndex, Scheduler};
use crate::server::tls::{Tls, TlsError};
use crate::server::token::{self, AdminToken, TokenError, TokenKeeper};
use crate::server::{App, Backups, Listener, Local, Parts, Patience, local, serve};
use crate::sqlcipher::{check_library, page_cache};
use crate::tenants::sqlite::SqliteOptions;
use crate::tenants::{StoreError, TenantProvider};

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
        let renewing = deployment.envelope.clone();
        let leases = runtime::keep(Background::LeaseKeeper, move || {
            renewing.clone().keep_leases()
        });
        let home = deployment.home(&settings.tenants).await?;
        let (due_index, clock) = due_index(&deployment, &home).await?;
        let options = SqliteOptions {
            max_open_tenants,
            limits: settings.limits,
            due: due_index.clone(),
            ..SqliteOptions::default()
        };
        let tenants = deployment.tenants_in(&home, options).await?;
        let commands = commands(&door.token, lock).await?;
        let (hangups, certificate) = (signals.hangups, door.tls.clone());
        let reloading = runtime::keep(Background::TlsReload, move || {
            reload_on_hangup(hangups.clone(), certificate.clone())
        });
        let scheduler = Scheduler::start(tenants.clone(), due_index, clock);
        let patience = Patience {
            keep_alive: self.keep_alive,
            ..Patience::default()
        };
        let backups = backups(&settings)?;
        let shipper = shipper(&settings, &backups, &deployment, &tenants)?;
        let app = Arc::new(App::new(Parts {
            tenants,
            scheduler,
            shipper,
            backups,
            status_reader: status_reader(&settings, &deployment.envelope),
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
            patience,
        };
        let served = serve(listener, commands, app, signals.stop).await;
        drop(reloading);
        served?;
        drop(leases);
        tracing::info!("stopped; every tenant is closed and its keys are wiped");
        Ok(())
    }

    /// Checks what can be refused before anything is touched, and takes the address.
    async fn bind(&self, settings: &Settings) -> Result<Door, CliError> {
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

    /// Takes the data directory, connects the keys, and opens what lies around the control file.
    async fn open(&self, settings: &Settings) -> Result<(Deployment, LockId), CliError> {
        let (data_dir, control_dir) = (&settings.data_dir, &settings.control_data_dir);
        let dirs = [data_dir.clone(), control_dir.clone()];
        let (lost, lock) = blocking(move || {
            // Before this start uses the directory itself.
            let lost = ControlLost::look(&dirs[1], &dirs[0]);
            take_dirs(&dirs[0], &dirs[1]).map(|lock| (lost, lock))
        })
        .await?;
        let lock = lock.keep();
        let Keys { envelope, made } = keys::connect(settings, Purpose::Start).await?;
        announce_keys(made.as_deref(), settings);
        if let Some(keys) = envelope.keys() {
            keys.current()
                .check()
                .await
                .map_err(keys::KeysError::from)?;
        }
        if envelope.keys().is_some() {
            start_page_cache(settings).await;
        }
        let older = match self.accept_rolled_back_control {
            false => OlderControl::Refuse,
            true => OlderControl::Accept,
        };
        let deployment = Deployment::open(envelope, data_dir, control_dir, older).await?;
        // After the log: that may have locked some again.
        let locked = deployment.keep_locked().await?;
        if let Some(lost) = lost {
            announce_new_control(&lost, locked, settings.tenants.database().is_some());
        }
        Ok((deployment, lock))
    }

    async fn tls(&self) -> Result<Option<Arc<Tls>>, StartError> {
        let (Some(certificate), Some(key)) = (self.tls_cert.clone(), self.tls_key.clone()) else {
            return Ok(None);
        };
        let tls = blocking(move || Tls::load(certificate, key)).await?;
        Ok(Some(Arc::new(tls)))
    }
}

fn backups(settings: &Settings) -> Result<Backups, BackupError> {
    let to = settings.shipping.as_ref();
    let to = to.map(|shipping| shipping.to.clone().absolute());
    Ok(Backups {
        s3: settings.backup_s3.clone(),
        places: Places::of(settings),
        turn: Arc::default(),
        report: settings.shipping.as_ref().map(|_shipping| Arc::default()),
        to: to.transpose()?,
        keep: settings.backup_keep,
        proofs: settings
            .backup_verify_every
            .map(|every| Arc::new(ProofReport::new(every))),
    })
}

/// Begins to ship what is committed, where that is wanted.
fn shipper(
    settings: &Settings,
    backups: &Backups,
    deployment: &Deployment,
    tenants: &Arc<dyn TenantProvider>,
) -> Result<Option<Shipper>, BackupError> {
    let (Some(shipping), Some(report)) = (&settings.shipping, &backups.report) else {
        return Ok(None);
    };
    let shipping = Shipping {
        to: shipping.to.clone().absolute()?,
        ..shipping.clone()
    };
    let shipped = create::Deployment {
        envelope: deployment.envelope.clone(),
        control: Arc::clone(&deployment.control),
        tenants: tenants.clone(),
        turn: Arc::clone(&backups.turn),
    };
    Ok(Shipper::start(shipping, shipped, Arc::clone(report)))
}

/// Everything works without it, slower: what is in its way ends no start.
async fn start_page_cache(settings: &Settings) {
    let bytes = settings
        .page_cache_bytes
        .unwrap_or_else(page_cache::default_bytes);
    if bytes == 0 {
        tracing::info!("the page cache is off, as --page-cache-bytes says");
        return;
    }
    let dir = settings.data_dir.clone();
    match blocking(move || page_cache::start(bytes, &dir)).await {
        Ok(started) => tracing::info!(?started, "the page cache is on"),
        Err(error) => tracing::warn!(
            error = error_chain(&error),
            "the page cache is off: every page that is read is decrypted anew"
        ),
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
struct Door {
    socket: TcpListener,
    address: SocketAddr,
    tls: Option<Arc<Tls>>,
    /// The file of the admin token.
    token: PathBuf,
}

/// How a server that has the control file open looks at its files.
fn status_reader(settings: &Settings, envelope: &Envelope) -> StatusReader {
    StatusReader {
        data_dir: settings.data_dir.clone(),
        control_dir: settings.control_data_dir.clone(),
        provider: settings.provider.clone(),
        database: settings.tenants.database(),
        envelope: Ok(envelope.clone()),
        dek_max_age: settings.dek_max_age,
        holds_control: true,
        rolled_back: None,
    }
}

/// Where commands of this machine are taken; makes the admin token where there is none. A server
/// that cannot take any serves its clients all the same.
async fn commands(token: &Path, lock: LockId) -> Result<Option<Listener<Local>>, CliError> {
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

/// What is noted of work that is due, and the clock that it goes by.
async fn due_index(
    deployment: &Deployment,
    home: &Home,
) -> Result<(Arc<DueIndex>, Arc<dyn Clock>), StoreError> {
    let (record, clock) = deployment.due_record(home);
    let by = clock.clone();
    let index = blocking(move || DueIndex::load(record, by)).await?;
    Ok((Arc::new(index), clock))
}

/// Makes the directories where they are missing, takes the data directory, and removes what a crash
/// left.
fn take_dirs(data_dir: &Path, control_dir: &Path) -> Result<DataDirLock, CliError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| StartError::DataDir { path, source }
    };
    for dir in [data_dir, control_dir] {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed(dir))?;
    }
    let lock = DataDirLock::acquire(data_dir)?;
    for dir in [data_dir, control_dir] {
        remove_leftovers(dir).map_err(failed(dir))?;
    }
    Ok(lock)
}

/// Says once, loudly, that a key was made; and at every start without one, that there is none.
fn announce_keys(made: Option<&Path>, settings: &Settings) {
    if let Some(key) = made {
        output::note(&format!(
            "\n*** A new master key was made: {key}\n\
             *** It opens everything in {data}. Back it up now, apart from the data:\n\
             *** without it the data cannot be read by anyone, ever again.\n",
            key = key.display(),
            data = settings.data_dir.display(),
        ));
    }
    if settings.provider == crate::config::ProviderChoice::Off {
        tracing::warn!(
            "--encryption-key-provider none: everything in {} is stored in PLAINTEXT",
            settings.data_dir.display()
        );
    }
}

/// Says where the server listens, and that it is ready.
fn announce_address(address: SocketAddr, format: Format) {
    match format {
        Format::Text => output::note(&format!("nimbus listening on {address}")),
        Format::Json => tracing::info!(%address, "nimbus listening on {address}"),
    }
    notify("READY=1");
}

/// Says, whatever the log's level, that this deployment has forgotten what its control file knew.
fn announce_new_control(lost: &ControlLost, locked: usize, is_elsewhere: bool) {
    let path = lost.path.display();
    if is_elsewhere {
        tracing::error!(
            "the control file {path} was gone, and a new one was made. What it had counted of usage is gone; tenants, access keys and locks are in the database"
        );
        return;
    }
    match lost.log {
        true => tracing::error!(
            locked,
            "the control file {path} was gone, and a new one was made. {} by the audit log that was beside it. All access keys are gone: make \
             new ones. If you have a backup of the control file, stop the server and put it back (docs/runbook.md)",
            match locked {
                0 => "No tenant was locked".to_owned(),
                some => format!("{} locked again", pluralize(some, "tenant")),
            }
        ),
        false => tracing::error!(
            "there was no control file {path} and no audit log, and there are tenants: a new control file was made. If the tenants were just brought \
             here, nothing is missing. If not: whichever were locked are served now, their access keys are gone, and deletions that were under way \
             are not finished. If you have a backup of the control file, stop the server and put it back (docs/runbook.md)"
        ),
    }
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
