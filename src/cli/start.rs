//! `nimbus start`: from settings to a server that listens, and to an end that loses nothing.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::output::{self, Format};
use super::{CliError, Outcome, block_on};
use crate::audit::AuditLog;
use crate::config::keys::{self, Keys, Purpose};
use crate::config::{Persistence, Settings};
use crate::control::{Control, ControlError};
use crate::encryption::survey::Surveyor;
use crate::envelope::{Holder, act_as, blocking, remove_leftovers};
use crate::process::{DataDirLock, harden, raise_file_limit};
use crate::scheduler::{Agenda, Scheduler, SystemClock};
use crate::server::token::{self, AdminToken, TokenKeeper};
use crate::server::{App, Parts, serve};
use crate::sqlcipher::check_library;
use crate::tenants::sqlite::{SqliteOptions, SqliteTenants};

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
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    host: IpAddr,

    /// Port to listen on; 0 picks a free one
    #[arg(long, default_value_t = 8080)]
    port: u16,

    /// Allow a --host that other machines reach; the admin token must have been rotated once
    #[arg(long)]
    allow_network: bool,

    /// Accept browsers on this origin besides loopback ones; may be given several times
    #[arg(
        long = "cors-allow-origin",
        env = "NIMBUS_CORS_ALLOW_ORIGINS",
        value_name = "ORIGIN",
        value_delimiter = ','
    )]
    cors_allow_origins: Vec<String>,

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
    pub(super) fn run(self, config: Option<&Path>) -> Result<Outcome, CliError> {
        let settings = Settings::check(self.persistence.clone(), config)?;
        output::init_log(self.log_format, "info");
        act_as("nimbus");
        block_on(self.serve(settings))?;
        Ok(Outcome::Done)
    }

    async fn serve(self, settings: Settings) -> Result<(), CliError> {
        // Before anything is touched: what can be refused without looking.
        if !self.host.is_loopback() && !self.allow_network {
            return Err(StartError::NotLoopback { host: self.host }.into());
        }
        let stop = stop_signal()?;
        let hardening = harden();
        tracing::info!(?hardening, "process hardened");
        if let Some(files) = raise_file_limit()
            && files < settings.max_open_tenants as u64 * FILES_A_TENANT
        {
            tracing::warn!(
                files,
                max_open_tenants = settings.max_open_tenants,
                "few files may be open for so many tenants; raise the hard limit (`ulimit -Hn`), or lower --max-open-tenants"
            );
        }
        check_library()?;

        let (data_dir, control_dir) =
            (settings.data_dir.clone(), settings.control_data_dir.clone());
        let lock = blocking(move || take_dirs(&data_dir, &control_dir)).await?;
        let Keys { envelope, made } = keys::connect(&settings, Purpose::Start).await?;
        announce_keys(made.as_deref(), &settings);
        if let Some(keys) = envelope.keys() {
            keys.current()
                .check()
                .await
                .map_err(keys::KeysError::from)?;
        }
        let control = Arc::new(Control::open(&envelope, &settings.control_data_dir).await?);
        let holder: Weak<dyn Holder> = Arc::<Control>::downgrade(&control);
        envelope.held_by(holder);
        let locked = blocking({
            let control = control.clone();
            move || control.locked_tenants()
        });
        envelope.keep_locked(locked.await?);
        let mut envelope = envelope.with_mirror(control.clone());
        let mut audit = None;
        if envelope.keys().is_some() {
            let (control, dir) = (control.clone(), settings.control_data_dir.clone());
            let log = Arc::new(blocking(move || AuditLog::open(control, &dir)).await?);
            envelope = envelope.with_audit(log.clone());
            audit = Some(log);
        }
        let keeper = tokio::spawn(envelope.clone().keep_leases());
        let agenda = Arc::new(agenda(&control).await?);
        let options = SqliteOptions {
            max_open_tenants: settings.max_open_tenants,
            due: agenda.clone(),
            ..SqliteOptions::default()
        };
        let tenants = SqliteTenants::open(
            envelope.clone(),
            control.clone(),
            settings.data_dir.clone(),
            options,
        )
        .await?;

        let token_path = token::default_path()?;
        let token = blocking({
            let path = token_path.clone();
            move || token::read_or_create(&path)
        })
        .await?;
        self.refuse_first_token(&token)?;
        drop(token);

        let address = SocketAddr::new(self.host, self.port);
        let bind = |source| StartError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        lock.announce(Some(address))?;
        let surveyor = Surveyor {
            data_dir: settings.data_dir,
            control_dir: settings.control_data_dir,
            provider: settings.provider,
            envelope: Ok(envelope.clone()),
            dek_max_age: settings.dek_max_age,
            holds_control: true,
        };
        let tenants = Arc::new(tenants);
        let scheduler = Scheduler::start(tenants.clone(), agenda, Arc::new(SystemClock));
        let app = App::new(Parts {
            tenants,
            scheduler,
            control,
            envelope,
            audit,
            surveyor,
            max_open_tenants: settings.max_open_tenants,
            tokens: TokenKeeper::new(token_path),
            allowed_origins: self.cors_allow_origins,
        });
        let app = Arc::new(app);
        if let Some(max_age) = settings.dek_max_age {
            app.keep_data_keys_young(max_age);
        }
        match self.log_format {
            Format::Text => output::note(&format!("nimbus listening on {address}")),
            Format::Json => tracing::info!(%address, "nimbus listening on {address}"),
        }
        serve(listener, app, stop).await?;
        keeper.abort();
        tracing::info!("stopped; every tenant is closed and its keys are wiped");
        drop(lock);
        Ok(())
    }

    fn refuse_first_token(&self, token: &AdminToken) -> Result<(), StartError> {
        if !self.host.is_loopback() && token.rotations() == 0 {
            return Err(StartError::TokenNeverRotated { host: self.host });
        }
        Ok(())
    }
}

/// What the control file knows of work that is due.
async fn agenda(control: &Arc<Control>) -> Result<Agenda, ControlError> {
    let control = Arc::clone(control);
    blocking(move || Agenda::load(control, Arc::new(SystemClock))).await
}

/// Makes the directories where they are missing, takes the data directory, and removes what a crash left.
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

/// Resolves at SIGTERM or Ctrl-C. The handlers are in place before this returns.
fn stop_signal() -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _signal = terminate.recv() => {}
            _signal = interrupt.recv() => {}
        }
    })
}

/// Database, WAL and shared memory of the writer, database and WAL of a reader or two.
const FILES_A_TENANT: u64 = 8;
