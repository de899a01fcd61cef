//! Errors of key providers and key files.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nimbus_manifests::{KeyId, ProviderKind, Subject, WrapAlgorithm};

use crate::aws_kms::error::KmsError;
use crate::failure_class::FailureClass;
use crate::path::parent;
use crate::random::RandomError;

/// Why a provider could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderError {
    /// A key file, or the directory of key files, is not fit for use.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// The key directory holds no key for this subject.
    #[error(
        "there is no key for {subject}: {} does not exist; put it back from its backup, or, if \
         nothing was ever encrypted for this subject, make one with \
         `nimbus encryption keygen --key-dir {} --subject {subject}`",
        path.display(), parent(path).display()
    )]
    SubjectKeyMissing {
        /// Whose key it would be.
        subject: Subject,
        /// Where it would lie.
        path: PathBuf,
    },
    /// AWS KMS did not do it.
    #[error(transparent)]
    Kms(#[from] KmsError),
    /// The age library did not wrap for a recovery recipient.
    #[error("wrapping for recovery recipient {recipient} failed: {source}")]
    Recovery {
        /// The recipient.
        recipient: KeyId,
        /// What the library said.
        source: Box<age::EncryptError>,
    },
    /// Something was to be wrapped by a recovery identity.
    #[error("a recovery identity only unwraps; name the provider that wraps from now on")]
    OnlyUnwraps,
    /// A recovery recipient that a manifest names is none.
    #[error(
        "the recovery recipient {recipient} of the manifest is refused ({source}): leave it out with \
         `nimbus encryption rotate-kek --drop-recipient {recipient}`"
    )]
    Recipient {
        /// The recipient.
        recipient: KeyId,
        /// What is wrong with it.
        source: RecipientError,
    },
    /// A wrap that was made just now does not give its data key back. It was thrown away.
    #[error(
        "the wrap that {provider} key {key_id} made for {subject} does not give the data key back, and \
         was thrown away: see that the key may decrypt as well as encrypt, and that the endpoint is \
         the right one"
    )]
    Unproven {
        /// Whose wrap it was.
        provider: ProviderKind,
        /// The key that it named.
        key_id: KeyId,
        /// The subject it was made for.
        subject: Subject,
        /// How it failed.
        source: Unproven,
    },
    /// There was no randomness to draw a key or a salt from.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The wrap names this provider's key and does not open with it: the wrap was changed, or
    /// was made for another subject, file, cipher or DEK. Carries no more detail on purpose.
    #[error(
        "the wrapped key of {subject} does not open with {provider} key {key_id}: the manifest was \
         changed or belongs to another file; look at it with `nimbus encryption inspect`; restore \
         the right one from a backup, or put it back with `nimbus encryption repair`"
    )]
    UnwrapFailed {
        /// Whose wrap it is.
        provider: ProviderKind,
        /// The key that it names.
        key_id: KeyId,
        /// The subject it was opened for.
        subject: Subject,
    },
    /// The wrap names this provider's key and an algorithm that the provider does not use.
    #[error(
        "a wrap by {provider} cannot use {algorithm}: the manifest was changed, or written by a \
         newer nimbus; look at it with `nimbus encryption inspect`"
    )]
    UnsupportedAlgorithm {
        /// Whose wrap it is.
        provider: ProviderKind,
        /// What it claims to use.
        algorithm: WrapAlgorithm,
    },
    /// A wrap names a key that was configured when it was last used, and is not any more.
    #[error("{provider} key {key_id} is no longer configured")]
    NotConfigured {
        /// Whose wrap it is.
        provider: ProviderKind,
        /// The key that it names.
        key_id: KeyId,
    },
    /// A lease on a key ran out before the provider was asked again: whoever renews is late, or
    /// ended by a fault.
    #[error(
        "the lease on the key ran out before it was renewed; the provider is asked again, try again in a moment"
    )]
    LeaseRanOut,
    /// The provider did not answer a renewal in the time that a lease leaves for it.
    #[error("{provider} key {key_id} did not answer within {} s when its lease was to be renewed", within.as_secs_f64())]
    NotRenewed {
        /// Whose wrap it is.
        provider: ProviderKind,
        /// The key that it names.
        key_id: KeyId,
        /// The time.
        within: Duration,
    },
    /// The runtime ended before a file was read.
    #[error("the process is shutting down; the key was not read")]
    ShuttingDown,
}

/// How a new wrap failed its proof.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unproven {
    /// It does not open.
    #[error("unwrapping it was refused")]
    Refused(#[source] Box<ProviderError>),
    /// It opens to something else.
    #[error("unwrapping it gave another key")]
    AnotherKey,
    /// Its maker does not know it.
    #[error("the provider does not know it as its own")]
    NotItsOwn,
    /// It is not what a recipient can read.
    #[error("it is not a well-formed age file for the recipient")]
    Malformed,
}

impl ProviderError {
    /// What the failure means for a key in use.
    #[must_use]
    pub fn class(&self) -> FailureClass {
        match self {
            Self::KeyFile(KeyFileError::Io { .. })
            | Self::Random(_)
            | Self::LeaseRanOut
            | Self::NotRenewed { .. }
            | Self::ShuttingDown => FailureClass::Unavailable,
            // A key file taken away, replaced or locked is how an operator withholds it.
            Self::KeyFile(_) | Self::SubjectKeyMissing { .. } | Self::NotConfigured { .. } => {
                FailureClass::Denied
            }
            Self::Kms(error) => error.class(),
            Self::Unproven {
                source: Unproven::Refused(why),
                ..
            } => why.class(),
            Self::Unproven { .. }
            | Self::Recipient { .. }
            | Self::UnwrapFailed { .. }
            | Self::UnsupportedAlgorithm { .. }
            | Self::OnlyUnwraps
            | Self::Recovery { .. } => FailureClass::Invalid,
        }
    }

    /// Whether the failure is one of the key, so that it holds for everything the key wraps; and
    /// not perhaps of this wrap alone, as a denial by a policy that looks at the encryption
    /// context.
    #[must_use]
    pub fn concerns_key(&self) -> bool {
        match self {
            Self::Kms(KmsError::Denied { .. }) => false,
            Self::NotConfigured { .. } | Self::LeaseRanOut | Self::NotRenewed { .. } => true,
            Self::Kms(error) => error.class() != FailureClass::Invalid,
            Self::Unproven {
                source: Unproven::Refused(why),
                ..
            } => why.concerns_key(),
            _ => false,
        }
    }

    /// Whether the same call may succeed a little later with nothing repaired.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Kms(error) => error.is_retryable(),
            Self::KeyFile(KeyFileError::Io { source, .. }) => {
                source.kind() == io::ErrorKind::Interrupted
            }
            Self::LeaseRanOut | Self::NotRenewed { .. } => true,
            _ => false,
        }
    }
}

/// What to do about a file of another user. Root does not take it: the server that runs as its
/// owner would be locked out.
fn own(path: &Path, owner: u32, euid: u32, mode: &str) -> String {
    let path = path.display();
    if euid == 0 {
        format!("run the command as its owner, `sudo -u '#{owner}' …`")
    } else {
        format!("run `chown {euid} {path}` and `chmod {mode} {path}`")
    }
}

/// What is wrong with a key file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// Nothing stands at the path.
    #[error(
        "key file {} does not exist: put it back from its backup, or, if nothing was ever \
         encrypted under it, make one with `nimbus encryption keygen --master-key-file {}`",
        path.display(), path.display()
    )]
    Missing {
        /// The key file.
        path: PathBuf,
    },
    /// The process may not open it.
    #[error(
        "key file {} cannot be opened by uid {euid}: give it to that user with \
         `chown {euid} {}` and `chmod 0400 {}`, and let the user pass the directories above it",
        path.display(), path.display(), path.display()
    )]
    Unreadable {
        /// The key file.
        path: PathBuf,
        /// The effective user id of this process.
        euid: u32,
    },
    /// A directory, a named pipe or a device stands there.
    #[error("{} is a {kind}, not a key file: name a regular file of 32 raw bytes", path.display())]
    NotAFile {
        /// What was named as a key file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// There is no directory of key files.
    #[error(
        "the key directory {} does not exist; put it back from its backup, or, if nothing was ever \
         encrypted under its keys, make it: `mkdir -m 0700 {}`",
        path.display(), path.display()
    )]
    DirectoryMissing {
        /// What was named as the directory.
        path: PathBuf,
    },
    /// The directory of key files is something else.
    #[error("{} is not a directory: `--encryption-key-dir` names the directory of key files", path.display())]
    NotADirectory {
        /// What was named as the directory.
        path: PathBuf,
    },
    /// Group or others have a permission on it.
    #[error(
        "{} has mode {mode:04o}: others than its owner can reach it; run `chmod {} {}`, \
         and if they may have read a key, replace it (docs/keys.md)",
        path.display(), if *directory { "0700" } else { "0400" }, path.display()
    )]
    TooOpen {
        /// The key file, or the directory of key files.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Whether it is the directory.
        directory: bool,
    },
    /// It belongs to another user, who can read and replace it.
    #[error(
        "{} belongs to uid {owner}, not to uid {euid} or root: {}",
        path.display(), own(path, *owner, *euid, if *directory { "0700" } else { "0400" })
    )]
    ForeignOwner {
        /// The key file, or the directory of key files.
        path: PathBuf,
        /// The user id that owns it.
        owner: u32,
        /// The effective user id of this process.
        euid: u32,
        /// Whether it is the directory.
        directory: bool,
    },
    /// It holds nothing.
    #[error("key file {} is empty: put the key back from its backup; it must hold 32 raw bytes", path.display())]
    Empty {
        /// The key file.
        path: PathBuf,
    },
    /// It has the length of 32 bytes in base64.
    #[error(
        "key file {} is {length} bytes and looks like base64; the file must hold 32 raw bytes: \
         decode it with `base64 -d`, then `chmod 0400 {}`",
        path.display(), path.display()
    )]
    LooksLikeBase64 {
        /// The key file.
        path: PathBuf,
        /// Its length in bytes.
        length: u64,
    },
    /// It has the length of 32 bytes in hex.
    #[error(
        "key file {} is {length} bytes and looks like hex; the file must hold 32 raw bytes: \
         decode it with `xxd -r -p`, then `chmod 0400 {}`",
        path.display(), path.display()
    )]
    LooksLikeHex {
        /// The key file.
        path: PathBuf,
        /// Its length in bytes.
        length: u64,
    },
    /// It holds another number of bytes than 32.
    #[error(
        "key file {} is {length} bytes; the file must hold 32 raw bytes: put the key back from \
         its backup (an editor may have added a line end)",
        path.display()
    )]
    WrongLength {
        /// The key file.
        path: PathBuf,
        /// Its length in bytes.
        length: u64,
    },
    /// It holds 32 zeros: what some file systems leave after a crash, and never a key.
    #[error("key file {} holds only zeros, which is no key: put it back from its backup", path.display())]
    AllZero {
        /// The key file.
        path: PathBuf,
    },
    /// The file holds another key than the one that was read from it, or written to it, before.
    #[error(
        "key file {} now holds key {found}, not {expected}: put key {expected} back, or restart \
         with it listed as a previous key",
        path.display()
    )]
    Changed {
        /// The key file.
        path: PathBuf,
        /// The id of the key that is in use.
        expected: KeyId,
        /// The id of the key that the file holds.
        found: KeyId,
    },
    /// Something already stands where a new key was to be written; it was not touched.
    #[error(
        "{} already exists and was left as it is: choose another path, or use the key that is there",
        path.display()
    )]
    Exists {
        /// Where the key was to be written.
        path: PathBuf,
    },
    /// There was no randomness to draw a key from.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The file system said something else.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory concerned.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a text is not a recovery recipient.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecipientError {
    /// It is the private half. Not repeated here, so that no log gets it.
    #[error(
        "this is an age identity (a secret key), not a recipient: give the public key that \
         `age-keygen -y <file>` prints, and consider the identity exposed"
    )]
    SecretKey,
    /// It is a recipient of another kind: SSH, a plugin, post-quantum.
    #[error(
        "{given} is not an X25519 recipient: make an identity with `age-keygen` and give its age1… public key"
    )]
    NotX25519 {
        /// What was given.
        given: String,
    },
    /// Its point is of low order: anybody could open what is wrapped to it, and no identity belongs
    /// to it.
    #[error(
        "{given} is not the public half of any identity (its point is of low order): give the \
         age1… public key that `age-keygen -y <file>` prints"
    )]
    LowOrder {
        /// What was given.
        given: String,
    },
    /// It is no age recipient.
    #[error(
        "{given} is not an age recipient ({reason}): give the age1… public key that `age-keygen -y <file>` prints"
    )]
    Invalid {
        /// What was given.
        given: String,
        /// What the parser found.
        reason: &'static str,
    },
}
