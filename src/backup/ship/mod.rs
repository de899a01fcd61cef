//! Continuous shipping: what is committed goes into the repository every interval, in one order
//! over all tenants.
//!
//! | step | in the repository after it | a kill here, and the next start |
//! | --- | --- | --- |
//! | 1. `epochs/<epoch>` created | an epoch without a snapshot | begins the next epoch |
//! | 2. a snapshot, from whose moment on commits are kept | every instant up to the snapshot's | the same; its snapshot adds only what changed |
//! | 3. manifests and bases that a pack names | objects that nothing names | the same; what they held is in its snapshot |
//! | 4. `log/<epoch>/<number>` created | every instant up to the pack's | the same |
//!
//! Nothing of this is remembered on the disk of the server. What was committed after the last pack
//! is in the next epoch's snapshot, and what happened in between cannot be told apart.
//!
//! Whoever begins an epoch replaces the one before it: after each pack its server looks for a later
//! epoch, and stops when there is one.

mod kept;
mod named;
mod packs;
mod report;
mod session;

pub use report::{Report, Standing};

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use self::session::{Ended, Session};
use super::create::Deployment;
use super::{BackupError, Location, Repository, S3Settings};
use crate::envelope::{Event, EventKind, EventOutcome};
use crate::error_chain::error_chain;
use crate::failpoints::crash_point;
use crate::metrics;
use crate::runtime::{self, Background, Kept, blocking, panic_point};

/// What ships, and where to.
#[derive(Debug, Clone)]
pub struct Shipping {
    /// The repository.
    pub to: Location,
    /// How its bucket is reached.
    pub s3: S3Settings,
    /// Between two packs.
    pub interval: Duration,
    /// Bytes that may wait.
    pub most_bytes: u64,
}

/// A shipper that runs.
#[derive(Debug)]
pub struct Shipper {
    task: Kept<()>,
    stop: watch::Sender<bool>,
    log: Arc<crate::tenants::sqlite::CommitLog>,
}

/// What the shipper works with.
#[derive(Debug, Clone)]
struct Context {
    shipping: Shipping,
    deployment: Deployment,
    report: Arc<Report>,
    stop: watch::Receiver<bool>,
}

impl Shipper {
    /// Ships what `deployment` commits from now on. `None` where its tenants are not files of
    /// Nimbus.
    pub fn start(shipping: Shipping, deployment: Deployment, report: Arc<Report>) -> Option<Self> {
        let log = Arc::clone(deployment.tenants.instants()?.log());
        let (stop, stopped) = watch::channel(false);
        deployment.envelope.watch_manifests();
        let context = Context {
            shipping,
            deployment,
            report,
            stop: stopped,
        };
        let task = runtime::keep(Background::Shipper, move || context.clone().run());
        Some(Self { task, stop, log })
    }

    /// Ships the rest, and ends. Everything is written by now.
    pub async fn finish(self) {
        let _before = self.stop.send_replace(true);
        if self.task.ended().await.is_some() && self.log.waits() {
            tracing::warn!(
                "what was committed last is not in the repository; the next start ships it"
            );
        }
    }
}

impl Context {
    /// Until the server ends.
    async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            panic_point!("ship::begin");
            let ended = self.epoch(&mut pause).await;
            let _none = self.log(|log| log.stop());
            metrics::SHIPPING.set(0.0);
            match ended {
                Ok(()) => return,
                Err(error @ BackupError::Replaced { .. }) => {
                    let why = error_chain(&error);
                    tracing::error!(why, "shipping ends");
                    self.report.ended(why);
                    self.stopped().await;
                    return;
                }
                Err(error) => {
                    metrics::SHIPPING_FAILED.increment(1);
                    let why = error_chain(&error);
                    tracing::warn!(why, "nothing is shipped; it is tried again");
                    self.report.fails(why);
                }
            }
            if *self.stop.borrow() || self.wait(pause).await {
                return;
            }
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    /// One epoch, until the server ends.
    async fn epoch(&mut self, pause: &mut Duration) -> Result<(), BackupError> {
        let control = Arc::clone(&self.deployment.control);
        let Some(sealer) = blocking(move || control.archive_sealer()).await else {
            return Err(BackupError::Plaintext);
        };
        let Shipping { to, s3, .. } = &self.shipping;
        let file_id = sealer.file_id.to_string();
        let repository = Repository::open_or_make(to, s3, &file_id).await?;
        let newest = self.deployment.newest(&repository, &sealer, false).await?;
        let envelope = &self.deployment.envelope;
        let begun = repository.begin_epoch(envelope, &sealer, &newest).await?;
        for why in &begun.skipped {
            tracing::warn!(why, "what is not this deployment's is passed over");
        }
        crash_point!("ship::epoch-begun");
        let mut session = Session::new(self.clone(), repository, begun, newest.keys.replaced);
        loop {
            session.anchor(&sealer).await?;
            crash_point!("ship::anchored");
            *pause = FIRST_PAUSE;
            metrics::SHIPPING.set(1.0);
            match session.ship().await? {
                Ended::Stopped => return Ok(()),
                Ended::Broken(why) => {
                    metrics::SHIPPED_AFRESH.increment(1);
                    tracing::warn!(
                        why,
                        "shipping begins afresh with a snapshot; what was committed in between is in that, as one"
                    );
                    self.report.fails(why);
                }
            }
            if *self.stop.borrow() {
                return Ok(());
            }
        }
    }

    fn log<T>(&self, work: impl FnOnce(&crate::tenants::sqlite::CommitLog) -> T) -> Option<T> {
        let instants = self.deployment.tenants.instants()?;
        Some(work(instants.log()))
    }

    /// The audit log has a line of each beginning.
    async fn record(&self, said: String) -> Result<(), BackupError> {
        let event = Event::new(EventKind::Backup, EventOutcome::Done)
            .about(&crate::control::subject())
            .saying(said);
        Ok(self.deployment.envelope.record(event).await?)
    }

    async fn stopped(&mut self) {
        // Whoever could tell is gone.
        drop(self.stop.wait_for(|stop| *stop).await);
    }

    /// Waits, but not once the server ends; whether it does.
    async fn wait(&mut self, pause: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(pause) => false,
            () = self.stopped() => true,
        }
    }
}

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
