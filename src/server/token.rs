//! The local admin token: a file that only its owner reads, made at the first start, replaced whole
//! when it is rotated.
//!
//! A running server honours a new token at once: each request compares the file's identity (inode,
//! time, size) with what was read last, which costs one `stat`. The server keeps a SHA-256 of each
//! token and compares those in constant time.
#![expect(
    clippy::disallowed_methods,
    reason = "the admin token's file is none of SQLite's"
)]

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::RwLock;

use data_encoding::HEXLOWER;
use nimbus_keyproviders::{OsRandom, RandomError, SecureRandom as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::caller::CredentialId;
use crate::config::without_mark;
use crate::process::{HomeError, user_dir};

/// Why the token file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// There is no directory for this user's data.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// There is none yet.
    #[error("there is no admin token at {}; `nimbus start` makes one", .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {action} the admin token {}; HOME and XDG_DATA_HOME say where it is", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Others can read or change the file.
    #[error("the admin token {} can be read by others; run `chmod 0600 {}`, then `nimbus auth rotate-admin`", .path.display(), .path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
    },
    /// The file is not JSON with a token.
    #[error("the admin token {} is damaged; remove it and run `nimbus auth rotate-admin`", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// No randomness.
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// What the token file holds.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
pub struct AdminToken {
    token: String,
    /// How often it was rotated: a network address is served only after the first time.
    #[serde(default)]
    rotations: u64,
}

impl std::fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AdminToken([REDACTED], rotations: {})", self.rotations)
    }
}

impl AdminToken {
    /// The token itself, to be printed or sent.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.token
    }

    /// How often it was rotated.
    #[must_use]
    pub fn rotations(&self) -> u64 {
        self.rotations
    }

    fn draw(rotations: u64) -> Result<Self, RandomError> {
        let mut bytes = Zeroizing::new([0; 32]);
        OsRandom.fill(&mut *bytes)?;
        Ok(Self {
            token: HEXLOWER.encode(&*bytes),
            rotations,
        })
    }
}

/// Where the token file is: `<platform data dir>/nimbus/auth/token`.
///
/// # Errors
///
/// [`TokenError::Home`].
pub fn default_path() -> Result<PathBuf, TokenError> {
    Ok(user_dir()?.join("auth/token"))
}

/// Where the control sockets of running servers are: a private directory beside that of the token.
///
/// # Errors
///
/// [`TokenError::Home`].
pub fn control_dir() -> Result<PathBuf, TokenError> {
    Ok(user_dir()?.join("run"))
}

/// Who owns the token file; `None` when there is none.
///
/// # Errors
///
/// [`TokenError::Io`].
pub fn owner(path: &Path) -> Result<Option<u32>, TokenError> {
    match std::fs::metadata(path) {
        Ok(about) => Ok(Some(about.uid())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenError::Io {
            action: "look at",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Reads the token file.
///
/// # Errors
///
/// [`TokenError`].
pub fn read(path: &Path) -> Result<AdminToken, TokenError> {
    let io_error = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => TokenError::Missing {
            path: path.to_owned(),
        },
        _ => TokenError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        },
    };
    let file = std::fs::File::open(path).map_err(io_error)?;
    if file.metadata().map_err(io_error)?.mode() & 0o077 != 0 {
        return Err(TokenError::TooOpen {
            path: path.to_owned(),
        });
    }
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_BYTES));
    file.take(MAX_BYTES as u64)
        .read_to_end(&mut text)
        .map_err(io_error)?;
    serde_json::from_slice(without_mark(&text)).map_err(|_not_ours| TokenError::Damaged {
        path: path.to_owned(),
    })
}

/// Reads the token file, or makes it.
///
/// # Errors
///
/// [`TokenError`].
pub fn read_or_create(path: &Path) -> Result<AdminToken, TokenError> {
    match read(path) {
        Err(TokenError::Missing { .. }) => write(path, AdminToken::draw(0)?),
        other => other,
    }
}

/// Replaces the token, or makes the first one.
///
/// # Errors
///
/// [`TokenError`]; the old token then still counts.
pub fn rotate(path: &Path) -> Result<AdminToken, TokenError> {
    let rotations = match read(path) {
        Ok(token) => token.rotations + 1,
        Err(
            TokenError::Missing { .. } | TokenError::Damaged { .. } | TokenError::TooOpen { .. },
        ) => 1,
        Err(error) => return Err(error),
    };
    write(path, AdminToken::draw(rotations)?)
}

/// Replaces the file whole: a reader sees the old token or the new one.
fn write(path: &Path, token: AdminToken) -> Result<AdminToken, TokenError> {
    let io_error = |source| TokenError::Io {
        action: "write",
        path: path.to_owned(),
        source,
    };
    let dir = crate::data_dir::parent(path);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(io_error)?;
    let text = serde_json::to_vec(&token).map(Zeroizing::new);
    let text = text.map_err(|error| io_error(error.into()))?;
    // 0600 from its first byte on.
    let mut temporary = tempfile::NamedTempFile::new_in(dir).map_err(io_error)?;
    temporary.write_all(&text).map_err(io_error)?;
    temporary.as_file().sync_all().map_err(io_error)?;
    let _file = temporary
        .persist(path)
        .map_err(|error| io_error(error.error))?;
    crate::data_dir::sync_dir(dir).map_err(io_error)?;
    Ok(token)
}

/// What a credential turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The admin token.
    Admin(CredentialId),
    /// An admin token that was rotated away while this server ran.
    Revoked,
    /// Nothing we know.
    Unknown,
}

/// The tokens that a running server honours and refuses, in step with the file.
#[derive(Debug)]
pub struct TokenKeeper {
    path: PathBuf,
    known: RwLock<KnownTokens>,
}

#[derive(Debug, Default)]
struct KnownTokens {
    seen: Option<Identity>,
    current: Option<[u8; 32]>,
    revoked: Vec<[u8; 32]>,
}

/// What changes when a file is replaced, written or opened to others.
type Identity = (u64, i64, i64, u64);

impl TokenKeeper {
    /// Keeps step with the token file at `path`.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            known: RwLock::default(),
        }
    }

    /// The token file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Judges a credential. Costs a `stat`, and a read when the file was replaced.
    ///
    /// # Errors
    ///
    /// [`TokenError`] when the file was replaced by something that cannot be read; no credential is
    /// accepted then.
    pub fn judge(&self, credential: &[u8]) -> Result<Verdict, TokenError> {
        let now = identity(&self.path);
        let stale = {
            let known = self
                .known
                .read()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            known.seen.is_none() || known.seen != now
        };
        if stale {
            self.reload(now)?;
        }
        let digest: [u8; 32] = Sha256::digest(credential).into();
        let known = self
            .known
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let same = |other: &[u8; 32]| bool::from(other.ct_eq(&digest));
        Ok(if known.current.as_ref().is_some_and(same) {
            Verdict::Admin(CredentialId::of_digest(&digest))
        } else if known.revoked.iter().any(same) {
            Verdict::Revoked
        } else {
            Verdict::Unknown
        })
    }

    fn reload(&self, seen: Option<Identity>) -> Result<(), TokenError> {
        let token = read(&self.path);
        let mut known = self
            .known
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let digest = token
            .as_ref()
            .ok()
            .map(|token| <[u8; 32]>::from(Sha256::digest(token.expose().as_bytes())));
        if known.current != digest {
            let old = std::mem::replace(&mut known.current, digest);
            known.revoked.extend(old);
            let surplus = known.revoked.len().saturating_sub(MAX_REVOKED);
            drop(known.revoked.drain(..surplus));
        }
        known.seen = token.is_ok().then_some(seen).flatten();
        token.map(drop)
    }
}

fn identity(path: &Path) -> Option<Identity> {
    let file = std::fs::metadata(path).ok()?;
    Some((file.ino(), file.ctime(), file.ctime_nsec(), file.size()))
}

const MAX_BYTES: usize = 4096;
/// How many rotated tokens a server distinguishes from unknown ones.
const MAX_REVOKED: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_a_token_that_only_its_owner_reads_and_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/token");
        let first = read_or_create(&path).unwrap();
        assert_eq!(first.expose().len(), 64);
        assert_eq!(read_or_create(&path).unwrap().expose(), first.expose());
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let parent = path.parent().unwrap();
        assert_eq!(std::fs::metadata(parent).unwrap().mode() & 0o777, 0o700);
        assert!(!format!("{first:?}").contains(first.expose()));
    }

    #[test]
    fn honours_a_rotated_token_at_once_and_knows_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let old = read_or_create(&path).unwrap();
        let keeper = TokenKeeper::new(path.clone());
        let judge = |token: &str| keeper.judge(token.as_bytes()).unwrap();
        let Verdict::Admin(first) = judge(old.expose()) else {
            panic!("the first token counts");
        };
        let new = rotate(&path).unwrap();
        assert_eq!(new.rotations(), 1);
        assert_eq!(judge(old.expose()), Verdict::Revoked);
        let Verdict::Admin(second) = judge(new.expose()) else {
            panic!("the new token counts");
        };
        assert_ne!(first, second);
        assert_eq!(judge("something"), Verdict::Unknown);
        assert_eq!(judge(""), Verdict::Unknown);
    }

    #[test]
    fn accepts_nobody_while_the_file_is_gone_damaged_or_open_to_others() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let token = read_or_create(&path).unwrap();
        let keeper = TokenKeeper::new(path.clone());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(
            keeper.judge(token.expose().as_bytes()),
            Err(TokenError::TooOpen { .. })
        ));
        std::fs::write(&path, "{").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(
            keeper.judge(token.expose().as_bytes()),
            Err(TokenError::Damaged { .. })
        ));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(
            keeper.judge(token.expose().as_bytes()),
            Err(TokenError::Missing { .. })
        ));
    }
}
