//! One epoch of shipping: snapshots, and the packs that go on from them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nimbus_manifests::DekId;
use tokio::task::JoinHandle;

use super::super::create::{Made, What};
use super::super::epoch::Begun;
use super::super::pack::PackedBase;
use super::super::saving::Frozen;
use super::super::{BackupError, Repository, sha256};
use super::Context;
use super::kept::Kept;
use crate::audit::LogPart;
use crate::clock;
use crate::control::ArchiveSealer;
use crate::error_chain::error_chain;
use crate::failpoints::crash_point;
use crate::metrics;
use crate::runtime::{blocking, panic_point, short_task};
use crate::tenants::sqlite::{self, Boundary, Broken};

/// One epoch.
pub(super) struct Session {
    pub(super) context: Context,
    pub(super) repository: Repository,
    pub(super) epoch: u64,
    /// Whoever replaces this server begins this one, or one behind it where that number is taken
    /// by what is none.
    pub(super) next_epoch: u64,
    pub(super) floor_ms: i64,
    /// Data keys of the control file that seal nothing any more.
    pub(super) replaced: BTreeSet<String>,
    /// What seals packs: that of the control file as it was last shipped.
    pub(super) sealer: Option<ArchiveSealer>,
    /// The last pack that was formed, and the SHA-256 of what it is chained to.
    pub(super) number: u64,
    pub(super) previous: String,
    /// The instant up to which all is shipped.
    pub(super) after_ms: i64,
    /// The snapshot from which the next pack goes on, where it does not go on from a pack.
    pub(super) anchor: Option<u64>,
    pub(super) kept: Option<Kept>,
    /// How often the control file had changed, at least, when it was shipped; and whether its
    /// manifest is to be shipped again.
    pub(super) changes: u64,
    pub(super) again: bool,
    /// What is in the next pack.
    pub(super) next: Next,
    /// Large files that are being stored.
    pub(super) storing: Vec<JoinHandle<Result<PackedBase, BackupError>>>,
    /// A further snapshot, so that not too many packs are to be read for an instant.
    pub(super) further: Option<JoinHandle<Result<Made, BackupError>>>,
    pub(super) since: Since,
    /// Since when the file is held that is being stored.
    pub(super) holding: Option<Instant>,
    /// The manifest of the control file that was stored last.
    control_manifest: Option<String>,
}

/// What was shipped since the last snapshot.
#[derive(Debug, Default)]
pub(super) struct Since {
    pub(super) packs: u64,
    pub(super) bytes: u64,
    pub(super) snapshot_bytes: u64,
    /// When the last snapshot was made.
    pub(super) began: Option<Instant>,
    /// The data key of the control file that seals it.
    pub(super) dek_id: Option<DekId>,
}

#[derive(Default)]
pub(super) struct Next {
    pub(super) manifests: BTreeSet<PathBuf>,
    pub(super) bases: Vec<PackedBase>,
}

/// How shipping ended.
pub(super) enum Ended {
    /// The server ends, and all is shipped.
    Stopped,
    /// Something that was committed could not be kept.
    Broken(String),
}

/// Why a look ended without everything shipped.
pub(super) enum Failed {
    Broken(String),
    Error(BackupError),
}

impl From<Broken> for Failed {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken.0)
    }
}

impl<E: Into<BackupError>> From<E> for Failed {
    fn from(error: E) -> Self {
        match error.into() {
            BackupError::GivenUp(why) => Self::Broken(why),
            error => Self::Error(error),
        }
    }
}

impl Session {
    pub(super) fn new(
        context: Context,
        repository: Repository,
        begun: Begun,
        replaced: BTreeSet<String>,
    ) -> Self {
        Self {
            context,
            repository,
            epoch: begun.epoch,
            next_epoch: begun.epoch + 1,
            floor_ms: begun.floor_ms,
            replaced,
            sealer: None,
            number: 0,
            previous: begun.sha256,
            after_ms: 0,
            anchor: None,
            kept: None,
            changes: 0,
            again: false,
            next: Next::default(),
            storing: Vec::new(),
            further: None,
            since: Since::default(),
            holding: None,
            control_manifest: None,
        }
    }

    pub(super) fn log(&self) -> Result<Arc<sqlite::CommitLog>, BackupError> {
        let instants = self.context.deployment.tenants.instants();
        let instants = instants.ok_or(BackupError::NoFiles)?;
        Ok(Arc::clone(instants.log()))
    }

    /// Begins the log at the moment of a snapshot.
    pub(super) async fn anchor(&mut self, sealer: &ArchiveSealer) -> Result<(), BackupError> {
        for storing in self.storing.drain(..) {
            storing.abort();
        }
        let log = self.log()?;
        let published = self.context.deployment.envelope.take_published();
        drop(published);
        self.next = Next::default();
        let shipping = sqlite::Shipping {
            repository: self.repository.id,
            epoch: self.epoch,
            pack: self.number,
            most_bytes: self.context.shipping.most_bytes,
        };
        log.arm(shipping, self.floor_ms.max(self.after_ms));
        let late = self.floor_ms - clock::now_ms();
        if late > 0 {
            tracing::warn!(
                newest = clock::stamp_of(self.floor_ms),
                "the clock of this machine is behind the newest instant in the repository: times go on from there until it has caught up"
            );
        }
        let (to, s3) = (&self.context.shipping.to, &self.context.shipping.s3);
        let progress = Arc::new(|_, _| true);
        let made = self
            .context
            .deployment
            .snapshot(to, s3, sealer, What::default(), progress);
        let made = made.await?;
        for missing in &made.created.missing {
            tracing::error!(
                tenant = missing.tenant,
                why = missing.why,
                "a tenant is not shipped"
            );
        }
        let snapshot = made.created.snapshot;
        self.kept = Some(Kept::of(&made.control, &made.audit));
        self.changes = made.changes;
        self.after_ms = made.taken_ms;
        self.anchor = Some(snapshot);
        self.since = Since {
            snapshot_bytes: made.created.bytes,
            began: Some(Instant::now()),
            dek_id: Some(made.sealer.dek_id),
            ..Since::default()
        };
        self.seals_with(made.sealer);
        for why in &made.created.findings {
            tracing::warn!(why, "the repository is not as it was written");
        }
        self.context.report.shipped(self.after_ms);
        let (epoch, shown) = (self.epoch, self.repository.shown());
        let said = format!("epoch {epoch} of {shown} goes on from snapshot {snapshot}");
        tracing::info!(epoch, snapshot, repository = shown, "shipping");
        self.context.record(said).await
    }

    /// Packs are sealed with this from now on; nothing is sealed any more with another key that was
    /// before.
    fn seals_with(&mut self, sealer: ArchiveSealer) {
        let before = self.sealer.take().map(|before| before.dek_id);
        let before = before.filter(|before| *before != sealer.dek_id);
        self.replaced
            .extend(before.map(|before| before.to_string()));
        let _its_own = self.replaced.remove(&sealer.dek_id.to_string());
        self.sealer = Some(sealer);
    }

    /// Ships until the server ends, or something is lost.
    pub(super) async fn ship(&mut self) -> Result<Ended, BackupError> {
        let log = self.log()?;
        loop {
            let interval = self.context.shipping.interval;
            let mut stop = self.context.stop.clone();
            let stopping = tokio::select! {
                () = tokio::time::sleep(interval) => false,
                () = log.woken() => false,
                // Whoever could tell is gone.
                _stop = stop.wait_for(|stop| *stop) => true,
            };
            panic_point!("ship::look");
            let mut looked = self.look(&log).await;
            if stopping && looked.is_ok() && !self.storing.is_empty() {
                looked = match self.stored(true).await {
                    Ok(()) => self.look(&log).await,
                    Err(error) => Err(error.into()),
                };
            }
            match looked {
                Ok(()) => {}
                Err(Failed::Broken(why)) => return Ok(Ended::Broken(why)),
                Err(Failed::Error(error)) => return Err(error),
            }
            let oldest = log.oldest_ms();
            let late = oldest.map_or(0, |oldest| (clock::now_ms() - oldest).max(0));
            metrics::BACKUP_LATE.set(late as f64 / 1000.0);
            if stopping {
                // It may be the first under a new data key of the control file.
                if let Some(further) = self.further.take() {
                    drop(further.await);
                }
                return Ok(Ended::Stopped);
            }
            self.go_further().await;
        }
    }

    /// Ships what there is, and nothing where nothing changed.
    async fn look(&mut self, log: &Arc<sqlite::CommitLog>) -> Result<(), Failed> {
        self.stored(false).await?;
        let deployment = self.context.deployment.clone();
        self.next
            .manifests
            .extend(deployment.envelope.take_published());
        let changes = deployment.control.changes();
        let is_control = |path: &PathBuf| data_dir_name(path) == crate::control::FILE_NAME;
        let control_changed =
            changes != self.changes || self.again || self.next.manifests.iter().any(is_control);
        self.next.manifests.retain(|path| !is_control(path));
        let nothing = !log.waits()
            && !control_changed
            && self.next.manifests.is_empty()
            && self.next.bases.is_empty();
        if nothing {
            return Ok(());
        }
        let (boundary, frozen) = if control_changed {
            self.instant().await?
        } else {
            (log.boundary()?, None)
        };
        // Nothing is sealed any more with a data key that was replaced.
        let (live, sealer) = (&deployment.control, self.sealer.as_ref());
        if frozen.is_none() && live.has_other_key(sealer.map(|sealer| sealer.dek_id)) {
            return Ok(());
        }
        // No file of this instant has an older manifest than the control file knows of.
        let late = deployment.envelope.take_published();
        self.again = late.iter().any(is_control);
        let late = late.into_iter().filter(|path| !is_control(path));
        self.next.manifests.extend(late);
        for begun in boundary.begun {
            self.base(begun).await?;
        }
        if let Some(frozen) = &frozen {
            // It is asked for where the next pack is proven.
            let name = sha256(frozen.manifest.as_bytes());
            if self.control_manifest.as_ref() != Some(&name) {
                let _stored = self.manifest(&frozen.manifest).await?;
                self.control_manifest = Some(name);
            }
            self.seals_with(frozen.sealer.clone());
        }
        let manifests = self.manifests().await?;
        crash_point!("ship::named");
        let boundary = Boundary {
            begun: Vec::new(),
            ..boundary
        };
        let has_control = frozen.is_some();
        self.packs(log, boundary, frozen, manifests).await?;
        match has_control {
            true => self.changes = changes,
            false => self.again |= control_changed,
        }
        Ok(())
    }

    /// An instant of all tenants, the control file and the audit log. Commits wait until the
    /// control file is held, and not until it is read. Where somebody has that for long (the
    /// key provider does not answer, say), it is left for a later instant.
    async fn instant(&self) -> Result<(Boundary, Option<Frozen>), Failed> {
        let deployment = &self.context.deployment;
        let instants = deployment.tenants.instants().ok_or(BackupError::NoFiles)?;
        let control = Arc::clone(&deployment.control);
        let taken = blocking(move || {
            for _try in 0..TRIES {
                let gate = instants.between_commits();
                if let Some(held) = control.try_hold() {
                    let boundary = instants.log().boundary();
                    drop(gate);
                    let path = control.path();
                    let frozen = held
                        .freeze(path, LogPart::all)
                        .map_err(BackupError::io("read", path));
                    return Ok::<_, Failed>((boundary?, Some(frozen?)));
                }
                drop(gate);
                std::thread::sleep(BETWEEN_TRIES);
            }
            Ok((instants.log().boundary()?, None))
        });
        taken.await
    }

    /// Makes a further snapshot once many packs go on from the last one, or it is sealed under a
    /// data key of the control file that was replaced and that no rotation of the master key
    /// wraps again. Shipping goes on meanwhile.
    async fn go_further(&mut self) {
        if let Some(further) = self.further.take_if(|further| further.is_finished()) {
            match further.await {
                Ok(Ok(made)) => {
                    tracing::info!(snapshot = made.created.snapshot, "a further snapshot");
                }
                Ok(Err(error)) => {
                    metrics::SHIPPING_FAILED.increment(1);
                    tracing::warn!(why = error_chain(&error), "a further snapshot was not made");
                }
                // A panic is in the log.
                Err(_panic) => {}
            }
        }
        let most = MOST_BYTES.max(self.since.snapshot_bytes);
        let dek_id = self.sealer.as_ref().map(|sealer| sealer.dek_id);
        let due = self.since.packs >= most_packs()
            || self.since.bytes >= most
            || (self.since.packs > 0 && is_old(self.since.began))
            || self.since.dek_id != dek_id;
        let Some(sealer) = self
            .sealer
            .clone()
            .filter(|_| due && self.further.is_none())
        else {
            return;
        };
        self.since = Since {
            snapshot_bytes: self.since.snapshot_bytes,
            began: Some(Instant::now()),
            dek_id,
            ..Since::default()
        };
        let context = self.context.clone();
        self.further = Some(short_task(async move {
            let (to, s3) = (&context.shipping.to, &context.shipping.s3);
            let progress = Arc::new(|_, _| true);
            let made = context
                .deployment
                .snapshot(to, s3, &sealer, What::default(), progress);
            made.await
        }));
    }
}

fn data_dir_name(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

/// Whether a snapshot is made for the day: what is older than commits are kept goes back to those.
fn is_old(began: Option<Instant>) -> bool {
    began.is_some_and(|began| began.elapsed() >= DAY)
}

/// How many packs may go on from a snapshot.
fn most_packs() -> u64 {
    ::fail::fail_point!("ship::most-packs", |_| 3);
    MOST_PACKS
}

/// How often the control file is asked for at an instant.
const TRIES: u32 = 40;
const DAY: Duration = Duration::from_secs(24 * 3600);
const BETWEEN_TRIES: Duration = Duration::from_millis(5);
/// Packs that are read for an instant, at most, as long as snapshots are made.
const MOST_PACKS: u64 = 10_000;
/// The same in bytes, or those of all files where that is more: 1 GiB.
const MOST_BYTES: u64 = 1 << 30;
