//! The HTTP server: routes, credentials, limits, and an end that loses nothing.

mod access;
mod body;
mod caller;
mod conditions;
mod connections;
pub mod error;
mod fair_permits;
mod local;
mod once;
mod openapi;
mod operations;
mod pace;
mod parameters;
mod pipeline;
mod range;
mod request_context;
mod router;
mod routes;
mod tenant_path;
pub mod tls;
pub mod token;
mod traffic;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nimbus_manifests::TenantId;
use tokio::sync::watch;

pub use access::{Needs, Route};
pub use body::MAX_BODY_BYTES;
pub use caller::{Caller, CredentialId};
pub use connections::Listener;
pub use local::{Local, local};
pub(crate) use operations::{Begun, OperationReport};
pub use pace::Patience;
pub use router::route_table;

use crate::audit::AuditLog;
use crate::backup::keep::Keep;
use crate::backup::proofs::{ProofKeeper, ProofReport};
use crate::backup::retention::{self, Retention};
use crate::backup::ship::{Report, Shipper};
use crate::backup::{Location, Places, S3Settings};
use crate::budget::{self, Shares};
use crate::control::{AccessKeys, Control, ControlError};
use crate::encryption::dek_age::{self, Keeper};
use crate::encryption::gauges;
use crate::encryption::rotate_dek::DekRotator;
use crate::encryption::status::StatusReader;
use crate::envelope::{Envelope, SystemClock};
use crate::metrics;
use crate::process::{Limits, notify};
use crate::runtime::signals::{Stop, end_waits_for};
use crate::runtime::{self, Background, Kept, acting_as, actor, blocking, panic_point, short_task};
use crate::scheduler::Scheduler;
use crate::tenants::{StoreError, TenantProvider, TenantStore};
use crate::usage::UsageCounter;
use error::{ApiError, Code};
use operations::Operations;
use pipeline::Pipeline;
use token::TokenKeeper;
use traffic::Traffic;

/// What the handlers work with.
#[derive(Debug)]
pub struct App {
    tenants: Arc<dyn TenantProvider>,
    scheduler: Scheduler,
    control: Arc<Control>,
    keys: Arc<dyn AccessKeys>,
    envelope: Envelope,
    /// `None` in plaintext.
    audit: Option<Arc<AuditLog>>,
    status_reader: StatusReader,
    max_open_tenants: usize,
    limits: Limits,
    backups: Backups,
    operations: Arc<Operations>,
    tokens: TokenKeeper,
    allowed_origins: Vec<String>,
    usage: UsageCounter,
    places: Arc<Shares>,
    bytes: Arc<Shares>,
    traffic: Traffic,
    /// The OpenAPI document.
    document: fn() -> &'static str,
    /// Tenants that did not open when they were asked for last, and why.
    trouble: Mutex<BTreeMap<TenantId, &'static str>>,
    /// Ships what is committed, until the end.
    shipper: Mutex<Option<Shipper>>,
    /// Tasks that go on for as long as this exists.
    kept: Mutex<Vec<Kept<Infallible>>>,
}

/// What an application is made of, opened.
#[derive(Debug)]
pub struct Parts {
    /// Where tenants are.
    pub tenants: Arc<dyn TenantProvider>,
    /// Runs what is due in them.
    pub scheduler: Scheduler,
    /// The control file.
    pub control: Arc<Control>,
    /// Where tenants' access keys are.
    pub keys: Arc<dyn AccessKeys>,
    /// The core.
    pub envelope: Envelope,
    /// The log of key events; `None` in plaintext.
    pub audit: Option<Arc<AuditLog>>,
    /// Looks at the files.
    pub status_reader: StatusReader,
    /// How many tenants may be open.
    pub max_open_tenants: usize,
    /// How much may be written.
    pub limits: Limits,
    /// How backups are made.
    pub backups: Backups,
    /// Ships what is committed.
    pub shipper: Option<Shipper>,
    /// The admin token.
    pub tokens: TokenKeeper,
    /// Origins that are accepted besides loopback ones.
    pub allowed_origins: Vec<String>,
}

/// How backups are made.
#[derive(Debug, Clone, Default)]
pub struct Backups {
    /// How buckets are reached.
    pub s3: S3Settings,
    /// What repositories must lie apart from.
    pub places: Places,
    /// Held by who makes a snapshot.
    pub turn: Arc<tokio::sync::Mutex<()>>,
    /// How shipping stands; `None` where nothing is shipped.
    pub report: Option<Arc<Report>>,
    /// The repository that is shipped to.
    pub to: Option<Location>,
    /// What is kept there; `None` where the server prunes nothing.
    pub keep: Option<Keep>,
    /// What is known of restores from there; `None` where they are not proven.
    pub proofs: Option<Arc<ProofReport>>,
}

impl App {
    /// An application over opened parts.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts {
            tenants,
            scheduler,
            control,
            keys,
            envelope,
            audit,
            status_reader,
            max_open_tenants,
            limits,
            backups,
            shipper,
            tokens,
            allowed_origins,
        } = parts;
        Self {
            tenants,
            scheduler,
            usage: UsageCounter::new(control.clone()),
            control,
            keys,
            envelope,
            audit,
            status_reader,
            max_open_tenants,
            limits,
            backups,
            operations: Arc::default(),
            tokens,
            allowed_origins,
            places: Shares::new(MAX_REQUESTS, RESERVED_REQUESTS),
            bytes: budget::bytes(),
            traffic: Traffic::new(route_table().into_iter().map(|route| route.path)),
            document: openapi::document,
            trouble: Mutex::default(),
            shipper: Mutex::new(shipper),
            kept: Mutex::default(),
        }
    }

    /// The store of a tenant; remembers, and logs once, when it does not open.
    async fn open(&self, tenant: &TenantId) -> Result<Arc<dyn TenantStore>, ApiError> {
        match self.tenants.open(tenant).await {
            Ok(store) => {
                self.untroubled(tenant);
                access::still_holds_its_key(&*self.keys, tenant)?;
                Ok(store)
            }
            Err(error) => {
                let broken = matches!(error, StoreError::Open { .. } | StoreError::Corrupt { .. });
                let answer = ApiError::from(error.clone());
                if broken {
                    let code = answer.code.as_str();
                    let before = self.trouble().insert(tenant.clone(), code);
                    if before != Some(code) {
                        tracing::error!(%tenant, code, %error, "a tenant does not open");
                    }
                }
                Err(answer)
            }
        }
    }

    /// Runs work that must not stop half way because its caller went away.
    async fn finish<F, W>(self: &Arc<Self>, work: W) -> Result<(), ApiError>
    where
        W: FnOnce(Arc<Self>) -> F + Send + 'static,
        F: Future<Output = Result<(), StoreError>> + Send + 'static,
    {
        match short_task(acting_as(actor(), work(self.clone()))).await {
            Ok(result) => result.map_err(ApiError::from),
            Err(_panic) => Err(ApiError::new(Code::Internal, "a fault in the server")),
        }
    }

    /// Replaces data keys that are older than `max_age`, one at a time, for as long as the server
    /// runs. It steps back for whatever an operator asks for.
    pub fn keep_data_keys_young(self: &Arc<Self>, max_age: Duration) {
        let keeper = Keeper::new(self.dek_rotator(), max_age, Arc::new(SystemClock));
        let operations = self.operations.clone();
        let keeping = runtime::keep(Background::DataKeyAge, move || {
            renew_old_keys(keeper.clone(), operations.clone())
        });
        self.kept().push(keeping);
    }

    /// Restores each tenant from the repository in turn, and proves it, for as long as the server
    /// runs. It steps back for whatever an operator asks for.
    pub fn prove_backups(self: &Arc<Self>) {
        let (Some(from), Some(report)) = (&self.backups.to, &self.backups.proofs) else {
            return;
        };
        let keeper = ProofKeeper {
            from: from.clone(),
            s3: self.backups.s3.clone(),
            envelope: self.envelope.clone(),
            tenants: self.tenants.clone(),
            report: Arc::clone(report),
        };
        let operations = self.operations.clone();
        let keeping = runtime::keep(Background::BackupProofs, move || {
            prove_for_ever(keeper.clone(), operations.clone())
        });
        self.kept().push(keeping);
    }

    /// Prunes the repository that is shipped to, for as long as the server runs. It steps back for
    /// whatever an operator asks for.
    pub fn prune_backups(self: &Arc<Self>) {
        let Backups {
            s3,
            report: Some(report),
            to: Some(from),
            keep: Some(keep),
            ..
        } = &self.backups
        else {
            return;
        };
        let (place, report) = ((from.clone(), s3.clone()), Arc::clone(report));
        let retention = Retention::new(place, self.envelope.clone(), *keep, report);
        let operations = self.operations.clone();
        let keeping = runtime::keep(Background::BackupRetention, move || {
            prune_for_ever(retention.clone(), operations.clone())
        });
        self.kept().push(keeping);
    }

    /// What a rotation of data keys goes through.
    fn dek_rotator(&self) -> DekRotator {
        DekRotator {
            tenants: self.tenants.clone(),
            control: self.control.clone(),
            envelope: self.envelope.clone(),
            data_dir: self.status_reader.data_dir.clone(),
            control_dir: self.status_reader.control_dir.clone(),
        }
    }

    /// Pages of this machine, and those that the operator named.
    fn accepts(&self, origin: &str) -> bool {
        pipeline::is_loopback(origin)
            || self.allowed_origins.iter().any(|allowed| allowed == origin)
    }

    async fn check_control(&self) -> Result<(), ControlError> {
        let control = self.control.clone();
        blocking(move || control.pending_deletes().map(drop)).await
    }

    fn troubled(&self) -> BTreeMap<String, &'static str> {
        self.trouble()
            .iter()
            .map(|(tenant, code)| (tenant.to_string(), *code))
            .collect()
    }

    fn untroubled(&self, tenant: &TenantId) {
        let mut trouble = self.trouble();
        if !trouble.is_empty() {
            trouble.remove(tenant);
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Kept<Infallible>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trouble(&self) -> MutexGuard<'_, BTreeMap<TenantId, &'static str>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Proves one tenant after the other, for ever.
async fn prove_for_ever(keeper: ProofKeeper, operations: Arc<Operations>) -> Infallible {
    loop {
        panic_point!("backup-proofs::step");
        let pause = operations.quietly(|progress| keeper.step(progress)).await;
        tokio::time::sleep(pause).await;
    }
}

/// Prunes now and then, for ever.
async fn prune_for_ever(retention: Retention, operations: Arc<Operations>) -> Infallible {
    let mut pause = retention::first_pause();
    loop {
        tokio::time::sleep(pause).await;
        panic_point!("backup-retention::step");
        pause = operations
            .quietly(|progress| retention.step(progress))
            .await;
    }
}

/// Replaces the data keys that `keeper` finds too old, for ever.
async fn renew_old_keys(keeper: Keeper, operations: Arc<Operations>) -> Infallible {
    loop {
        panic_point!("data-key-age::look");
        let due = keeper.look().await;
        for (done, one) in due.iter().enumerate() {
            let renewed = operations.quietly(|progress| keeper.renew(one, progress));
            if renewed.await {
                dek_age::note(due.len() - done - 1);
            }
        }
        tokio::time::sleep(keeper.pause()).await;
    }
}

/// Serves clients, and commands of this machine, until it must stop, then finishes what is
/// under way (at most 20 seconds) and closes every tenant.
///
/// # Errors
///
/// What kept a tenant from closing.
pub async fn serve(
    listener: Listener,
    commands: Option<Listener<Local>>,
    app: Arc<App>,
    mut stop: watch::Receiver<Stop>,
) -> Result<(), ServeError> {
    let front = Pipeline::new(app.clone(), router::router(app.clone()));
    let for_commands = front.for_commands();
    let (stopping, stopped) = watch::channel(false);
    let mut told = stop.clone();
    let signal = async move {
        is(&mut told, Stop::Orderly).await;
        notify("STOPPING=1");
        tracing::info!("stopping: finishing what is under way");
        end_waits_for("requests that are under way");
        stopping.send_replace(true);
        within(&mut told, STOP_PATIENCE, std::future::pending::<()>()).await;
    };
    let upkeep = runtime::keep(Background::MetricsUpkeep, upkeep);
    let of_gauges = app.clone();
    let gauges = runtime::keep(Background::Gauges, move || update_gauges(of_gauges.clone()));
    let accepting = runtime::task(Background::Acceptor, async move {
        let clients = connections::serve(listener, front.clone(), stopped.clone());
        let commands = async {
            if let Some(commands) = commands {
                connections::serve(commands, for_commands, stopped.clone()).await;
            }
        };
        let ((), ()) = tokio::join!(clients, commands);
    });
    let accepted = tokio::select! {
        ended = accepting => ended,
        () = signal => {
            tracing::warn!("some requests did not end in time and are cut off");
            Ok(())
        }
    };
    drop((upkeep, gauges));
    app.kept().clear();
    end_waits_for("jobs that are under way");
    within(&mut stop, JOBS_PATIENCE, app.scheduler.stop()).await;
    end_waits_for("tenants that are being closed");
    let closed = app.tenants.close().await;
    end_waits_for("the count of identities");
    let counting = app.clone();
    let counted = blocking(move || counting.usage.close());
    within(&mut stop, USAGE_PATIENCE, counted).await;
    let shipper = app
        .shipper
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some(shipper) = shipper {
        end_waits_for("the repository that is shipped to");
        within(&mut stop, SHIPPING_PATIENCE, shipper.finish()).await;
    }
    end_waits_for("the audit log");
    closed.map_err(ServeError::Close)?;
    accepted.map_err(|_panic| ServeError::Acceptor)
}

/// Waits until the server is told to stop so urgently.
async fn is(stop: &mut watch::Receiver<Stop>, urgency: Stop) {
    if stop.wait_for(|stop| *stop >= urgency).await.is_err() {
        // The sender is gone.
        std::future::pending::<()>().await;
    }
}

/// Waits for `work`, but not for longer than `patience`, and not when it must be quick.
async fn within(
    stop: &mut watch::Receiver<Stop>,
    patience: Duration,
    work: impl Future<Output = ()>,
) {
    tokio::select! {
        () = work => {}
        () = tokio::time::sleep(patience) => {}
        () = is(stop, Stop::Quickly) => {}
    }
}

async fn upkeep() -> Infallible {
    loop {
        panic_point!("metrics::upkeep");
        tokio::time::sleep(UPKEEP).await;
        metrics::upkeep();
    }
}

async fn update_gauges(app: Arc<App>) -> Infallible {
    loop {
        panic_point!("gauges::look");
        tokio::time::sleep(LOOK).await;
        let status_reader = &app.status_reader;
        gauges::tell(
            &app.envelope,
            &status_reader.data_dir,
            &status_reader.control_dir,
        )
        .await;
    }
}

/// Why serving ended badly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A tenant did not close; what was answered is durable all the same.
    #[error(
        "a tenant did not close cleanly; what was answered is durable, the next start recovers the rest"
    )]
    Close(#[source] StoreError),
    /// Connections were not accepted any more.
    #[error("the acceptor of connections ended by a fault of the server; every tenant was closed")]
    Acceptor,
}

/// How many requests may be under way: more are turned away with `Retry-After` rather than queued
/// without bound.
const MAX_REQUESTS: usize = 1024;
/// How many of them are for the admin token alone.
const RESERVED_REQUESTS: usize = 32;
/// Asks nothing, and takes no place.
const HEALTH: &str = "/health";
/// Looks at every file, so that it may take longer than other requests.
const ENCRYPTION_STATUS: &str = "/debug/encryption/status";
/// How long requests under way have; what is left of [`STOP_DEADLINE`] is for closing.
///
/// [`STOP_DEADLINE`]: crate::runtime::signals::STOP_DEADLINE
const STOP_PATIENCE: Duration = Duration::from_secs(20);
/// How long jobs under way have: the next start runs what is cut off.
const JOBS_PATIENCE: Duration = Duration::from_secs(3);
/// How long the last packs have: the next start ships what is not there then.
const SHIPPING_PATIENCE: Duration = Duration::from_secs(4);
const USAGE_PATIENCE: Duration = Duration::from_secs(2);
/// Between two foldings of what was recorded.
const UPKEEP: Duration = Duration::from_secs(5);
/// Between two looks at all manifests: some tenths of a second for ten thousand of them.
const LOOK: Duration = Duration::from_secs(60);
