//! One epoch of shipping: snapshots, and the packs that go on from them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use nimbus_manifests::{DekId, SealedManifest, TenantId};
use tokio::task::JoinHandle;

use super::super::catalogue::StoredFile;
use super::super::create::{Made, Saving, Source};
use super::super::epoch::Begun;
use super::super::pack::{Data, Pack, PackedBase, PackedGone, PackedManifest, SegmentBuilder};
use super::super::store::Created;
use super::super::{BackupError, Repository, sha256};
use super::kept::Kept;
use super::{FIRST_PAUSE, LONGEST_PAUSE, Work};
use crate::control::{ArchiveSealer, Control, FrozenControl};
use crate::data_dir;
use crate::envelope::{blocking, manifest_path, read_manifest};
use crate::error_chain::error_chain;
use crate::failpoints::crash_point;
use crate::runtime::{panic_point, short_task};
use crate::sqlcipher::wal_frames;
use crate::tenants::sqlite::{self, BegunBase, Boundary, Broken, Frames};
use crate::{clock, metrics};

/// One epoch.
pub(super) struct Session {
    work: Work,
    repository: Repository,
    epoch: u64,
    floor_ms: i64,
    /// What seals packs: that of the control file as it was last shipped.
    sealer: Option<ArchiveSealer>,
    /// The last pack that was formed, and the SHA-256 of what it is chained to.
    number: u64,
    previous: String,
    /// The instant up to which all is shipped.
    after_ms: i64,
    /// The snapshot from which the next pack goes on, where it does not go on from a pack.
    anchor: Option<u64>,
    kept: Option<Kept>,
    /// How often the control file had changed, at least, when it was shipped; and whether its manifest is to be shipped again.
    changes: u64,
    again: bool,
    /// What is in the next pack.
    next: Next,
    /// Large files that are being stored.
    storing: Vec<JoinHandle<Result<PackedBase, BackupError>>>,
    /// A further snapshot, so that not too many packs are to be read for an instant.
    further: Option<JoinHandle<Result<Made, BackupError>>>,
    since: Since,
}

/// What was shipped since the last snapshot.
#[derive(Debug, Default)]
struct Since {
    packs: u64,
    bytes: u64,
    snapshot_bytes: u64,
    /// The data key of the control file that seals it.
    dek_id: Option<DekId>,
}

#[derive(Default)]
struct Next {
    manifests: BTreeSet<PathBuf>,
    bases: Vec<PackedBase>,
}

/// How shipping ended.
pub(super) enum Ended {
    /// The server ends, and all is shipped.
    Stopped,
    /// Something that was committed could not be kept.
    Broken(String),
}

/// Why a look ended without everything shipped.
enum Failed {
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
        Self::Error(error.into())
    }
}

impl Session {
    pub(super) fn new(work: Work, repository: Repository, begun: Begun) -> Self {
        Self {
            work,
            repository,
            epoch: begun.epoch,
            floor_ms: begun.floor_ms,
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
        }
    }

    fn log(&self) -> Result<Arc<sqlite::CommitLog>, BackupError> {
        let instants = self.work.deployment.tenants.instants();
        let instants = instants.ok_or(BackupError::NoFiles)?;
        Ok(Arc::clone(instants.log()))
    }

    /// Begins the log at the moment of a snapshot.
    pub(super) async fn anchor(&mut self, sealer: &ArchiveSealer) -> Result<(), BackupError> {
        for storing in self.storing.drain(..) {
            storing.abort();
        }
        let log = self.log()?;
        let published = self.work.deployment.envelope.take_published();
        drop(published);
        self.next = Next::default();
        let shipping = sqlite::Shipping {
            repository: self.repository.id,
            epoch: self.epoch,
            pack: self.number,
            most_bytes: self.work.shipping.most_bytes,
        };
        log.arm(shipping, self.floor_ms.max(self.after_ms));
        let late = self.floor_ms - clock::now_ms();
        if late > 0 {
            tracing::warn!(
                newest = clock::stamp_of(self.floor_ms),
                "the clock of this machine is behind the newest instant in the repository: times go on from there until it has caught up"
            );
        }
        let (to, s3) = (&self.work.shipping.to, &self.work.shipping.s3);
        let progress = Arc::new(|_, _| true);
        let made = self
            .work
            .deployment
            .snapshot(to, s3, sealer, None, progress);
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
            dek_id: Some(made.sealer.dek_id),
            ..Since::default()
        };
        self.sealer = Some(made.sealer);
        self.work.report.shipped(self.after_ms);
        let (epoch, shown) = (self.epoch, self.repository.shown());
        let said = format!("epoch {epoch} of {shown} goes on from snapshot {snapshot}");
        tracing::info!(epoch, snapshot, repository = shown, "shipping");
        self.work.record(said).await
    }

    /// Ships until the server ends, or something is lost.
    pub(super) async fn ship(&mut self) -> Result<Ended, BackupError> {
        let log = self.log()?;
        loop {
            let interval = self.work.shipping.interval;
            let mut stop = self.work.stop.clone();
            let stopping = tokio::select! {
                () = tokio::time::sleep(interval) => false,
                () = log.woken() => false,
                // Whoever could tell is gone.
                _stop = stop.wait_for(|stop| *stop) => true,
            };
            panic_point!("ship::look");
            match self.look(&log, stopping).await {
                Ok(()) => {}
                Err(Failed::Broken(why)) => return Ok(Ended::Broken(why)),
                Err(Failed::Error(error)) => return Err(error),
            }
            let oldest = log.oldest_ms();
            let late = oldest.map_or(0, |oldest| (clock::now_ms() - oldest).max(0));
            metrics::BACKUP_LATE.set(late as f64 / 1000.0);
            if stopping {
                return Ok(Ended::Stopped);
            }
            self.go_further().await;
        }
    }

    /// Ships what there is, and nothing where nothing changed.
    async fn look(&mut self, log: &Arc<sqlite::CommitLog>, stopping: bool) -> Result<(), Failed> {
        self.stored(stopping).await?;
        let deployment = self.work.deployment.clone();
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
            let (boundary, frozen) = self.instant().await?;
            (boundary?, Some(frozen))
        } else {
            (log.boundary()?, None)
        };
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
            let sealed = SealedManifest::parse(&frozen.manifest);
            let sealed = sealed.map_err(|error| unreadable(&error))?;
            let _stored = self.manifest(&sealed).await?;
            self.sealer = Some(frozen.sealer.clone());
        }
        let manifests = self.manifests().await?;
        crash_point!("ship::named");
        let boundary = Boundary {
            begun: Vec::new(),
            ..boundary
        };
        self.packs(log, boundary, frozen, manifests).await?;
        self.changes = changes;
        Ok(())
    }

    /// An instant of all tenants, the control file and the audit log. Commits wait until the control file is held, and not until it is read.
    async fn instant(&self) -> Result<(Result<Boundary, Broken>, FrozenControl), BackupError> {
        let deployment = &self.work.deployment;
        let instants = deployment.tenants.instants().ok_or(BackupError::NoFiles)?;
        let control = Arc::clone(&deployment.control);
        let frozen = blocking(move || {
            let gate = instants.between_commits();
            control.freeze_at(|| {
                let boundary = instants.log().boundary();
                drop(gate);
                boundary
            })
        });
        let path = Control::path_in(Path::new(""));
        let (frozen, boundary) = frozen.await.map_err(BackupError::io("read", path))?;
        Ok((boundary, frozen))
    }

    /// The packs up to a boundary: more than one where much was committed.
    async fn packs(
        &mut self,
        log: &Arc<sqlite::CommitLog>,
        boundary: Boundary,
        frozen: Option<FrozenControl>,
        manifests: Vec<PackedManifest>,
    ) -> Result<(), Failed> {
        let mut rest = Some((frozen, manifests));
        while rest.is_some() {
            let (from, upto) = (Arc::clone(log), boundary.upto);
            let frames = blocking(move || from.take(upto, PACK_BYTES)).await?;
            let taken: u64 = frames.iter().map(|one| one.bytes.len() as u64).sum();
            self.number += 1;
            log.formed(self.number);
            let mut data = Data::default();
            let last_ms = frames.last().map(|one| one.at_ms);
            let mut pack = self.begin_pack(frames, &mut data);
            let mut at_ms = last_ms.unwrap_or(self.after_ms).max(self.after_ms);
            if taken < PACK_BYTES
                && let Some((frozen, manifests)) = rest.take()
            {
                at_ms = boundary.at_ms;
                pack.manifests = manifests;
                pack.bases = std::mem::take(&mut self.next.bases);
                pack.gone = boundary.gone.iter().map(gone).collect();
                if let Some(frozen) = frozen {
                    (pack, data) = self.add_control(pack, data, frozen).await?;
                }
            }
            pack.at = clock::stamp_of(at_ms);
            self.put(pack, data).await?;
            self.after_ms = at_ms;
            self.work.report.shipped(at_ms);
        }
        Ok(())
    }

    fn begin_pack(&self, frames: Vec<Frames>, data: &mut Data) -> Pack {
        let mut segments: BTreeMap<(TenantId, u32), SegmentBuilder> = BTreeMap::new();
        for one in frames {
            let segment = segments.entry((one.tenant, one.base)).or_default();
            for (number, pages, page) in wal_frames(&one.bytes) {
                segment.push(number, pages, page, one.at_ms);
            }
        }
        let segments = segments.into_iter().map(|((tenant, base), segment)| {
            let subject = data_dir::subject(&tenant).to_string();
            segment.finish(subject, base, data)
        });
        Pack {
            epoch: self.epoch,
            number: self.number,
            repository: self.repository.id,
            previous: self.previous.clone(),
            anchor: self.anchor,
            after: clock::stamp_of(self.after_ms),
            at: String::new(),
            control: None,
            audit: None,
            manifests: Vec::new(),
            bases: Vec::new(),
            gone: Vec::new(),
            frames: segments.collect(),
        }
    }

    async fn add_control(
        &mut self,
        mut pack: Pack,
        mut data: Data,
        frozen: FrozenControl,
    ) -> Result<(Pack, Data), BackupError> {
        let Some(mut kept) = self.kept.take() else {
            return Err(BackupError::Stopped);
        };
        let place = (self.epoch, self.number);
        let (pack, data, kept) = blocking(move || {
            let sealed = SealedManifest::parse(&frozen.manifest);
            let sealed = sealed.map_err(|error| unreadable(&error))?;
            let claims = sealed.claims();
            pack.control = Some(StoredFile {
                subject: claims.subject().to_string(),
                file_id: claims.file_id().to_string(),
                dek_id: claims.deks()[0].id.to_string(),
                manifest: sha256(&frozen.manifest),
                bytes: frozen.bytes.len() as u64,
                runs: kept.control(&frozen.bytes, place, &mut data),
                missing: None,
                over: None,
            });
            let log = kept.log(frozen.log, &mut data);
            pack.audit = log.map_err(BackupError::io("read", crate::audit::FILE_NAME))?;
            Ok::<_, BackupError>((pack, data, kept))
        })
        .await?;
        self.kept = Some(kept);
        Ok((pack, data))
    }

    /// Stores a pack, however often that takes.
    async fn put(&mut self, pack: Pack, data: Data) -> Result<(), BackupError> {
        let Some(sealer) = self.sealer.clone() else {
            return Err(BackupError::Stopped);
        };
        let name = Pack::name(pack.epoch, pack.number);
        let object = blocking(move || pack.object(&sealer, data.bytes())).await;
        crash_point!("ship::formed");
        let stored = object.clone();
        let created = self.insist(move |repository| {
            let (name, object) = (name.clone(), stored.clone());
            async move { repository.store.create(&name, object).await }.boxed()
        });
        let created = created.await?;
        crash_point!("ship::stored");
        if let Created::Other(_) = created {
            return Err(self.repository.replaced(self.epoch));
        }
        metrics::PACKS_SHIPPED.increment(1);
        self.since.packs += 1;
        self.since.bytes += object.len() as u64;
        self.previous = sha256(&object);
        self.anchor = None;
        match self.repository.is_replaced(self.epoch).await {
            Ok(true) => Err(self.repository.replaced(self.epoch)),
            Ok(false) => Ok(()),
            // The next pack asks again.
            Err(error) => {
                metrics::SHIPPING_FAILED.increment(1);
                tracing::warn!(
                    why = error_chain(&error),
                    "whether another server ships is not known"
                );
                Ok(())
            }
        }
    }

    /// Stores something that the next packs name, or a pack: again and again until it is there, or the server ends.
    async fn insist<T>(
        &mut self,
        mut work: impl FnMut(Repository) -> BoxFuture<'static, Result<T, BackupError>> + Send,
    ) -> Result<T, BackupError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match work(self.repository.clone()).await {
                Err(error @ BackupError::Store { .. }) => error,
                done => return done,
            };
            metrics::SHIPPING_FAILED.increment(1);
            let why = error_chain(&error);
            tracing::warn!(
                why,
                "the repository does not take what is shipped; it is tried again"
            );
            self.work.report.fails(why);
            if *self.work.stop.borrow() || self.work.wait(pause).await {
                return Err(error);
            }
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    /// A file that was begun: a small one is stored before the next pack, a large one meanwhile.
    async fn base(&mut self, begun: BegunBase) -> Result<(), BackupError> {
        let pages = {
            let captured = begun
                .captured
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            captured.pages.pages()
        };
        if pages > SMALL {
            let storing = store_base(self.repository.clone(), Arc::new(begun));
            self.storing.push(short_task(storing));
            return Ok(());
        }
        let begun = Arc::new(begun);
        let stored =
            self.insist(move |repository| store_base(repository, Arc::clone(&begun)).boxed());
        let stored = stored.await?;
        self.next.bases.push(stored);
        crash_point!("ship::base-stored");
        Ok(())
    }

    /// Takes over large files that are stored by now; all of them where `wait` says so.
    async fn stored(&mut self, wait: bool) -> Result<(), BackupError> {
        let mut left = Vec::new();
        for storing in std::mem::take(&mut self.storing) {
            if !wait && !storing.is_finished() {
                left.push(storing);
                continue;
            }
            match storing.await {
                Ok(stored) => self.next.bases.push(stored?),
                Err(_panic) => return Err(BackupError::Stopped),
            }
        }
        self.storing = left;
        Ok(())
    }

    /// Stores the manifests that changed.
    async fn manifests(&mut self) -> Result<Vec<PackedManifest>, BackupError> {
        let mut packed = Vec::new();
        for path in std::mem::take(&mut self.next.manifests) {
            let sidecar = manifest_path(&path);
            match blocking(move || read_manifest(&sidecar)).await {
                Ok(Some(sealed)) => packed.push(self.manifest(&sealed).await?),
                // Deleted since.
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a manifest cannot be shipped");
                }
            }
        }
        Ok(packed)
    }

    async fn manifest(&mut self, sealed: &SealedManifest) -> Result<PackedManifest, BackupError> {
        let (claims, text) = (sealed.claims(), Bytes::copy_from_slice(sealed.as_bytes()));
        let packed = PackedManifest {
            subject: claims.subject().to_string(),
            file_id: claims.file_id().to_string(),
            dek_ids: claims.deks().iter().map(|dek| dek.id.to_string()).collect(),
            manifest: sha256(&text),
        };
        let (file_id, dek_id) = (&packed.file_id, &packed.dek_ids[0]);
        let name = format!("keys/{file_id}/{dek_id}/{}", packed.manifest);
        let stored = self.insist(move |repository| {
            let (name, text) = (name.clone(), text.clone());
            async move { repository.add(&name, text).await }.boxed()
        });
        stored.await?;
        Ok(packed)
    }

    /// Makes a further snapshot once many packs go on from the last one, or it is sealed under a data key of the control file that was replaced
    /// and that no rotation of the master key wraps again. Shipping goes on meanwhile.
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
                Err(_told) => {}
            }
        }
        let most = MOST_BYTES.max(self.since.snapshot_bytes);
        let dek_id = self.sealer.as_ref().map(|sealer| sealer.dek_id);
        let due = self.since.packs >= most_packs()
            || self.since.bytes >= most
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
            dek_id,
            ..Since::default()
        };
        let work = self.work.clone();
        self.further = Some(short_task(async move {
            let (to, s3) = (&work.shipping.to, &work.shipping.s3);
            let progress = Arc::new(|_, _| true);
            let made = work.deployment.snapshot(to, s3, &sealer, None, progress);
            made.await
        }));
    }
}

async fn store_base(
    repository: Repository,
    begun: Arc<BegunBase>,
) -> Result<PackedBase, BackupError> {
    let manifest = {
        let captured = begun
            .captured
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        captured.manifest.clone()
    };
    let source = Source::Tenant(Arc::clone(&begun.captured));
    let file = Saving::afresh(&repository).file(&manifest, source).await?;
    Ok(PackedBase {
        base: begun.number,
        at: clock::stamp_of(begun.at_ms),
        dek_id: begun.dek_id.clone().unwrap_or_else(|| file.dek_id.clone()),
        file,
    })
}

fn gone(gone: &sqlite::Gone) -> PackedGone {
    PackedGone {
        subject: data_dir::subject(&gone.tenant).to_string(),
        at: clock::stamp_of(gone.at_ms),
        before: gone.before,
    }
}

fn data_dir_name(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

fn unreadable(error: &nimbus_manifests::ParseError) -> BackupError {
    BackupError::io("read", "a manifest")(std::io::Error::other(error.to_string()))
}

/// How many packs may go on from a snapshot.
fn most_packs() -> u64 {
    ::fail::fail_point!("ship::most-packs", |_| 3);
    MOST_PACKS
}

/// Frames of a pack, about: 24 MiB.
const PACK_BYTES: u64 = 24 << 20;
/// A file of so many pages is stored before the pack that has its first frames: 16 MiB.
const SMALL: u32 = 4096;
/// Packs that are read for an instant, at most, as long as snapshots are made.
const MOST_PACKS: u64 = 10_000;
/// The same in bytes, or those of all files where that is more: 1 GiB.
const MOST_BYTES: u64 = 1 << 30;
