//! `status`: every protected file, looked at one by one. Nothing is reported from the settings
//! alone, and nothing is changed, but that SQLite, once it opens a database, brings the WAL of a
//! killed server into it.

mod file;
mod finding;
mod report;
mod rows;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nimbus_keyproviders::ProviderConfig;
use nimbus_manifests::{Manifest, ProviderKind, Subject};
use tokio::task::JoinSet;

use crate::audit::{ControlLost, RolledBack};
use crate::config::ProviderChoice;
use crate::control;
use crate::data_dir::{self, Role};
use crate::envelope::Envelope;
use crate::error_chain::error_chain;
use crate::runtime::blocking;

pub use report::{
    EncryptionStatus, FileReport, Health, ProviderReport, StatusError, Summary, Verify, WrapReport,
};
pub use rows::InDatabase;

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
    pub database: Option<InDatabase>,
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
        let (paths, at_once) = match verify {
            Verify::Pages => (blocking(move || largest_first(paths)).await, cores()),
            _ => (paths.into_iter().collect(), AT_ONCE),
        };
        for path in paths {
            while looking.len() >= at_once {
                // A fault in one look is a fault of the whole: no file is left out in silence.
                files.extend(looking.join_next().await.and_then(|look| {
                    look.unwrap_or_else(|fault| std::panic::resume_unwind(fault.into_panic()))
                }));
            }
            let this = this.clone();
            drop(looking.spawn(async move { this.look(&path, verify).await }));
        }
        files.extend(looking.join_all().await.into_iter().flatten());
        let rows = this.look_at_rows(verify).await;
        files.extend(rows.files);
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
            unencrypted_tenants_in: this
                .database
                .as_ref()
                .filter(|_| !rows.all_sealed)
                .map(|database| database.place.clone()),
            unencrypted_tenants: rows.unsealed,
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

    fn is_locked(&self, manifest: &Manifest) -> bool {
        match (&self.envelope, manifest.subject().tenant()) {
            (Ok(envelope), Some(tenant)) => envelope.is_locked(tenant),
            _ => false,
        }
    }
}

/// A large file that is looked at last keeps one core busy, and the others idle. May block.
fn largest_first(paths: BTreeSet<PathBuf>) -> Vec<PathBuf> {
    let mut paths: Vec<_> = paths.into_iter().collect();
    paths.sort_by_cached_key(|path| {
        let length = std::fs::metadata(path).map_or(0, |file| file.len());
        std::cmp::Reverse(length)
    });
    paths
}

/// Files whose pages are proven at a time: each takes a core, and memory.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Who a file of this name must belong to; `None` for a name that Nimbus does not open.
fn owner_by_name(path: &Path) -> Option<Subject> {
    let name = path.file_name()?.to_str()?;
    if name == control::FILE_NAME {
        return Some(control::subject());
    }
    data_dir::tenant_of_database(name).map(|tenant| data_dir::subject(&tenant))
}

/// How often a file is looked at again whose manifest changed meanwhile.
const LOOKS: usize = 3;
/// Files looked at at a time: more than cores, since KMS and disks make each wait.
const AT_ONCE: usize = 32;
