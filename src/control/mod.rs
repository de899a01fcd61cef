//! `nimbus-control.db`: what the deployment as a whole must remember, in a small redb file that is
//! encrypted like everything else.
//!
//! It keeps the mirror of all manifests, the deletions under way, the tenants' access keys and what
//! is counted of their use. All calls block, except where they say that they read nothing from the
//! file; each write is one durable commit.

mod access_key;
mod access_keys;
mod audit;
mod backups;
mod copy;
mod database;
mod deletions;
mod device;
mod due;
mod error;
mod freeze;
mod locks;
mod manifests;
mod overlay;
mod rekey;
mod tables;
mod usage;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard};

use async_trait::async_trait;
use nimbus_keyproviders::{AuditKey, ProviderError};
use nimbus_manifests::{Cipher, DekId, SealedManifest, Subject, TenantId};
use redb::{Database, WriteTransaction};
use tokio::runtime::{Handle, RuntimeFlavor};

pub use access_key::{AccessKey, AccessKeyId, InvalidKeyName, KeyName, Scope};
pub use access_keys::Record as KeyRecord;
pub use access_keys::{AccessKeys, KeyError, KeyInfo, KeyVerdict, MAX_KEYS};
pub(crate) use access_keys::{KeyIndex, beyond_remembered, sort as sort_keys};
pub use audit::AuditHead;
pub(crate) use copy::{check, swap_to_next_key};
pub use copy::{export_plaintext, import_plaintext};
pub use device::BadBlock;
pub use due::DueIndex;
pub use error::ControlError;
pub(crate) use freeze::{ArchiveSealer, FrozenControl};
pub(crate) use manifests::MirrorSeen;
pub use usage::{
    Identity, InvalidMonth, KEPT_MONTHS, MAX_IDENTITIES, Month, MonthUsage, Sighting, TenantUsage,
    UsageReport,
};

use crate::data_dir::set_aside;
use crate::envelope::{
    CUT_SHORT, Envelope, EnvelopeError, HeldLease, Holder, Intent, KeyedFile, LeaseStanding,
    Opened, Prepared, Revocation, Stage,
};
use crate::runtime::blocking;
use access_keys::KeyTable;
use database::{Inode, Protection, explain};
use usage::IdentityHasher;

/// The control file, open and held for this process alone.
#[derive(Debug)]
pub struct Control {
    state: RwLock<Open>,
    path: PathBuf,
    /// Opens the file again once its key is given out again.
    envelope: Envelope,
    runtime: Handle,
    keys: KeyTable,
    /// A database that several servers share has the keys: identities of others than those here
    /// count.
    keys_are_elsewhere: AtomicBool,
    identities: IdentityHasher,
    /// Grows with each change of the file.
    changes: AtomicU64,
    /// Held while lines of the audit log are written, until their head is; taken before `state`.
    /// The head that could not be written yet.
    chained: Mutex<Option<AuditHead>>,
    /// Copies of manifests: one commit for all that wait.
    mirroring: manifests::Mirroring,
}

#[derive(Debug)]
struct Open {
    /// `None` after a failed read or write, until it is opened again.
    database: Option<Database>,
    /// Which file `database` is.
    inode: Inode,
    key: Key,
    /// What seals the audit log; `None` in plaintext.
    audit: Option<(Arc<AuditKey>, DekId)>,
    /// What seals the catalogues of backups; `None` in plaintext.
    archive: Option<ArchiveSealer>,
    /// The manifest that it was last opened by; `None` in plaintext.
    manifest: Option<SealedManifest>,
}

/// What the file is opened with.
#[derive(Debug)]
enum Key {
    Had(Protection, Option<HeldLease>),
    /// The key provider did not go on saying yes, and the key is wiped; or it is not known which
    /// one the file has. It is asked for again.
    Withheld,
}

impl Open {
    /// Takes the key of `file`, which is the one that the file has now.
    fn hold(&mut self, file: &KeyedFile) {
        self.key = Key::Had(Protection::of(file), file.lease());
        self.audit = Some(sealer(file));
        self.archive = Some(ArchiveSealer::of(file));
        self.manifest = Some(file.seal());
    }
}

/// What seals the audit log, and its name in the lines.
fn sealer(file: &KeyedFile) -> (Arc<AuditKey>, DekId) {
    (Arc::new(file.audit_key()), file.manifest().deks()[0].id)
}

impl Control {
    /// Opens or creates the control file in `dir`, as the opening table says. Reads all of it:
    /// every checksum is verified.
    ///
    /// # Errors
    ///
    /// [`ControlError`]; nothing is created or changed in place of a file that is refused.
    pub async fn open(envelope: &Envelope, dir: &Path) -> Result<Self, ControlError> {
        let path = dir.join(FILE_NAME);
        let prepared = envelope
            .prepare(&path, &subject(), Cipher::Blocks1, Intent::OpenOrCreate)
            .await?;
        let (protection, lease, sealers) = match prepared {
            Prepared::Plain(file) => {
                if !file.exists() {
                    let path = path.clone();
                    blocking(move || database::create(&path, &Protection::Plain, tables::fill))
                        .await?;
                }
                (Protection::Plain, None, None)
            }
            Prepared::Keyed(file) => {
                let file = match file.stage() {
                    Stage::Ready | Stage::Initialised => file,
                    Stage::Initialise => {
                        let file = blocking(move || initialise(file)).await?;
                        envelope.publish_ready(file).await?
                    }
                    Stage::Rekeying { .. } => {
                        let (file, opened) = blocking(move || {
                            let opened = which_key(&file)?;
                            Ok::<_, ControlError>((file, opened))
                        })
                        .await?;
                        envelope.settle(file, opened).await?
                    }
                };
                let sealers = Some((sealer(&file), (ArchiveSealer::of(&file), file.seal())));
                (Protection::of(&file), file.lease(), sealers)
            }
        };
        let (audit, archive) = sealers.unzip();
        let (archive, manifest) = archive.unzip();
        let (envelope, runtime) = (envelope.clone(), Handle::current());
        blocking(move || {
            let (database, inode) = database::open_known(&path, &protection)?;
            let open = Open {
                database: Some(database),
                inode,
                key: Key::Had(protection, lease),
                audit,
                archive,
                manifest,
            };
            let mut control = Self {
                state: RwLock::new(open),
                path,
                envelope,
                runtime,
                keys: KeyTable::default(),
                keys_are_elsewhere: AtomicBool::new(false),
                identities: IdentityHasher::new(&[0; 32]),
                changes: AtomicU64::new(0),
                chained: Mutex::new(None),
                mirroring: manifests::Mirroring::default(),
            };
            control.settle_layout()?;
            control.load_keys()?;
            control.identities = IdentityHasher::new(&*control.identity_key()?);
            Ok(control)
        })
        .await
    }

    /// Where the control file of `dir` lies.
    #[must_use]
    pub fn path_in(dir: &Path) -> PathBuf {
        dir.join(FILE_NAME)
    }

    /// Says that a database which several servers share has the access keys.
    pub(crate) fn keys_are_elsewhere(&self) {
        self.keys_are_elsewhere.store(true, Ordering::Relaxed);
    }

    /// One durable commit.
    fn write(
        &self,
        work: impl Fn(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), ControlError> {
        self.with(|database| {
            let mut transaction = database.begin_write()?;
            transaction.set_two_phase_commit(true);
            work(&transaction)?;
            let committed = transaction.commit();
            self.changes.fetch_add(1, Ordering::Relaxed);
            Ok(committed?)
        })
    }

    /// Grows with each change of the file and of the audit log, after it.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Works on the database. After one read or write that failed (a full disk, say) redb refuses
    /// everything: it is closed then, and opened again by whoever comes next, who finds what was
    /// committed, as after a crash.
    fn with<T>(
        &self,
        work: impl Fn(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, ControlError> {
        self.check_lease()?;
        let attempt = || {
            let open = self.state.read().unwrap_or_else(PoisonError::into_inner);
            match &open.database {
                Some(database) => work(database),
                None => Err(redb::Error::PreviousIo),
            }
        };
        let result = match attempt() {
            Err(redb::Error::PreviousIo) => {
                self.reopen()?;
                attempt()
            }
            result => result,
        };
        if matches!(result, Err(redb::Error::Io(_))) {
            self.changing().database = None;
        }
        result.map_err(|error| explain(&self.path, error))
    }

    /// Refuses while the lease on the file's key has run out. Where nobody renews it, the key is
    /// asked for again.
    fn check_lease(&self) -> Result<(), ControlError> {
        let standing = |open: &Open| match &open.key {
            Key::Had(_, Some(held)) => held.standing(),
            Key::Had(_, None) | Key::Withheld => LeaseStanding::Good,
        };
        let open = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let found = standing(&open);
        drop(open);
        match found {
            LeaseStanding::Good => Ok(()),
            LeaseStanding::RanOut => Err(ControlError::Withheld {
                path: self.path.clone(),
                source: Arc::new(ProviderError::LeaseRanOut),
            }),
            LeaseStanding::Abandoned => {
                let mut open = self.changing();
                if standing(&open) == LeaseStanding::Abandoned {
                    (open.database, open.key) = (None, Key::Withheld);
                }
                Ok(())
            }
        }
    }

    fn reopen(&self) -> Result<(), ControlError> {
        let mut open = self.changing();
        // Closed first: it holds the file for itself alone.
        open.database = None;
        if let Key::Withheld = &open.key {
            self.ask_again(&mut open)?;
        }
        self.open_database(&mut open)?;
        tracing::warn!(path = %self.path.display(), "the control file was opened again");
        Ok(())
    }

    /// Opens the file with the key that is there.
    fn open_database(&self, open: &mut Open) -> Result<(), ControlError> {
        ::fail::fail_point!("control::open-again", |_| {
            let (path, source) = (self.path.clone(), std::io::ErrorKind::Other.into());
            Err(explain(&path, redb::Error::Io(source)))
        });
        if let Key::Had(protection, _) = &open.key {
            let (database, inode) = database::open_known(&self.path, protection)?;
            (open.database, open.inode) = (Some(database), inode);
            self.changes.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The key once more, after it was taken back, or was not known. The core asks the provider
    /// each second, and in between has its last answer.
    fn ask_again(&self, open: &mut Open) -> Result<(), ControlError> {
        let subject = subject();
        let again = self
            .envelope
            .prepare(&self.path, &subject, Cipher::Blocks1, Intent::Open);
        match self.runtime.block_on(again) {
            Ok(Prepared::Keyed(file)) => {
                // The end of a rekey may not be written yet.
                let file = match file.stage() {
                    Stage::Rekeying { .. } => {
                        let opened = which_key(&file)?;
                        file.under(opened)?
                    }
                    Stage::Ready | Stage::Initialise | Stage::Initialised => file,
                };
                open.hold(&file);
                Ok(())
            }
            Ok(Prepared::Plain(_)) => {
                unreachable!("a file with a key that was taken back is encrypted")
            }
            Err(EnvelopeError::Unwrap { path, source }) => {
                Err(ControlError::Withheld { path, source })
            }
            Err(error) => Err(error.into()),
        }
    }

    fn changing(&self) -> RwLockWriteGuard<'_, Open> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a newer layout, and brings an older one up to this release's.
    fn settle_layout(&self) -> Result<(), ControlError> {
        let found = self.with(tables::layout)?;
        if found > tables::KNOWN_LAYOUT {
            return Err(ControlError::NewerLayout {
                path: self.path.clone(),
                found,
                known: tables::KNOWN_LAYOUT,
            });
        }
        if found < tables::KNOWN_LAYOUT {
            self.write(tables::make_all)?;
        }
        Ok(())
    }
}

#[async_trait]
impl Holder for Control {
    async fn revoke(&self, tenant: Option<&TenantId>, why: &Revocation) {
        if let (None, Revocation::Refused(_)) = (tenant, why) {
            let close = || {
                let mut open = self.changing();
                open.database = None;
                open.key = Key::Withheld;
            };
            // Closing it writes to the disk, and waits for whoever is using it.
            match self.runtime.runtime_flavor() {
                RuntimeFlavor::MultiThread => tokio::task::block_in_place(close),
                _ => close(),
            }
        }
    }
}

/// The subject of the control file.
#[must_use]
pub fn subject() -> Subject {
    Subject::control(FILE_NAME).expect("the control file's name is a file name")
}

/// Finishes a creation that was cut short, or begins one. A file that stands there already is kept
/// if it opens, and set aside if not.
fn initialise(file: KeyedFile) -> Result<KeyedFile, ControlError> {
    let path = file.path();
    let protection = Protection::of(&file);
    let there = std::fs::symlink_metadata(path).is_ok_and(|file| file.len() > 0);
    if there {
        match database::open(path, &protection) {
            Ok(_opens) => return Ok(file),
            Err(error @ ControlError::InUse { .. }) => return Err(error),
            Err(_) => {
                let failed = |source| ControlError::Io {
                    action: "set aside",
                    path: path.to_owned(),
                    source,
                };
                let _aside = set_aside(path, CUT_SHORT).map_err(failed)?;
            }
        }
    }
    database::create(path, &protection, tables::fill)?;
    Ok(file)
}

/// Finds out whether a rekey that was cut short had swapped the file already.
pub(crate) fn which_key(file: &KeyedFile) -> Result<Opened, ControlError> {
    let first = match database::open(file.path(), &Protection::of(file)) {
        Ok(_database) => return Ok(Opened::First),
        Err(error) => error,
    };
    let Some(next) = file.next_cipher_key() else {
        return Err(first);
    };
    match database::open(
        file.path(),
        &Protection::Keyed(next, file.manifest().file_id()),
    ) {
        Ok(_database) => Ok(Opened::Next),
        Err(_) => Err(first),
    }
}

/// The control file's name.
pub const FILE_NAME: &str = crate::data_dir::CONTROL;

#[cfg(test)]
mod tests;
