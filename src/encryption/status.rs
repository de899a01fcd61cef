//! `status`: every protected file, looked at one by one. Nothing is reported from the settings
//! alone, and nothing is changed, but that SQLite, once it opens a database, brings the WAL of a
//! killed server into it.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nimbus_keyproviders::{ProviderConfig, same_key};
use nimbus_manifests::{KeyId, Manifest, ProviderKind, State, Subject};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::is_overdue;
use super::pending;
use super::was_rewritten;
use crate::audit::{ControlLost, LogError, RolledBack};
use crate::config::{KeyProviderKind, ProviderChoice};
use crate::control::{self, ControlError};
use crate::data_dir::{self, Role};
use crate::envelope::{
    Clock as _, Envelope, EnvelopeError, FileKind, Intent, KeyedFile, Prepared, ReadError,
    SystemClock, Trouble, classify, manifest_path, read_manifest,
};
use crate::error_chain::error_chain;
use crate::runtime::blocking;
use crate::schemas;
use crate::sqlcipher::{self, OpenError};
use crate::tenants::sqlite;

/// How closely each file is looked at.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    clap::ValueEnum,
    utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// Manifest and first bytes of the file; whether a configured key is named. No key is used.
    None,
    /// The data key is unwrapped and the manifest's MAC verified.
    Unwrap,
    /// The file is opened: page 1 authenticates.
    Open,
    /// Every page authenticates, and the database's structure is whole.
    Pages,
}

impl Verify {
    /// What was asked for; without that, data keys are unwrapped where it costs no call over the
    /// network.
    #[must_use]
    pub fn of(asked: Option<Self>, provider: &ProviderChoice) -> Self {
        let remote = matches!(
            provider,
            ProviderChoice::Configured(ProviderConfig::AwsKms { .. })
        );
        asked.unwrap_or(if remote { Self::None } else { Self::Unwrap })
    }

    /// Its name on the command line, in a query and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Unwrap => "unwrap",
            Self::Open => "open",
            Self::Pages => "pages",
        }
    }
}

/// What was found about one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
#[schema(as = FileHealth)]
pub enum Health {
    /// As it should be, as far as it was looked at.
    Ok,
    /// A database in plaintext.
    Plaintext,
    /// No manifest beside a file that is not plaintext.
    ManifestMissing,
    /// The manifest cannot be read, or was changed by someone without its key.
    ManifestCorrupt,
    /// A manifest without its database, or a database that cannot be read.
    DatabaseMissing,
    /// No configured key unwraps the data key now.
    KeyUnavailable,
    /// Key and file do not belong together.
    KeyMismatch,
    /// The manifest belongs to another file.
    SubjectMismatch,
    /// A new data key is under way, or was when a crash cut it short; the next opening settles it.
    Rekeying,
    /// A manifest beside no file, under a name that Nimbus does not open.
    OrphanManifest,
    /// The database is damaged.
    PageCorrupt,
    /// The tenant is being deleted, and that has not ended.
    Deleting,
}

impl Health {
    /// Its name in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Plaintext => "plaintext",
            Self::ManifestMissing => "manifest-missing",
            Self::ManifestCorrupt => "manifest-corrupt",
            Self::DatabaseMissing => "database-missing",
            Self::KeyUnavailable => "key-unavailable",
            Self::KeyMismatch => "key-mismatch",
            Self::SubjectMismatch => "subject-mismatch",
            Self::Rekeying => "rekeying",
            Self::OrphanManifest => "orphan-manifest",
            Self::PageCorrupt => "page-corrupt",
            Self::Deleting => "deleting",
        }
    }
}

/// The answer of `nimbus encryption status --format json`; `docs/encryption.md` documents it.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EncryptionStatus {
    /// Whether a key provider is configured.
    pub enabled: bool,
    /// How closely files were looked at.
    pub verify: Verify,
    /// The key provider; null while encryption is off.
    #[schema(required)]
    pub provider: Option<ProviderReport>,
    /// The database that the tenants are in, which Nimbus does not encrypt; missing where they are
    /// among the files.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(nullable = false)]
    pub unencrypted_tenants_in: Option<String>,
    /// Every file, by path.
    pub files: Vec<FileReport>,
    /// Their sum.
    pub summary: Summary,
}

/// The configured key provider.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = KeyProvider)]
pub struct ProviderReport {
    /// `master-key-file`, `key-dir` or `aws-kms`.
    #[schema(value_type = KeyProviderKind)]
    pub kind: String,
    /// The key that wraps; null for `key-dir`, which has one per file, and where the provider does
    /// not answer.
    #[schema(required)]
    pub key_id: Option<String>,
    /// Where local keys lie.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(nullable = false)]
    pub path: Option<String>,
    /// Why the provider cannot be used.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(nullable = false)]
    pub error: Option<String>,
}

/// One file.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = ProtectedFile)]
pub struct FileReport {
    /// Its path, within the data directory where it lies there.
    pub path: String,
    /// Who it belongs to.
    #[schema(required)]
    pub subject: Option<String>,
    /// What it is encrypted with.
    #[schema(required)]
    pub cipher: Option<String>,
    /// `new`, `ready` or `rekeying`.
    #[schema(required, value_type = Option<schemas::FileState>)]
    pub state: Option<String>,
    /// How often its manifest was written.
    #[schema(required)]
    pub revision: Option<u64>,
    /// What makes it different from another file of the same name.
    #[schema(required)]
    pub file_id: Option<String>,
    /// The data key that it is encrypted under.
    #[schema(required)]
    pub dek_id: Option<String>,
    /// When that key was drawn.
    #[schema(required)]
    pub dek_created: Option<String>,
    /// Whether that key is older than `--encryption-dek-max-age`.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    #[schema(required = false)]
    pub dek_overdue: bool,
    /// Which keys wrap it.
    pub wraps: Vec<WrapReport>,
    /// What was found.
    pub health: Health,
    /// Whether an operator locked the tenant; the running server knows.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    #[schema(required = false)]
    pub locked: bool,
    /// When it was last restored from its backup and proven; the running server knows
    /// (`--backup-verify-every`).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(nullable = false)]
    pub restored: Option<String>,
    /// What is wrong and what to do next.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(nullable = false)]
    pub detail: Option<String>,
}

/// One wrap of a data key.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Wrap)]
pub struct WrapReport {
    /// The kind of provider.
    pub provider: String,
    /// The key that wraps.
    pub key_id: String,
    /// Since when.
    pub at: String,
}

/// Counts of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Summary {
    /// Files looked at.
    #[schema(value_type = u64)]
    pub files: usize,
    /// Those that are as they should be.
    #[schema(value_type = u64)]
    pub ok: usize,
    /// Those that need an operator.
    #[schema(value_type = u64)]
    pub problems: usize,
}

/// A directory that cannot be looked through.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot read {}; name the data directory with --data-dir, or in NIMBUS_DATA_DIR",
    std::path::absolute(.path).as_deref().unwrap_or(.path).display()
)]
pub struct StatusError {
    path: PathBuf,
    source: io::Error,
}

/// Where to look, and with which keys.
#[derive(Debug, Clone)]
pub struct StatusReader {
    /// The tenants' directory.
    pub data_dir: PathBuf,
    /// The control file's directory.
    pub control_dir: PathBuf,
    /// The provider as it was configured.
    pub provider: ProviderChoice,
    /// The database that the tenants are in, if they are in one.
    pub database: Option<String>,
    /// The core, or why there is none.
    pub envelope: Result<Envelope, String>,
    /// How old a data key may grow.
    pub dek_max_age: Option<Duration>,
    /// Whether this process is the server, which has the control file open and verified it whole
    /// when it started.
    pub holds_control: bool,
    /// That the control file is older than its audit log. A server with such a one does not start.
    pub rolled_back: Option<RolledBack>,
}

impl StatusReader {
    /// Looks at every file. Without `verify`, data keys are unwrapped where that costs no call over
    /// the network.
    ///
    /// # Errors
    ///
    /// [`StatusError`] when a directory cannot be read. Trouble with a file, or with the keys, is
    /// part of the answer.
    pub async fn run(self, verify: Option<Verify>) -> Result<EncryptionStatus, StatusError> {
        let verify = Verify::of(verify, &self.provider);
        let this = Arc::new(self);
        let paths = blocking({
            let this = this.clone();
            move || {
                let mut paths = this.candidates()?;
                paths.extend(this.known());
                paths.extend(this.control_lost().map(|lost| lost.path));
                Ok::<_, StatusError>(paths)
            }
        })
        .await?;
        let mut files = Vec::with_capacity(paths.len());
        let mut looking = JoinSet::new();
        for path in paths {
            while looking.len() >= AT_ONCE {
                // A fault in one look is a fault of the whole: no file is left out in silence.
                files.extend(looking.join_next().await.and_then(|look| {
                    look.unwrap_or_else(|fault| std::panic::resume_unwind(fault.into_panic()))
                }));
            }
            let this = this.clone();
            drop(looking.spawn(async move { this.look(&path, verify).await }));
        }
        files.extend(looking.join_all().await.into_iter().flatten());
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let enabled = this.provider != ProviderChoice::Off;
        let ok = files
            .iter()
            .filter(|file| {
                file.health == Health::Ok || !enabled && file.health == Health::Plaintext
            })
            .count();
        Ok(EncryptionStatus {
            enabled,
            verify,
            provider: this.provider_report().await,
            unencrypted_tenants_in: this.database.clone(),
            summary: Summary {
                files: files.len(),
                ok,
                problems: files.len() - ok,
            },
            files,
        })
    }

    async fn provider_report(&self) -> Option<ProviderReport> {
        let keys = match &self.envelope {
            Ok(envelope) => envelope.keys()?,
            Err(why) => return self.unusable_provider(why),
        };
        let current = keys.current();
        let kind = current.kind();
        let key_id = match kind {
            ProviderKind::KeyDir => None,
            _ => current.key_id(&control::subject()).await.ok(),
        };
        Some(ProviderReport {
            kind: kind.to_string(),
            key_id: key_id.map(|id| id.to_string()),
            path: current.path().map(|path| path.display().to_string()),
            error: current.check().await.err().map(|error| error_chain(&error)),
        })
    }

    /// A provider of which nothing is known but what the settings say.
    fn unusable_provider(&self, why: &str) -> Option<ProviderReport> {
        let (kind, path) = match &self.provider {
            ProviderChoice::Off => return None,
            ProviderChoice::Default(path)
            | ProviderChoice::Configured(ProviderConfig::MasterKeyFile { path }) => {
                ("master-key-file", Some(path))
            }
            ProviderChoice::Configured(ProviderConfig::KeyDir { dir }) => ("key-dir", Some(dir)),
            ProviderChoice::Configured(_) => ("aws-kms", None),
        };
        Some(ProviderReport {
            kind: kind.to_owned(),
            key_id: None,
            path: path.map(|path| path.display().to_string()),
            error: Some(why.to_owned()),
        })
    }

    /// Every path that may be a protected file: what has a manifest or one of our names. Others are
    /// looked at for being plaintext databases. Blocks.
    fn candidates(&self) -> Result<BTreeSet<PathBuf>, StatusError> {
        let mut paths = BTreeSet::new();
        let mut dirs = vec![&self.data_dir];
        if self.control_dir != self.data_dir {
            dirs.push(&self.control_dir);
        }
        for dir in dirs {
            let failed = |source| StatusError {
                path: dir.clone(),
                source,
            };
            let entries = match data_dir::scan(dir) {
                Ok(entries) => entries,
                // The control directory may not be there yet.
                Err(error) if error.kind() == io::ErrorKind::NotFound && *dir != self.data_dir => {
                    continue;
                }
                Err(error) => return Err(failed(error)),
            };
            for entry in entries {
                let entry = entry.map_err(failed)?;
                paths.extend(match entry.role {
                    Role::Manifest(file) => Some(file),
                    Role::SideFile | Role::Mark => None,
                    Role::Database(_) | Role::Temporary | Role::Other => Some(entry.path),
                });
            }
        }
        Ok(paths)
    }

    /// Where the files of tenants belong that the control file knows, whatever is left of them.
    /// Blocks.
    fn known(&self) -> Vec<PathBuf> {
        let envelope = self.envelope.as_ref().ok();
        // Where the control file cannot be read, its own line says so.
        let known = envelope.and_then(|envelope| envelope.mirrored().ok());
        let paths = known.into_iter().flatten();
        let going = envelope.and_then(|envelope| envelope.going().ok());
        let going = going.into_iter().flatten();
        paths
            .chain(going.map(|tenant| data_dir::subject(&tenant)))
            .map(|subject| self.data_dir.join(subject.file_name()))
            .collect()
    }

    /// One file; `None` when it is none of ours. One that is given a new key meanwhile, so that
    /// manifest and file were not of one time, is looked at again.
    async fn look(&self, path: &Path, verify: Verify) -> Option<FileReport> {
        for _again in 0..LOOKS {
            let report = self.look_once(path, verify).await?;
            if report.health == Health::Ok || !was_rewritten(path, report.revision).await {
                return Some(report);
            }
        }
        self.look_once(path, verify).await
    }

    async fn look_once(&self, path: &Path, verify: Verify) -> Option<FileReport> {
        let ours = owner_by_name(path);
        if let Some(report) = self.deleting(path, ours.as_ref()).await {
            return Some(report);
        }
        let (seen, lacks_copy) = blocking({
            let (path, ours) = (path.to_owned(), ours.clone());
            let envelope = self.envelope.as_ref().ok().cloned();
            move || {
                let manifest = read_manifest(&manifest_path(&path));
                let lacks_copy = envelope
                    .zip(ours)
                    .is_some_and(|(core, ours)| core.lacks_copy(&path, &ours));
                ((manifest, classify(&path)), lacks_copy)
            }
        })
        .await;
        let report = |manifest: Option<&Manifest>, finding: Finding| {
            Some(self.report(path, manifest, finding.knowing(lacks_copy)))
        };
        let unreadable = |source| {
            Finding::of(&EnvelopeError::Io {
                action: "read",
                path: path.to_owned(),
                source,
            })
        };
        let (manifest, kind) = match seen {
            (Ok(Some(sealed)), Ok(kind)) => (sealed.claims().clone(), kind),
            (Ok(None), Ok(FileKind::Absent)) => return self.lost(path, ours?).await,
            (Ok(None), Ok(kind)) => {
                return report(None, self.without_manifest(path, kind, ours.is_some())?);
            }
            (Ok(Some(sealed)), Err(error)) => {
                return report(Some(sealed.claims()), unreadable(error));
            }
            // What cannot be read may be a plaintext database under any name.
            (Ok(None), Err(error)) => return report(None, unreadable(error)),
            (Err(error), _) => {
                let error = match error {
                    ReadError::Parse(source) => EnvelopeError::ManifestUnparsable {
                        path: manifest_path(path),
                        source,
                    },
                    ReadError::Io(source) => EnvelopeError::Io {
                        action: "read",
                        path: manifest_path(path),
                        source,
                    },
                };
                let finding = Finding::new(Health::ManifestCorrupt, Some(error_chain(&error)));
                let without_copy = Some(error.without_copy());
                let finding = Finding {
                    without_copy,
                    ..finding
                };
                return report(None, finding);
            }
        };
        let is_control = *manifest.subject() == control::subject();
        let finding = match self.judge(path, &manifest, kind, ours, verify).await {
            Ok(()) if is_control && self.rolled_back.is_some() => {
                let found = self.rolled_back.clone().map(LogError::rolled_back);
                Finding::new(
                    Health::ManifestCorrupt,
                    found.map(|error| error.to_string()),
                )
            }
            Ok(()) if manifest.state() == State::Rekeying => Finding::new(
                Health::Rekeying,
                Some("a new data key is under way; the next opening settles it".to_owned()),
            ),
            Ok(()) => Finding::new(Health::Ok, None),
            Err(finding) => finding,
        };
        report(Some(&manifest), finding)
    }

    /// Neither a file nor a manifest: the control file may know of it, or be it.
    async fn lost(&self, path: &Path, subject: Subject) -> Option<FileReport> {
        let finding = if subject == control::subject() {
            let lost = self.control_lost()?;
            let said = match self.holds_control {
                true => format!(
                    "the control file {} and its manifest were removed or moved away while this server has them open: what is written there from \
                     now on (locks, access keys, deletions) is lost when it stops. Move both back if they were moved; otherwise put them back from the \
                     newest backup while the server is stopped (docs/runbook.md)",
                    path.display()
                ),
                false => lost.to_string(),
            };
            Finding::new(Health::DatabaseMissing, Some(said))
        } else {
            let envelope = self.envelope.as_ref().ok()?;
            let cipher = subject.cipher();
            match envelope.check(path, &subject, cipher).await {
                Err(EnvelopeError::Lost { .. }) if self.was_deleted(&subject) => Finding::new(
                    Health::DatabaseMissing,
                    Some(format!(
                        "the tenant was deleted, as the audit log says; the older control file does not know that yet. Nothing is to be restored: see to {}",
                        control::FILE_NAME
                    )),
                ),
                Err(error @ EnvelopeError::Lost { .. }) => Finding::of(&error),
                _ => return None,
            }
        };
        let mut report = self.report(path, None, finding);
        report.subject = Some(subject.to_string());
        Some(report)
    }

    /// A file of a tenant whose deletion has begun: that alone is to be told, whatever is left of
    /// it.
    async fn deleting(&self, path: &Path, ours: Option<&Subject>) -> Option<FileReport> {
        let (envelope, subject) = (self.envelope.as_ref().ok()?.clone(), ours?.clone());
        let tenant = subject.tenant()?.clone();
        let dirs = (self.control_dir.clone(), self.data_dir.clone());
        let told = blocking(move || {
            let going = envelope.going().ok()?.contains(&tenant);
            going.then(|| pending::told(&dirs.0, &dirs.1, &tenant))
        });
        let finding = Finding::new(Health::Deleting, Some(told.await?));
        let mut report = self.report(path, None, finding);
        report.subject = Some(subject.to_string());
        Some(report)
    }

    fn control_lost(&self) -> Option<ControlLost> {
        ControlLost::look(&self.control_dir, &self.data_dir)
    }

    /// Whether the audit log says that this tenant was deleted since an older control file that was
    /// put back.
    fn was_deleted(&self, subject: &Subject) -> bool {
        let since = self.rolled_back.as_ref().map(RolledBack::deleted);
        let tenant = subject.tenant();
        since.is_some_and(|since| tenant.is_some_and(|tenant| since.contains(tenant)))
    }

    fn without_manifest(&self, path: &Path, kind: FileKind, ours: bool) -> Option<Finding> {
        let path_owned = path.to_owned();
        let finding = match kind {
            FileKind::PlainSqlite | FileKind::PlainRedb if self.provider == ProviderChoice::Off => {
                Finding::new(Health::Plaintext, None)
            }
            FileKind::PlainSqlite | FileKind::PlainRedb if ours => {
                Finding::of(&EnvelopeError::Plaintext { path: path_owned })
            }
            FileKind::PlainSqlite | FileKind::PlainRedb => Finding::new(
                Health::Plaintext,
                Some(format!(
                    "{} is a plaintext database that Nimbus does not use; move it away or remove it",
                    path.display()
                )),
            ),
            FileKind::Absent => return None,
            FileKind::Empty | FileKind::Other if ours => {
                Finding::of(&EnvelopeError::ManifestMissing { path: path_owned })
            }
            FileKind::NotAFile if ours => Finding::new(
                Health::ManifestMissing,
                Some(EnvelopeError::NotAFile { path: path_owned }.to_string()),
            ),
            _ => return None,
        };
        Some(finding)
    }

    /// Everything that `verify` asks for; `Ok` when nothing is wrong.
    async fn judge(
        &self,
        path: &Path,
        manifest: &Manifest,
        kind: FileKind,
        ours: Option<Subject>,
        verify: Verify,
    ) -> Result<(), Finding> {
        let known_place = ours.is_some();
        if let Some(expected) = ours
            && expected != *manifest.subject()
        {
            return Err(Finding::of(&EnvelopeError::SubjectMismatch {
                path: manifest_path(path),
                expected,
                found: manifest.subject().clone(),
            }));
        }
        let path_owned = path.to_owned();
        match (manifest.state(), kind) {
            (State::New, _) => {}
            (_, FileKind::Absent) if !known_place => {
                let why = format!(
                    "no file stands beside {}; remove it, or restore its file",
                    manifest_path(path).display()
                );
                return Err(Finding::new(Health::OrphanManifest, Some(why)));
            }
            (_, FileKind::Absent) => {
                return Err(Finding::of(&EnvelopeError::DatabaseMissing {
                    path: path_owned,
                }));
            }
            (_, FileKind::Empty) => {
                let error = EnvelopeError::DatabaseEmpty { path: path_owned };
                return Err(Finding::new(Health::PageCorrupt, Some(error.to_string())));
            }
            (_, FileKind::PlainSqlite | FileKind::PlainRedb) => {
                return Err(Finding::of(&EnvelopeError::NotEncrypted {
                    path: path_owned,
                }));
            }
            (_, FileKind::NotAFile) => {
                return Err(Finding::of(&EnvelopeError::NotAFile { path: path_owned }));
            }
            (_, FileKind::Other) => {}
        }
        let envelope = match &self.envelope {
            Ok(envelope) => envelope,
            Err(_said_with_the_provider) => {
                let why = "the key provider cannot be used".to_owned();
                return Err(Finding::new(Health::KeyUnavailable, Some(why)));
            }
        };
        if known_place && envelope.keys().is_some() {
            let checked = envelope.check(path, manifest.subject(), manifest.cipher());
            checked.await.map_err(|error| Finding::of(&error))?;
        }
        // A lock holds for looking, too.
        if verify == Verify::None || self.is_locked(manifest) {
            return named_key(envelope, path, manifest).await;
        }
        let prepared = envelope
            .prepare(path, manifest.subject(), manifest.cipher(), Intent::Open)
            .await
            .map_err(|error| Finding::of(&error))?;
        let Prepared::Keyed(file) = prepared else {
            return Err(Finding::of(&EnvelopeError::EncryptionOff {
                path: path_owned,
            }));
        };
        if verify == Verify::Unwrap || manifest.state() == State::New {
            return Ok(());
        }
        self.open(file, verify).await
    }

    /// Opens the file, or reads all of it.
    async fn open(&self, file: KeyedFile, verify: Verify) -> Result<(), Finding> {
        let is_control = *file.manifest().subject() == control::subject();
        if is_control && self.holds_control {
            return Ok(());
        }
        blocking(move || {
            if is_control {
                return control::check(&file).map_err(|error| Finding::of_control(&error));
            }
            let proof = sqlcipher::open_as_it_is(file).and_then(|database| {
                if verify == Verify::Pages {
                    database.verify_pages()?;
                }
                Ok(is_served(&database))
            });
            match proof {
                Ok(true) => Ok(()),
                Ok(false) => Err(Finding::new(Health::Ok, Some(UNSERVED.to_owned()))),
                Err(error) => Err(Finding::of_open(&error)),
            }
        })
        .await
    }

    fn report(&self, path: &Path, manifest: Option<&Manifest>, finding: Finding) -> FileReport {
        let shown = path.strip_prefix(&self.data_dir).unwrap_or(path);
        let dek = manifest.and_then(|manifest| manifest.deks().first());
        let wraps = dek.map(|dek| dek.wraps.as_slice()).unwrap_or_default();
        FileReport {
            path: shown.display().to_string(),
            subject: manifest.map(|manifest| manifest.subject().to_string()),
            cipher: manifest.map(|manifest| manifest.cipher().to_string()),
            state: manifest.map(|manifest| manifest.state().to_string()),
            revision: manifest.map(Manifest::revision),
            file_id: manifest.map(|manifest| manifest.file_id().to_string()),
            dek_id: dek.map(|dek| dek.id.to_string()),
            dek_created: dek.map(|dek| dek.created.to_string()),
            dek_overdue: dek
                .zip(self.dek_max_age)
                .is_some_and(|(dek, max_age)| is_overdue(dek.created, SystemClock.now(), max_age)),
            wraps: wraps
                .iter()
                .map(|wrap| WrapReport {
                    provider: wrap.provider.to_string(),
                    key_id: wrap.key_id.to_string(),
                    at: wrap.at.to_string(),
                })
                .collect(),
            locked: manifest.is_some_and(|manifest| self.is_locked(manifest)),
            health: finding.health,
            restored: None,
            detail: finding.detail,
        }
    }

    fn is_locked(&self, manifest: &Manifest) -> bool {
        match (&self.envelope, manifest.subject().tenant()) {
            (Ok(envelope), Some(tenant)) => envelope.is_locked(tenant),
            _ => false,
        }
    }
}

/// What is wrong, and what to do next.
struct Finding {
    health: Health,
    detail: Option<String>,
    /// What takes the place of the detail where the control file has no copy of the manifest.
    without_copy: Option<String>,
}

impl Finding {
    fn new(health: Health, detail: Option<String>) -> Self {
        Self {
            health,
            detail,
            without_copy: None,
        }
    }

    fn of(error: &EnvelopeError) -> Self {
        let health = match (error, error.trouble()) {
            (EnvelopeError::SubjectMismatch { .. }, _) => Health::SubjectMismatch,
            // Its key may have been taken back; whatever it is, the control file's own line says
            // it.
            (EnvelopeError::Mirror { .. }, _) => Health::KeyUnavailable,
            (_, trouble) => Self::health(trouble),
        };
        Self {
            without_copy: Some(error.without_copy()),
            ..Self::new(health, Some(error_chain(error)))
        }
    }

    /// In words that do not send to `repair` where that has no copy to put back.
    fn knowing(self, lacks_copy: bool) -> Self {
        let detail = match self.without_copy {
            Some(ref without_copy) if lacks_copy => Some(without_copy.clone()),
            _ => self.detail,
        };
        Self {
            detail,
            without_copy: None,
            ..self
        }
    }

    fn of_open(error: &OpenError) -> Self {
        match error {
            OpenError::Envelope(error) => Self::of(error),
            error => Self::new(Self::health(error.trouble()), Some(error_chain(error))),
        }
    }

    fn of_control(error: &ControlError) -> Self {
        match error {
            ControlError::Envelope(error) => Self::of(error),
            error => Self::new(Self::health(error.trouble()), Some(error_chain(error))),
        }
    }

    fn health(trouble: Trouble) -> Health {
        match trouble {
            Trouble::Plaintext => Health::Plaintext,
            Trouble::ManifestMissing => Health::ManifestMissing,
            Trouble::ManifestCorrupt => Health::ManifestCorrupt,
            Trouble::KeyUnavailable | Trouble::KeyRevoked | Trouble::Locked => {
                Health::KeyUnavailable
            }
            Trouble::KeyMismatch => Health::KeyMismatch,
            Trouble::Corrupt => Health::PageCorrupt,
            // The file cannot be had: it is gone, or the machine refuses it; the detail says which.
            Trouble::NotFound
            | Trouble::AlreadyExists
            | Trouble::DatabaseMissing
            | Trouble::Storage => Health::DatabaseMissing,
        }
    }
}

/// Whether a server serves it, as far as it can be read just now.
fn is_served(database: &sqlcipher::Database) -> bool {
    let reader = database.reader().ok();
    let served = reader.and_then(|reader| sqlite::is_served(&reader).ok());
    served.unwrap_or(true)
}

/// Whether a configured key is among those that wrap the data key, by their names alone.
async fn named_key(envelope: &Envelope, path: &Path, manifest: &Manifest) -> Result<(), Finding> {
    let path_owned = path.to_owned();
    let Some(keys) = envelope.keys() else {
        return Err(Finding::of(&EnvelopeError::EncryptionOff {
            path: path_owned,
        }));
    };
    let mut configured = Vec::new();
    for provider in keys.providers() {
        match provider.key_id(manifest.subject()).await {
            Ok(id) => configured.push((provider.kind(), id)),
            Err(error) => {
                return Err(Finding::new(
                    Health::KeyUnavailable,
                    Some(error_chain(&error)),
                ));
            }
        }
    }
    for dek in manifest.deks() {
        let known = dek.wraps.iter().any(|wrap| {
            let is_it = |(kind, id): &(ProviderKind, KeyId)| {
                *kind == wrap.provider && same_key(id, &wrap.key_id)
            };
            configured.iter().any(is_it)
        });
        if !known {
            return Err(Finding::of(&EnvelopeError::NoMatchingKey {
                path: path_owned,
                wrapped_by: dek
                    .wraps
                    .iter()
                    .map(|wrap| format!("{} {}", wrap.provider, wrap.key_id))
                    .collect(),
                configured: configured
                    .iter()
                    .map(|(kind, id)| format!("{kind} {id}"))
                    .collect(),
            }));
        }
    }
    Ok(())
}

/// Who a file of this name must belong to; `None` for a name that Nimbus does not open.
fn owner_by_name(path: &Path) -> Option<Subject> {
    let name = path.file_name()?.to_str()?;
    if name == control::FILE_NAME {
        return Some(control::subject());
    }
    data_dir::tenant_of_database(name).map(|tenant| data_dir::subject(&tenant))
}

/// Said of a database that is whole, and that no server serves.
const UNSERVED: &str = "it is whole, and another application's database: no server serves it. `nimbus encryption export` takes it out again";
/// How often a file is looked at again whose manifest changed meanwhile.
const LOOKS: usize = 3;
/// Files looked at at a time: more than cores, since KMS and disks make each wait.
const AT_ONCE: usize = 32;
