//! A snapshot: everything at one moment, of a deployment that runs or not.
//!
//! 1. The moment ([`TenantProvider::freeze`]): commits wait; control file and audit log are read,
//!    open tenants are noted.
//! 2. Each file is read as it was then, and the pages that the repository does not have are added
//!    to it, with the file's manifest.
//! 3. The catalogue is created: only now is there a snapshot.
//!
//! A tenant whose files cannot be read is named in the catalogue with the reason, and keeps no
//! other from being saved.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use nimbus_manifests::TenantId;
use serde::{Deserialize, Serialize};

use super::catalogue::{Catalogue, ShippedAt, StoredFile, StoredPart};
use super::changes::Source;
use super::room::AT_ONCE;
use super::saving::{Frozen, Saving};
use super::sealed::is_same_key;
use super::{BackupError, Location, Repository, S3Settings};
use crate::audit::LogPart;
use crate::clock;
use crate::control::{self, ArchiveSealer, Control, FrozenControl};
use crate::data_dir;
use crate::envelope::{Envelope, Event, EventKind, EventOutcome};
use crate::failpoints::crash_point;
use crate::runtime::{Progress, blocking};
use crate::tenants::TenantProvider;

/// What a snapshot is made of.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// The core, which records events.
    pub envelope: Envelope,
    /// The control file.
    pub control: Arc<Control>,
    /// The tenants.
    pub tenants: Arc<dyn TenantProvider>,
    /// Held by who makes a snapshot: one at a time.
    pub turn: Arc<tokio::sync::Mutex<()>>,
}

/// Of what a snapshot is made, and how.
#[derive(Debug, Clone, Default)]
pub struct What {
    /// One tenant alone, with the control file and the audit log.
    pub only: Option<TenantId>,
    /// Whether it goes on in the place of another line of the deployment.
    pub take_over: bool,
    /// Whether every page is read and hashed, whatever says that it did not change.
    pub read_all: bool,
}

/// A snapshot, and what it has of the control file and the audit log.
pub(super) struct Made {
    pub(super) created: Created,
    pub(super) taken_ms: i64,
    pub(super) control: Arc<Vec<u8>>,
    /// How often the control file had changed, at least.
    pub(super) changes: u64,
    pub(super) audit: Vec<StoredPart>,
    pub(super) sealer: ArchiveSealer,
}

/// A snapshot that was made.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = BackupCreated)]
pub struct Created {
    /// The snapshot's number.
    pub snapshot: u64,
    /// The repository.
    pub repository: String,
    /// When, RFC 3339, UTC.
    pub taken: String,
    /// How many tenants are in it.
    #[schema(value_type = u64)]
    pub tenants: usize,
    /// Bytes of the files that it holds.
    pub bytes: u64,
    /// Bytes that were added to the repository for it.
    pub added: u64,
    /// How long commits waited, in microseconds.
    pub held_up_us: u64,
    /// Tenants that could not be read.
    pub missing: Vec<MissingTenant>,
    /// What is not right in the repository, and kept nothing from being saved.
    #[serde(default)]
    #[schema(required)]
    pub findings: Vec<String>,
}

/// A tenant that could not be read.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MissingTenant {
    /// The tenant.
    pub tenant: String,
    /// Why.
    pub why: String,
}

impl Deployment {
    /// Makes a snapshot in the repository at `location`, which is made where there is none. A
    /// repository in which another line of this deployment goes on is refused, unless this one
    /// is to take over.
    ///
    /// # Errors
    ///
    /// [`BackupError`]; there is no new snapshot then.
    pub async fn create(
        &self,
        location: &Location,
        s3: &S3Settings,
        what: What,
        progress: Progress,
    ) -> Result<Created, BackupError> {
        let control = Arc::clone(&self.control);
        let Some(sealer) = blocking(move || control.archive_sealer()).await else {
            return Err(BackupError::Plaintext);
        };
        let subject = match &what.only {
            Some(tenant) => data_dir::subject(tenant),
            None => control::subject(),
        };
        let event = Event::new(EventKind::Backup, EventOutcome::Begun).about(&subject);
        let event = event.saying(format!("to {location}"));
        self.envelope.record(event.clone()).await?;
        let made = self.snapshot(location, s3, &sealer, what, progress).await;
        let made = made.map(|made| made.created);
        let ended = match &made {
            Ok(made) => Event::new(EventKind::Backup, EventOutcome::Done)
                .about(&subject)
                .saying(format!(
                    "snapshot {} of {} in {location}",
                    made.snapshot, made.taken
                )),
            Err(_) => event.ended(&made),
        };
        let recorded = self.envelope.record(ended).await;
        let made = made?;
        recorded?;
        Ok(made)
    }

    /// A snapshot, which is made anew where a removal takes what it builds on.
    pub(super) async fn snapshot(
        &self,
        location: &Location,
        s3: &S3Settings,
        sealer: &ArchiveSealer,
        what: What,
        progress: Progress,
    ) -> Result<Made, BackupError> {
        let _turn = self.turn.lock().await;
        let mut tries = 1..TRIES;
        loop {
            let progress = Arc::clone(&progress);
            let made = self.attempt(location, s3, sealer, what.clone(), progress);
            match made.await {
                Err(BackupError::RemovedMeanwhile { .. }) if tries.next().is_some() => {}
                made => return made,
            }
        }
    }

    async fn attempt(
        &self,
        location: &Location,
        s3: &S3Settings,
        sealer: &ArchiveSealer,
        what: What,
        progress: Progress,
    ) -> Result<Made, BackupError> {
        let repository =
            Repository::open_or_make(location, s3, &sealer.file_id.to_string()).await?;
        crash_point!("backup::repository-made");
        let What {
            only,
            take_over,
            read_all,
        } = what;
        let mut newest = self.newest(&repository, sealer, take_over).await?;
        // After the newest entry is known: a later removal is met at the commit.
        let condemned = repository.condemned(&self.envelope).await?;
        let frozen = Arc::new(Mutex::new(None));
        let (control, read) = (Arc::clone(&self.control), Arc::clone(&frozen));
        let changes = self.control.changes();
        let rest = move || {
            let frozen = control.freeze(LogPart::all);
            *read.lock().unwrap_or_else(PoisonError::into_inner) = Some(frozen);
        };
        let Some(moment) = self.tenants.freeze(Box::new(rest)).await else {
            return Err(BackupError::NoFiles);
        };
        let frozen = frozen.lock().unwrap_or_else(PoisonError::into_inner).take();
        let frozen = frozen.unwrap_or_else(|| Err(io::ErrorKind::Interrupted.into()));
        let path = Control::path_in(std::path::Path::new(""));
        let mut frozen = frozen.map_err(BackupError::io("read", path))?;
        let mark = moment.mark;
        let capture = Arc::clone(&moment.capturing.capture);
        let due = match &only {
            None => capture.due(),
            Some(tenant) if capture.due().contains(tenant) => vec![tenant.clone()],
            Some(tenant) => return Err(BackupError::NoTenant(tenant.to_string())),
        };
        crash_point!("backup::frozen");
        let (bytes, live, sealer) = (
            Arc::new(std::mem::take(&mut frozen.bytes)),
            Arc::clone(&self.control),
            frozen.sealer.clone(),
        );
        let of = Arc::clone(&bytes);
        let state = blocking(move || live.look_into_frozen(of, &sealer)).await?;
        self.in_force(&frozen).await?;
        let mut saving = Saving::new(
            &repository,
            newest.before.as_ref(),
            progress,
            &capture,
            &due,
            (Arc::clone(&self.control), state.copies),
        );
        saving.condemned = condemned;
        saving.read_all = read_all;
        let (count, mut rest) = (due.len(), BTreeSet::from_iter(due));
        let next = (0..count).filter_map(|_| capture.next(&mut rest));
        let tenants = stream::iter(next.map(|tenant| saving.tenant(&capture, tenant)));
        let mut tenants: Vec<StoredFile> = tenants.buffer_unordered(AT_ONCE).try_collect().await?;
        let held_up = moment.held_up;
        drop(moment);
        tenants.sort_by(|one, other| one.subject.cmp(&other.subject));
        let FrozenControl {
            manifest,
            log,
            sealer,
            ..
        } = frozen;
        let control = saving
            .file(&manifest, Source::Bytes(Arc::clone(&bytes)))
            .await?;
        let audit = saving.log(log, state.head).await?;
        let shipping = mark
            .position
            .filter(|position| position.shipping.repository == repository.id);
        crash_point!("backup::stored");
        let catalogue = Catalogue {
            number: 0,
            repository: repository.id,
            taken: clock::stamp_of(mark.at_ms),
            previous: None,
            keys_before: Vec::new(),
            line: newest.line,
            tenant: only.map(|tenant| tenant.to_string()),
            shipping: shipping.map(|position| ShippedAt {
                epoch: position.shipping.epoch,
                pack: position.shipping.pack,
                base: position.base,
                afresh: position.afresh,
            }),
            control,
            audit,
            tenants,
        };
        let committed = self.commit(&repository, &sealer, &mut newest, catalogue);
        let (catalogue, sha256) = committed.await?;
        crash_point!("backup::committed");
        let (noting, id, made) = (
            Arc::clone(&self.control),
            repository.id,
            (catalogue.number, sha256),
        );
        blocking(move || noting.note_snapshot(id, made)).await?;
        let missing = |file: &StoredFile| {
            let (tenant, why) = (file.tenant()?, file.missing.clone()?);
            let tenant = tenant.to_string();
            Some(MissingTenant { tenant, why })
        };
        let missing: Vec<_> = catalogue.tenants.iter().filter_map(missing).collect();
        let created = Created {
            snapshot: catalogue.number,
            repository: repository.shown(),
            taken: catalogue.taken.clone(),
            tenants: catalogue.tenants.len() - missing.len(),
            bytes: catalogue.files().map(|file| file.bytes).sum(),
            added: saving.added.load(Ordering::Relaxed),
            held_up_us: u64::try_from(held_up.as_micros()).unwrap_or(u64::MAX),
            missing,
            findings: newest.findings,
        };
        Ok(Made {
            created,
            taken_ms: mark.at_ms,
            control: bytes,
            changes,
            audit: catalogue.audit,
            sealer,
        })
    }

    /// Refuses a manifest beside the control file by which that does not open. One that it was
    /// opened by needs no key.
    async fn in_force(&self, frozen: &Frozen) -> Result<(), BackupError> {
        if frozen.is_known {
            return Ok(());
        }
        let path = Control::path_in(std::path::Path::new(""));
        let opened = self
            .envelope
            .unseal_apart(&path, frozen.manifest.clone())
            .await?;
        match is_same_key(&opened.archive_key(), &frozen.sealer.key) {
            true => Ok(()),
            false => Err(BackupError::NotSaved(
                "the manifest beside the control file holds another key than the one in use"
                    .to_owned(),
            )),
        }
    }
}

/// How often a snapshot is made anew because a removal took what it builds on.
const TRIES: u32 = 4;
