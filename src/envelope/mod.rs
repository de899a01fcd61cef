//! The core: from a subject to its key, and nothing else holds keys.
//!
//! A protected file and its manifest go through states that a crash can cut short. The sequence of
//! a creation, and what the next start finds after a kill between two steps:
//!
//! | step | on disk after it | next start |
//! | --- | --- | --- |
//! | 1. manifest `new` published | manifest `new`, no file | [`Prepared::Keyed`] in [`Stage::Initialise`]: initialise again, same key |
//! | 2. file initialised and flushed | manifest `new`, file | the same |
//! | 3. manifest `ready` mirrored | manifest `new`, file, mirror `ready` | [`Stage::Initialised`]: it exists; the first opening goes on with 4 |
//! | 4. manifest `ready` published | manifest `ready`, file | open |
//!
//! The mirror is always written before the sidecar, so that a durable sidecar never lacks one;
//! `new` manifests, whose files hold nothing, are not mirrored. So a copy in the mirror proves that
//! a file exists, and which of its manifests is the newest: see `standing`.

mod audit;
mod error;
mod file;
mod hold;
mod keyring;
mod lease;
mod metered;
mod probe;
mod rekey;
mod rewrap;
mod standing;
mod store;
mod table;
mod unwrap;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use arc_swap::ArcSwap;
use nimbus_keyproviders::{OsRandom, ProviderError, RandomError, SecureRandom};
use nimbus_manifests::{
    Cipher, DekEntry, DekId, FileId, Manifest, SealedManifest, State, Subject, TenantId, Timestamp,
    WrapContext,
};

pub use audit::{AuditError, AuditSink, Event, EventKind, EventOutcome};
pub(crate) use error::migrate_command;
pub use error::{EnvelopeError, Trouble};
pub(crate) use file::HeldLease;
pub use file::{KeyedFile, Opened, PlainFile, Prepared, Stage};
pub use hold::{Holder, Revocation};
pub use keyring::{KeyRing, Mapped};
pub(crate) use lease::LeaseStanding;
pub use lease::{LeaseReport, Terms, Trouble as KeyTrouble};
pub use metered::metered;
pub(crate) use probe::SQLITE_MAGIC as PLAIN_SQLITE;
pub use probe::{FileKind, classify};
pub use rewrap::{Recipients, Rewrap, Rewrapped};
pub(crate) use store::CUT_SHORT;
pub use store::{ReadError, manifest_path, read as read_manifest};
pub use table::Intent;

use crate::clock::{self, Moment};
use crate::data_dir::parent;
use crate::error_chain::error_chain;
use crate::failpoints::crash_point;
use crate::runtime::blocking;
use hold::Holders;
use lease::Leases;
use standing::Standing;
use store::Publish;
use table::Step;
use unwrap::Failure;

/// Where the core takes the time from; tests inject their own.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The time now, UTC to the second.
    fn now(&self) -> Timestamp;

    /// A moment that only moves forward, for leases.
    fn moment(&self) -> Moment {
        Moment::now()
    }
}

/// The clock of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let seconds = clock::now().as_second();
        Timestamp::from_unix(seconds).expect("the clock is held between the years 1970 and 9998")
    }
}

/// What the control file said when a manifest's copy was written or read.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct MirrorError(Box<dyn std::error::Error + Send + Sync>);

impl MirrorError {
    /// Wraps the control file's own error.
    pub fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(source.into())
    }

    /// What the key provider said, where the control file's own key is withheld.
    fn withheld(&self) -> Option<&ProviderError> {
        let why: Option<&Arc<ProviderError>> = self.0.source()?.downcast_ref();
        why.map(|why| &**why)
    }
}

/// The copies of one manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copies {
    /// What a rotation is about to publish, or has published.
    pub announced: Option<Vec<u8>>,
    /// What was published, or was about to be.
    pub settled: Option<Vec<u8>>,
}

impl Copies {
    /// All of them, the newest first.
    pub fn all(&self) -> impl Iterator<Item = &[u8]> {
        self.announced
            .iter()
            .chain(&self.settled)
            .map(Vec::as_slice)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all().next().is_none()
    }
}

/// The mirror, and the directory of the files that it knows. Copies of them elsewhere are none of
/// its business.
#[derive(Debug, Clone)]
struct Mirror {
    copies: Arc<dyn ManifestMirror>,
    home: PathBuf,
    /// The same as it was named, from the root.
    named: PathBuf,
}

/// `path` from the root, by its text alone.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Where a copy of each manifest is kept, so that a lost sidecar can be put back. All calls block
/// and are durable when they return.
pub trait ManifestMirror: fmt::Debug + Send + Sync {
    /// Keeps each manifest as the one copy of its subject's, all in one go.
    ///
    /// # Errors
    ///
    /// [`MirrorError`] when they are not all durable.
    fn put_many(&self, manifests: &[(&Subject, &[u8])]) -> Result<(), MirrorError>;

    /// Keeps each manifest beside the copy that there is: it is about to be published under another
    /// key, and until that is done nobody knows which of the two keys will be left.
    ///
    /// # Errors
    ///
    /// [`MirrorError`] when they are not all durable.
    fn announce(&self, manifests: &[(&Subject, &[u8])]) -> Result<(), MirrorError>;

    /// The copies of `subject`'s manifest.
    ///
    /// # Errors
    ///
    /// [`MirrorError`] when the control file cannot be read.
    fn get(&self, subject: &Subject) -> Result<Copies, MirrorError>;

    /// Whose manifests there are copies of, but for tenants that are being deleted.
    ///
    /// # Errors
    ///
    /// [`MirrorError`] when the control file cannot be read.
    fn subjects(&self) -> Result<Vec<Subject>, MirrorError>;

    /// Whose manifests were announced and not put since.
    ///
    /// # Errors
    ///
    /// [`MirrorError`] when the control file cannot be read.
    fn announced(&self) -> Result<Vec<Subject>, MirrorError>;

    /// Tenants whose deletion has begun and not ended.
    ///
    /// # Errors
    ///
    /// [`MirrorError`].
    fn going(&self) -> Result<Vec<TenantId>, MirrorError>;

    /// Forgets the copies of `subject`'s manifest, if there are any.
    ///
    /// # Errors
    ///
    /// [`MirrorError`] when their absence is not durable.
    fn remove(&self, subject: &Subject) -> Result<(), MirrorError>;
}

/// The core: opens and creates protected files under the configured keys, or plaintext ones when
/// encryption is off.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// Shared by all clones: a rotation changes it under a running server.
    keys: Option<Arc<ArcSwap<KeyRing>>>,
    /// Held shared by whoever writes one manifest, alone by who replaces many: see [`rewrap`].
    publishing: Arc<RwLock<()>>,
    mirror: Option<Mirror>,
    published: Arc<Published>,
    audit: Arc<dyn AuditSink>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn SecureRandom>,
    leases: Arc<Leases>,
    holders: Arc<Holders>,
}

impl Envelope {
    /// A core that encrypts every file under `keys`.
    #[must_use]
    pub fn new(keys: KeyRing) -> Self {
        Self::with(Some(keys), Arc::new(SystemClock), Arc::new(OsRandom))
    }

    /// A core for `--encryption-key-provider none`: it makes and opens plaintext files, and refuses
    /// encrypted ones.
    #[must_use]
    pub fn plaintext() -> Self {
        Self::with(None, Arc::new(SystemClock), Arc::new(OsRandom))
    }

    /// A core with its clock and randomness given.
    #[must_use]
    pub fn with(
        keys: Option<KeyRing>,
        clock: Arc<dyn Clock>,
        random: Arc<dyn SecureRandom>,
    ) -> Self {
        Self {
            keys: keys.map(|keys| Arc::new(ArcSwap::from_pointee(keys))),
            publishing: Arc::default(),
            mirror: None,
            published: Arc::default(),
            audit: Arc::new(audit::TraceAlone),
            clock,
            random,
            leases: Arc::new(Leases::new()),
            holders: Arc::default(),
        }
    }

    /// The same core, which keeps a copy of the manifest of every tenant in the directory `home` in
    /// `mirror`, and goes by those copies.
    #[must_use]
    pub fn with_mirror(self, mirror: Arc<dyn ManifestMirror>, home: &Path) -> Self {
        let mirror = Mirror {
            copies: mirror,
            home: home.canonicalize().unwrap_or_else(|_| home.to_owned()),
            named: absolute(home),
        };
        Self {
            mirror: Some(mirror),
            ..self
        }
    }

    /// The mirror, where it has a copy of the manifest of `path` or is to have one: not of the
    /// control file, whose own copy would help nobody.
    fn mirror_of(&self, path: &Path, subject: &Subject) -> Option<&dyn ManifestMirror> {
        let mirror = self.mirror.as_ref()?;
        let _tenant = subject.tenant()?;
        let same_name = path.file_name() == Some(subject.file_name().as_ref());
        let dir = parent(path);
        // By its name as well: a directory that is gone has no canonical one.
        let at_home = dir == mirror.home
            || absolute(dir) == mirror.named
            || dir.canonicalize().is_ok_and(|dir| dir == mirror.home);
        (same_name && at_home).then_some(&*mirror.copies)
    }

    /// Whose manifests the mirror has copies of: these files exist, or are lost. Blocks.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError::Mirror`].
    pub fn mirrored(&self) -> Result<Vec<Subject>, EnvelopeError> {
        let Some(mirror) = &self.mirror else {
            return Ok(Vec::new());
        };
        let subjects = mirror.copies.subjects();
        subjects.map_err(|source| EnvelopeError::Mirror {
            path: mirror.home.clone(),
            source,
        })
    }

    /// Tenants whose deletion has begun and not ended, as the mirror knows. Blocks.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError::Mirror`].
    pub(crate) fn going(&self) -> Result<Vec<TenantId>, EnvelopeError> {
        let Some(mirror) = &self.mirror else {
            return Ok(Vec::new());
        };
        mirror
            .copies
            .going()
            .map_err(|source| EnvelopeError::Mirror {
                path: mirror.home.clone(),
                source,
            })
    }

    /// The same core, whose key events go to `audit`.
    #[must_use]
    pub fn with_audit(self, audit: Arc<dyn AuditSink>) -> Self {
        Self { audit, ..self }
    }

    /// Records a key event, durably, before what it is about is done.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError::Audit`]: it must not be done then.
    pub async fn record(&self, event: Event) -> Result<(), EnvelopeError> {
        self.record_all(vec![event]).await
    }

    /// As [`Envelope::record`], for many with one flush.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError::Audit`].
    pub async fn record_all(&self, events: Vec<Event>) -> Result<(), EnvelopeError> {
        self.audit
            .record(events)
            .await
            .map_err(EnvelopeError::Audit)
    }

    /// Has a key event recorded soon: one that changes nothing.
    pub fn note(&self, event: Event) {
        self.audit.note(event);
    }

    /// The keys in force; `None` when encryption is off.
    #[must_use]
    pub fn keys(&self) -> Option<Arc<KeyRing>> {
        self.keys.as_ref().map(|keys| keys.load_full())
    }

    /// From now on `keys` are in force, for every clone of this core. Nothing happens when
    /// encryption is off.
    pub fn use_keys(&self, keys: KeyRing) {
        // Whoever publishes under the keys before has done so when this returns.
        let _alone = self
            .publishing
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(in_force) = &self.keys {
            in_force.store(Arc::new(keys));
        }
    }

    /// Applies the opening table to `path`: unwraps and verifies, or draws a key and publishes a
    /// `new` manifest, or refuses.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError`] names the row of the table, or what failed.
    pub async fn prepare(
        &self,
        path: &Path,
        subject: &Subject,
        cipher: Cipher,
        intent: Intent,
    ) -> Result<Prepared, EnvelopeError> {
        if let Some(tenant) = subject.tenant()
            && self.is_locked(tenant)
        {
            return Err(EnvelopeError::Locked {
                tenant: tenant.clone(),
            });
        }
        let (step, manifest) = self.examine(path, subject, cipher, intent).await?;
        let plain = |exists| {
            Ok(Prepared::Plain(PlainFile {
                path: path.to_owned(),
                exists,
            }))
        };
        match (step, manifest, self.keys()) {
            (Step::OpenPlain, ..) => plain(true),
            (Step::CreatePlain, ..) => plain(false),
            (Step::Keyed(stage), Some(sealed), Some(keys)) => {
                let unsealed = self.unseal(path, subject, cipher, sealed, &keys).await;
                unsealed.map(|file| Prepared::Keyed(KeyedFile { stage, ..file }))
            }
            (Step::Create, _, Some(keys)) => self
                .create(path, subject, cipher, &keys)
                .await
                .map(Prepared::Keyed),
            // `decide` takes these steps only with keys and, but for `Create`, a manifest; should
            // that change, fail closed.
            (Step::Keyed(_) | Step::Create, ..) => Err(EnvelopeError::EncryptionOff {
                path: path.to_owned(),
            }),
        }
    }

    /// What the opening table says of `path`, and the manifest that it said it of. No key is used.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError`] names the row of the table.
    async fn examine(
        &self,
        path: &Path,
        subject: &Subject,
        cipher: Cipher,
        intent: Intent,
    ) -> Result<(Step, Option<SealedManifest>), EnvelopeError> {
        let (manifest, kind, standing) = blocking({
            let (this, path, subject) = (self.clone(), path.to_owned(), subject.clone());
            move || this.look(&path, &subject)
        })
        .await?;
        let state = manifest.as_ref().map(|sealed| sealed.claims().state());
        let encryption = self.keys.is_some();
        let step = table::decide(path, state, standing, kind, cipher, encryption, intent)?;
        Ok((step, manifest))
    }

    /// Whether the opening table lets the file of `subject` at `path` be opened. No key is used.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError`] names the row of the table.
    pub(crate) async fn check(
        &self,
        path: &Path,
        subject: &Subject,
        cipher: Cipher,
    ) -> Result<(), EnvelopeError> {
        let examined = self.examine(path, subject, cipher, Intent::Open);
        examined.await.map(drop)
    }

    /// What stands at `path`, its manifest, and how that stands to its copies. Blocks.
    fn look(
        &self,
        path: &Path,
        subject: &Subject,
    ) -> Result<(Option<SealedManifest>, FileKind, Standing), EnvelopeError> {
        let (mut manifest, mut kind) = look(path)?;
        let Some(mirror) = self.mirror_of(path, subject) else {
            return Ok((manifest, kind, Standing::Unknown));
        };
        for _again in 0..LOOKS {
            let copies = mirror
                .get(subject)
                .map_err(|source| EnvelopeError::Mirror {
                    path: path.to_owned(),
                    source,
                })?;
            let standing = match &manifest {
                // Whose it is comes first.
                Some(there) if there.claims().subject() != subject => Standing::Known,
                there => Standing::of(there.as_ref(), &copies),
            };
            let suspect = match standing {
                // The rekey may have ended between the two looks.
                Standing::Older | Standing::Ended(_) => true,
                Standing::Same | Standing::Known => kind == FileKind::Absent,
                Standing::Unknown => false,
            };
            if !suspect {
                return Ok((manifest, kind, standing));
            }
            // Manifest and copies are of one moment only if nobody wrote the manifest meanwhile.
            let (now, kind_now) = look(path)?;
            if now == manifest && kind_now == kind {
                return Ok((manifest, kind, standing));
            }
            (manifest, kind) = (now, kind_now);
        }
        Err(EnvelopeError::ChangedMeanwhile {
            path: path.to_owned(),
        })
    }

    /// Publishes `ready` for a file that was in [`Stage::Initialise`] or [`Stage::Initialised`],
    /// once it is initialised and flushed.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError::Mirror`] or [`EnvelopeError::Io`]; the manifest on disk is then still
    /// `new`, or already `ready`.
    pub async fn publish_ready(&self, file: KeyedFile) -> Result<KeyedFile, EnvelopeError> {
        self.settle(file, Opened::First).await
    }

    /// As [`Envelope::publish_ready`], for a file whose name is durable as well.
    ///
    /// # Errors
    ///
    /// As [`Envelope::publish_ready`].
    pub(crate) async fn publish_named(&self, file: KeyedFile) -> Result<KeyedFile, EnvelopeError> {
        self.make_ready(file, Opened::First, false).await
    }

    /// Makes `file`'s manifest, which has opened it, the mirror's one copy, unless another has
    /// taken its place meanwhile. Cheap when there is nothing to do. Blocks.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError::Mirror`].
    pub fn refresh_mirror(&self, file: &KeyedFile) -> Result<(), EnvelopeError> {
        let subject = file.manifest.subject();
        let Some(mirror) = self.mirror_of(&file.path, subject) else {
            return Ok(());
        };
        let failed = |source| EnvelopeError::Mirror {
            path: file.path.clone(),
            source,
        };
        let sealed = file.seal();
        let copies = mirror.get(subject).map_err(failed)?;
        if copies.all().eq([sealed.as_bytes()]) {
            return Ok(());
        }
        // Nobody publishes between the look and the copy.
        let _alone = self
            .publishing
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if rewrap::is_at_place(&file.path, &sealed) {
            let copies = [(subject, sealed.as_bytes())];
            mirror.put_many(&copies).map_err(failed)?;
        }
        Ok(())
    }

    /// Settles what a rotation that was cut short left announced in the mirror: of two copies of a
    /// manifest, the one that stands in `dir`, or that ends the creation of what stands there,
    /// stays. Where there is none such, both do. Blocks.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError::Mirror`].
    pub fn settle_mirror(&self, dir: &Path) -> Result<(), EnvelopeError> {
        let Some(Mirror {
            copies: mirror,
            home,
            ..
        }) = &self.mirror
        else {
            return Ok(());
        };
        if !dir.canonicalize().is_ok_and(|dir| dir == *home) {
            return Ok(());
        }
        let failed = |source| EnvelopeError::Mirror {
            path: dir.to_owned(),
            source,
        };
        let _alone = self
            .publishing
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let mut settled = Vec::new();
        for subject in mirror.announced().map_err(failed)? {
            let there = store::read(&manifest_path(&dir.join(subject.file_name())));
            let Ok(Some(there)) = there else { continue };
            let copies = mirror.get(&subject).map_err(failed)?;
            // What is byte for byte a copy of ours needs no other proof.
            let stays = |copy: &&[u8]| *copy == there.as_bytes() || standing::ends(&there, copy);
            if let Some(copy) = copies.all().find(stays) {
                settled.push((subject, copy.to_owned()));
            }
        }
        let copies: Vec<_> = settled
            .iter()
            .map(|(subject, copy)| (subject, copy.as_slice()))
            .collect();
        mirror.put_many(&copies).map_err(failed)
    }

    /// Whether the mirror is there to be asked, and has no copy of the manifest of `path`. Blocks.
    pub(crate) fn lacks_copy(&self, path: &Path, subject: &Subject) -> bool {
        let copies = self
            .mirror_of(path, subject)
            .map(|mirror| mirror.get(subject));
        copies.is_some_and(|copies| copies.is_ok_and(|copies| copies.is_empty()))
    }

    /// The copies of the manifest of `path` that the mirror has and that can be read. Blocks.
    pub(crate) fn copies_of(&self, path: &Path, subject: &Subject) -> Vec<SealedManifest> {
        let mirror = self.mirror_of(path, subject);
        let copies = mirror.and_then(|mirror| mirror.get(subject).ok());
        let copies = copies.unwrap_or_default();
        let parsed = copies.all().map(|copy| SealedManifest::parse(copy).ok());
        parsed.flatten().collect()
    }

    /// The file at `path` under `sealed`, a manifest for it wherever that came from; whether its
    /// database opens by it is not known yet.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError`]: the keys in force do not unwrap it, or its MAC is wrong.
    pub(crate) async fn under(
        &self,
        path: &Path,
        sealed: &SealedManifest,
    ) -> Result<KeyedFile, EnvelopeError> {
        let keys = self.keys().ok_or_else(|| EnvelopeError::EncryptionOff {
            path: path.to_owned(),
        })?;
        let (subject, cipher) = (sealed.claims().subject(), sealed.claims().cipher());
        self.unseal(path, subject, cipher, sealed.clone(), &keys)
            .await
    }

    /// Removes the manifest of `path`, durably: whatever is left of the file is then unreadable.
    /// The mirror's copy is the caller's to remove, in the same commit that ends the deletion.
    /// Blocks.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError::Io`].
    pub fn forget(&self, path: &Path) -> Result<(), EnvelopeError> {
        let path = manifest_path(path);
        let _shared = self.publishing.read();
        store::remove(&path).map_err(|source| EnvelopeError::Io {
            action: "remove",
            path,
            source,
        })
    }

    /// Draws a file id and a data key, and publishes the `new` manifest.
    async fn create(
        &self,
        path: &Path,
        subject: &Subject,
        cipher: Cipher,
        keys: &KeyRing,
    ) -> Result<KeyedFile, EnvelopeError> {
        let now = self.clock.now();
        let (file_id, id) = self.draw_ids(now)?;
        let context = WrapContext {
            subject,
            file_id,
            cipher,
            dek_id: id,
        };
        let (dek, wraps, lease) =
            self.generate(keys, &context, now)
                .await
                .map_err(|source| EnvelopeError::Wrap {
                    path: path.to_owned(),
                    source,
                })?;
        let entry = DekEntry {
            id,
            created: now,
            wraps,
        };
        let manifest = Manifest::new(
            subject.clone(),
            file_id,
            cipher,
            State::New,
            1,
            now,
            vec![entry],
        )
        .map_err(|source| EnvelopeError::Invalid {
            path: path.to_owned(),
            source,
        })?;
        let file = KeyedFile {
            path: path.to_owned(),
            manifest,
            dek: Arc::new(dek),
            next: None,
            stage: Stage::Initialise,
            lease: lease.map(Arc::new),
        };
        self.record(Event::new(EventKind::Create, EventOutcome::Done).of(&file.manifest))
            .await?;
        let sealed = file.seal();
        let envelope = self.clone();
        let ring = keys.generation();
        blocking(move || {
            let _shared = envelope.publishing.read();
            // A file that comes to be under keys that a rotation has just replaced would be left
            // behind by it.
            if envelope.keys().map(|keys| keys.generation()) != Some(ring) {
                return Err(EnvelopeError::ChangedMeanwhile { path: file.path });
            }
            envelope.publish_held(&file.path, &sealed, Publish::New)?;
            Ok(file)
        })
        .await
    }

    /// Ids for a new file and its data key.
    fn draw_ids(&self, now: Timestamp) -> Result<(FileId, DekId), RandomError> {
        let (mut file, mut dek) = ([0; 10], [0; 8]);
        self.random.fill(&mut file)?;
        self.random.fill(&mut dek)?;
        let milliseconds = u64::try_from(now.unix()).unwrap_or(0) * 1000;
        let uuid = uuid::Builder::from_unix_timestamp_millis(milliseconds, &file).into_uuid();
        Ok((FileId::from_uuid(uuid), DekId::from_bytes(dek)))
    }

    /// The keys that a manifest of a backup holds; the file itself is not looked at. `path` is for
    /// messages.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError`].
    pub(crate) async fn unseal_apart(
        &self,
        path: &Path,
        sealed: SealedManifest,
    ) -> Result<KeyedFile, EnvelopeError> {
        let Some(keys) = self.keys() else {
            let path = path.to_owned();
            return Err(EnvelopeError::EncryptionOff { path });
        };
        let (subject, cipher) = (sealed.claims().subject().clone(), sealed.claims().cipher());
        self.unseal(path, &subject, cipher, sealed, &keys).await
    }

    /// Unwraps the keys that `sealed` holds, and lets nothing of it count before its MAC was
    /// verified.
    async fn unseal(
        &self,
        path: &Path,
        subject: &Subject,
        cipher: Cipher,
        sealed: SealedManifest,
        keys: &KeyRing,
    ) -> Result<KeyedFile, EnvelopeError> {
        let claims = sealed.claims();
        if claims.subject() != subject {
            return Err(EnvelopeError::SubjectMismatch {
                path: manifest_path(path),
                expected: subject.clone(),
                found: claims.subject().clone(),
            });
        }
        if claims.cipher() != cipher {
            return Err(EnvelopeError::CipherMismatch {
                path: manifest_path(path),
                expected: cipher,
                found: claims.cipher(),
            });
        }
        let mut deks = Vec::with_capacity(claims.deks().len());
        let mut lease = None;
        for entry in claims.deks() {
            let context = WrapContext {
                subject,
                file_id: claims.file_id(),
                cipher,
                dek_id: entry.id,
            };
            let unwrapped = self.unwrap(keys, path, entry, &context).await;
            if let Err(Failure { error, fresh: true }) = &unwrapped {
                // What it claims: nothing of it is verified without the key.
                let event = Event::new(EventKind::UnwrapFailed, EventOutcome::Failed);
                self.note(event.of(claims).saying(error_chain(error)));
            }
            let (dek, held) = unwrapped.map_err(|failure| failure.error)?;
            deks.push(Arc::new(dek));
            lease = lease.or(held);
        }
        let mut deks = deks.into_iter();
        let (Some(dek), next) = (deks.next(), deks.next()) else {
            unreachable!("a manifest holds one data key or two: its parser refuses others")
        };
        let manifest = sealed
            .verify(&dek.manifest_key(&claims.file_id()))
            .map_err(|_mismatch| EnvelopeError::ManifestTampered {
                path: manifest_path(path),
            })?
            .clone();
        let stage = Stage::from(manifest.state());
        Ok(KeyedFile {
            path: path.to_owned(),
            manifest,
            dek,
            next,
            stage,
            lease: lease.map(Arc::new),
        })
    }

    /// Replaces a manifest by the one that follows on it; not one that another operation has put in
    /// its place meanwhile.
    fn replace(&self, path: &Path, sealed: &SealedManifest) -> Result<(), EnvelopeError> {
        let _shared = self.publishing.read();
        let there = store::read(&manifest_path(path)).ok().flatten();
        let (follows, of) = (sealed.claims().revision(), sealed.claims().file_id());
        let before = there.map(|there| (there.claims().revision() + 1, there.claims().file_id()));
        if before != Some((follows, of)) {
            return Err(EnvelopeError::ChangedMeanwhile {
                path: path.to_owned(),
            });
        }
        self.publish_held(path, sealed, Publish::Replace)
    }

    /// Mirrors a manifest, then publishes it beside its file. The caller holds
    /// [`Envelope::publishing`].
    fn publish_held(
        &self,
        path: &Path,
        sealed: &SealedManifest,
        publish: Publish,
    ) -> Result<(), EnvelopeError> {
        let manifest = sealed.claims();
        if manifest.state() != State::New
            && let Some(mirror) = self.mirror_of(path, manifest.subject())
        {
            mirror
                .put_many(&[(manifest.subject(), sealed.as_bytes())])
                .map_err(|source| EnvelopeError::Mirror {
                    path: path.to_owned(),
                    source,
                })?;
            crash_point!("manifest::mirrored");
        }
        let sidecar = manifest_path(path);
        store::write(&sidecar, sealed, publish).map_err(|source| EnvelopeError::Io {
            action: "write",
            path: sidecar,
            source,
        })?;
        self.published.note(path);
        Ok(())
    }

    /// From here on it is remembered whose manifests are published.
    pub(crate) fn watch_manifests(&self) {
        self.published.watched.store(true, Ordering::Relaxed);
    }

    /// The files whose manifests were published since this was last asked.
    pub(crate) fn take_published(&self) -> BTreeSet<PathBuf> {
        std::mem::take(&mut *self.published.paths())
    }
}

/// Whose manifests were published, for who ships them.
#[derive(Debug, Default)]
struct Published {
    watched: AtomicBool,
    paths: Mutex<BTreeSet<PathBuf>>,
}

impl Published {
    fn paths(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, path: &Path) {
        if self.watched.load(Ordering::Relaxed) {
            self.paths().insert(path.to_owned());
        }
    }
}

/// Puts a manifest back beside its file, where none stands. Blocks.
///
/// # Errors
///
/// [`EnvelopeError::Io`].
pub(crate) fn restore_manifest(path: &Path, copy: &SealedManifest) -> Result<(), EnvelopeError> {
    let path = manifest_path(path);
    store::write(&path, copy, Publish::New).map_err(|source| EnvelopeError::Io {
        action: "write",
        path,
        source,
    })
}

/// What stands at `path`, and its manifest.
fn look(path: &Path) -> Result<(Option<SealedManifest>, FileKind), EnvelopeError> {
    let manifest = store::read(&manifest_path(path)).map_err(|error| match error {
        ReadError::Io(source) => EnvelopeError::Io {
            action: "read",
            path: manifest_path(path),
            source,
        },
        ReadError::Parse(source) => EnvelopeError::ManifestUnparsable {
            path: manifest_path(path),
            source,
        },
    })?;
    let kind = classify(path).map_err(|source| EnvelopeError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    Ok((manifest, kind))
}

/// How often a manifest is looked at again that was written meanwhile.
const LOOKS: usize = 8;

#[cfg(test)]
mod tests;
