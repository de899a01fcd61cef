//! The private half of recovery recipients: opens their wraps when every other key is lost.
//!
//! Only `nimbus encryption recover` makes one of these; a server never holds an identity.

use std::fmt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use nimbus_manifests::{KeyId, ProviderKind, Subject, Wrap, WrapContext};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::error::{KeyFileError, ProviderError};
use crate::keyfile;
use crate::keys::Dek;
use crate::memory::KEY_BYTES;
use crate::provider::{KeyProvider, Unwrapped, Wrapped};

/// The identities of one file, as `age-keygen` writes it.
pub struct RecoveryIdentities {
    path: PathBuf,
    identities: Vec<(KeyId, age::x25519::Identity)>,
}

/// Why a file is not used as an identity. Nothing of its content is repeated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// Nothing stands at the path.
    #[error(
        "the identity {} does not exist; name the file that `age-keygen` wrote, the one with the line AGE-SECRET-KEY-1…",
        .path.display()
    )]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// Others can reach it, or it is no file.
    #[error(transparent)]
    File(KeyFileError),
    /// The operating system refused to read it.
    #[error("cannot read the identity {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// It is protected by a passphrase.
    #[error(
        "the identity {} is encrypted; decrypt it first, to a file that only you can read: \
         `(umask 077; age -d {} > identity.txt)`, and remove that file afterwards",
        .path.display(), .path.display()
    )]
    Encrypted {
        /// The file.
        path: PathBuf,
    },
    /// It holds a recipient, which is the public half.
    #[error(
        "{} holds a recipient (age1…), which only wraps; name the file with the line AGE-SECRET-KEY-1…",
        .path.display()
    )]
    Recipient {
        /// The file.
        path: PathBuf,
    },
    /// A line that is no X25519 identity.
    #[error(
        "line {line} of {} is no age identity; it must be as `age-keygen` wrote it",
        .path.display()
    )]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// There is none in it.
    #[error("{} holds no identity; name the file that `age-keygen` wrote", .path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

impl RecoveryIdentities {
    /// Reads the identities in the file at `path`, which nobody but its owner may read.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, IdentityError> {
        let path = path.into();
        let file = keyfile::open_checked(&path).map_err(|error| match error {
            KeyFileError::Missing { path } => IdentityError::Missing { path },
            error => IdentityError::File(error),
        })?;
        // Of this size from the start: a buffer that grows leaves copies behind.
        let mut text = Zeroizing::new(vec![0; MAX_BYTES + 1]);
        let length = read_all(file, &mut text).map_err(|source| IdentityError::Read {
            path: path.clone(),
            source,
        })?;
        let text = std::str::from_utf8(&text[..length]).unwrap_or_default();
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut identities = Vec::new();
        for (index, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if line.starts_with("age-encryption.org/") || line.starts_with("-----BEGIN AGE") {
                return Err(IdentityError::Encrypted { path });
            }
            if line.starts_with("age1") {
                return Err(IdentityError::Recipient { path });
            }
            let invalid = || IdentityError::Invalid {
                path: path.clone(),
                line: index + 1,
            };
            let identity: age::x25519::Identity = line.parse().map_err(|_secret| invalid())?;
            let id = KeyId::new(identity.to_public().to_string()).map_err(|_| invalid())?;
            identities.push((id, identity));
        }
        if identities.is_empty() {
            return Err(IdentityError::Empty { path });
        }
        Ok(Self { path, identities })
    }

    /// The recipients whose wraps these identities open.
    pub fn recipients(&self) -> impl Iterator<Item = &KeyId> {
        self.identities.iter().map(|(id, _)| id)
    }
}

#[async_trait]
impl KeyProvider for RecoveryIdentities {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Age
    }

    /// The first recipient: for messages.
    async fn key_id(&self, _subject: &Subject) -> Result<KeyId, ProviderError> {
        Ok(self.identities[0].0.clone())
    }

    async fn generate(&self, _context: &WrapContext<'_>) -> Result<(Dek, Wrapped), ProviderError> {
        Err(ProviderError::OnlyUnwraps)
    }

    async fn wrap(&self, _dek: &Dek, _context: &WrapContext<'_>) -> Result<Wrapped, ProviderError> {
        Err(ProviderError::OnlyUnwraps)
    }

    async fn unwrap(
        &self,
        wrap: &Wrap,
        context: &WrapContext<'_>,
    ) -> Result<Unwrapped, ProviderError> {
        let mine = self.identities.iter().find(|(id, _)| *id == wrap.key_id);
        let Some((_, identity)) = mine.filter(|_| wrap.provider == ProviderKind::Age) else {
            return Ok(Unwrapped::NotMine);
        };
        let refused = || ProviderError::UnwrapFailed {
            subject: context.subject.clone(),
            provider: ProviderKind::Age,
            key_id: wrap.key_id.clone(),
        };
        let mut payload = Zeroizing::new([0; 2 * KEY_BYTES + 1]);
        let mut file = age::Decryptor::new_buffered(wrap.blob.as_slice())
            .and_then(|file| file.decrypt(std::iter::once(identity as &dyn age::Identity)))
            .map_err(|_no_detail| refused())?;
        let length = read_all(&mut file, &mut *payload).map_err(|_no_detail| refused())?;
        let digest = Sha256::digest(context.encode(ProviderKind::Age, &wrap.key_id));
        let same = payload[..KEY_BYTES].ct_eq(&digest);
        if length != 2 * KEY_BYTES || !bool::from(same) {
            return Err(refused());
        }
        let dek = Dek::try_init_with(|key| {
            key.copy_from_slice(&payload[KEY_BYTES..2 * KEY_BYTES]);
            Ok::<_, ProviderError>(())
        })?;
        Ok(Unwrapped::Key(dek))
    }

    async fn check(&self) -> Result<(), ProviderError> {
        Ok(())
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }
}

impl fmt::Debug for RecoveryIdentities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let recipients: Vec<_> = self.recipients().collect();
        write!(f, "RecoveryIdentities({recipients:?}, [REDACTED])")
    }
}

/// Reads to the end, or until the buffer is full.
fn read_all(mut source: impl std::io::Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match source.read(&mut buffer[length..])? {
            0 => break,
            read => length += read,
        }
    }
    Ok(length)
}

/// A file of some hundred identities.
const MAX_BYTES: usize = 64 << 10;
