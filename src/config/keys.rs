//! From checked settings to keys: connects the providers, and makes the master key at the very
//! first start.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nimbus_keyproviders::{KeyProvider, OsRandom, ProviderConfig, ProviderError, keyfile};

use super::{ProviderChoice, Settings};
use crate::data_dir::{self, Role, may_be_database};
use crate::envelope::{Envelope, FileKind, KeyRing, classify, metered, migrate_command};
use crate::process::{HomeError, user_dir};
use crate::runtime::blocking;

/// Why there are no keys. Nothing was made in place of what is missing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// A provider cannot be used.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The data directory holds encrypted files and the master key is not there.
    #[error(
        "the master key {} is missing, and {} holds encrypted files ({}, …); put the key back from its backup. \
         A new key is never made while encrypted files are there: it would open none of them",
        in_full(.key).display(), .dir.display(), .example.display()
    )]
    MasterKeyLost {
        /// Where the key should be.
        key: PathBuf,
        /// The directory with encrypted files.
        dir: PathBuf,
        /// One of them, or its manifest.
        example: PathBuf,
    },
    /// The data directory holds plaintext databases and no provider was named.
    #[error(
        "{} is a plaintext database and encryption is on by default; encrypt it: first \
         `nimbus encryption keygen --master-key-file {}`, then \
         `{}`; or stay in plaintext with --encryption-key-provider none",
        .example.display(), .key.display(), migrate_command(.example)
    )]
    PlaintextFound {
        /// One of the databases.
        example: PathBuf,
        /// Where the master key would be.
        key: PathBuf,
    },
    /// The key would be stored with the data that it protects.
    #[error(
        "the key {} lies in the data directory {}: who takes the data takes the key; move it elsewhere and name it with \
         --encryption-master-key-file or --encryption-key-dir",
        .key.display(), .dir.display()
    )]
    KeyBesideData {
        /// The key.
        key: PathBuf,
        /// The data directory.
        dir: PathBuf,
    },
    /// A directory cannot be looked through.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The directory or file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// The path from the root, so that nobody has to know from which directory a relative one was
/// meant.
fn in_full(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_unknown| path.to_owned())
}

/// Keys, and whether they were made just now.
#[derive(Debug)]
pub struct Keys {
    /// The core that uses them.
    pub envelope: Envelope,
    /// The master key that this call made, for the operator to back up.
    pub made: Option<PathBuf>,
}

/// Whether a missing master key may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// `start`: yes, on a data directory that holds nothing yet.
    Start,
    /// Any other command: no.
    Inspect,
}

/// Connects the providers that `settings` names.
///
/// # Errors
///
/// [`KeysError`].
pub async fn connect(settings: &Settings, purpose: Purpose) -> Result<Keys, KeysError> {
    let (config, made) = match &settings.provider {
        ProviderChoice::Off => {
            return Ok(Keys {
                envelope: Envelope::plaintext(),
                made: None,
            });
        }
        ProviderChoice::Configured(config) => (config.clone(), None),
        ProviderChoice::Default(path) => {
            let dirs = [settings.data_dir.clone(), settings.control_data_dir.clone()];
            let key = path.clone();
            let made = blocking(move || default_key(&key, &dirs, purpose)).await?;
            let config = ProviderConfig::MasterKeyFile { path: path.clone() };
            (config, made.then(|| path.clone()))
        }
    };
    let dirs = [settings.data_dir.clone(), settings.control_data_dir.clone()];
    reject_key_beside(&config, &dirs)?;
    let current = metered(config.connect().await?);
    let mut previous: Vec<Arc<dyn KeyProvider>> = Vec::new();
    for config in &settings.previous {
        reject_key_beside(config, &dirs)?;
        previous.push(metered(config.connect().await?));
    }
    let ring = KeyRing::new(current, previous, settings.recipients.clone());
    Ok(Keys {
        envelope: Envelope::new(ring).with_lease_terms(settings.terms),
        made,
    })
}

/// Where the master key is when nobody says: `<platform data dir>/nimbus/keys/master.key`.
///
/// # Errors
///
/// [`HomeError`].
pub fn default_master_key() -> Result<PathBuf, HomeError> {
    Ok(user_dir()?.join("keys/master.key"))
}

/// Sees to the default master key: there, or made because nothing was ever stored. Answers whether
/// it was made.
fn default_key(key: &Path, dirs: &[PathBuf], purpose: Purpose) -> Result<bool, KeysError> {
    let exists = key.try_exists().map_err(|source| KeysError::Read {
        path: key.to_owned(),
        source,
    })?;
    if exists {
        return Ok(false);
    }
    for dir in dirs {
        reject_lost_key(key, dir)?;
    }
    if purpose == Purpose::Start {
        reject_key_in(key, dirs)?;
        let _key = keyfile::generate_new(key, &OsRandom).map_err(ProviderError::from)?;
        return Ok(true);
    }
    Ok(false)
}

/// Looks for what a new key would not open.
fn reject_lost_key(key: &Path, dir: &Path) -> Result<(), KeysError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| KeysError::Read { path, source }
    };
    let entries = match data_dir::scan(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(dir)(error)),
    };
    let mut plaintext = None;
    for entry in entries {
        let entry = entry.map_err(failed(dir))?;
        let is_database = may_be_database(entry.name());
        let path = entry.path;
        let kind = match entry.role {
            Role::Manifest(_) => FileKind::Other,
            _ if is_database => classify(&path).map_err(failed(&path))?,
            _ => continue,
        };
        match kind {
            FileKind::PlainSqlite | FileKind::PlainRedb => {
                plaintext.get_or_insert(path);
            }
            // A manifest, or ciphertext that has lost its own.
            FileKind::Other => {
                return Err(KeysError::MasterKeyLost {
                    key: key.to_owned(),
                    dir: dir.to_owned(),
                    example: path,
                });
            }
            FileKind::Absent | FileKind::Empty | FileKind::NotAFile => {}
        }
    }
    match plaintext {
        Some(example) => Err(KeysError::PlaintextFound {
            example,
            key: key.to_owned(),
        }),
        None => Ok(()),
    }
}

/// Refuses a key that lies in one of the directories that it protects.
///
/// # Errors
///
/// [`KeysError::KeyBesideData`].
pub(crate) fn reject_key_beside(
    config: &ProviderConfig,
    dirs: &[PathBuf],
) -> Result<(), KeysError> {
    match config {
        ProviderConfig::MasterKeyFile { path } => reject_key_in(path, dirs),
        ProviderConfig::KeyDir { dir } => reject_key_in(dir, dirs),
        _ => Ok(()),
    }
}

fn reject_key_in(key: &Path, dirs: &[PathBuf]) -> Result<(), KeysError> {
    // The key may not exist yet: its nearest directory that does stands for it.
    let real = |path: &Path| path.ancestors().find_map(|path| path.canonicalize().ok());
    let key_at = std::path::absolute(key).ok().and_then(|path| real(&path));
    for dir in dirs {
        if let (Some(key_at), Ok(dir)) = (&key_at, dir.canonicalize())
            && key_at.starts_with(&dir)
        {
            return Err(KeysError::KeyBesideData {
                key: key.to_owned(),
                dir,
            });
        }
    }
    Ok(())
}
