//! Why a manifest was refused: small, comparable values; the caller adds the path.

use std::fmt;

use crate::kinds::{ProviderKind, WrapAlgorithm};
use crate::names::InvalidName;

/// A line of a manifest, by what stands on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Field {
    /// The first line.
    Version,
    /// `subject: …`
    Subject,
    /// `file-id: …`
    FileId,
    /// `cipher: …`
    Cipher,
    /// `state: …`
    State,
    /// `revision: …`
    Revision,
    /// `created: …`
    Created,
    /// `dek: …`
    Dek,
    /// `wrap: …` and the lines of its wrapped key.
    Wrap,
    /// `mac: …`
    Mac,
}

impl Field {
    /// The word that the field's line begins with.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Subject => "subject",
            Self::FileId => "file-id",
            Self::Cipher => "cipher",
            Self::State => "state",
            Self::Revision => "revision",
            Self::Created => "created",
            Self::Dek => "dek",
            Self::Wrap => "wrap",
            Self::Mac => "mac",
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a text is not a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// More than [`MAX_MANIFEST_BYTES`](crate::MAX_MANIFEST_BYTES); nothing of it was read.
    #[error("it is larger than 32 KiB")]
    TooLarge,
    /// A manifest of a version that this release does not know.
    #[error("its version is {0:?}, not nimbus-enc/1 (written by a newer nimbus?)")]
    UnknownVersion(String),
    /// A line breaks a rule.
    #[error("line {line}, {field}: {problem}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What should stand there.
        field: Field,
        /// The rule.
        problem: Problem,
    },
    /// Every line is right, and together they break a rule.
    #[error(transparent)]
    Invalid(#[from] InvalidManifest),
}

/// Which rule a line breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The text ends before this field, or within it.
    #[error("missing")]
    Missing,
    /// Another field stands here, or none of this format's.
    #[error("found {0:?} instead (written by a newer nimbus?)")]
    Unexpected(String),
    /// Text after the last field.
    #[error("text follows the last line")]
    Trailing,
    /// More than [`MAX_LINE_BYTES`](crate::MAX_LINE_BYTES).
    #[error("longer than 1024 bytes")]
    LineTooLong,
    /// A byte that is not printable ASCII.
    #[error("not printable ASCII")]
    NotAscii,
    /// Not as many words as the field has.
    #[error("does not have the right number of words, one space between two")]
    Words,
    /// Not a name of its kind.
    #[error(transparent)]
    Name(InvalidName),
    /// Not a whole number above 0 without leading zeros.
    #[error("not a whole number from 1 without leading zeros")]
    Number,
    /// Not a time in UTC to the second.
    #[error("not a time of the form 2026-11-22T18:04:05Z")]
    Time,
    /// Not canonical base64 in lines of 64.
    #[error("not canonical base64 in lines of 64 characters")]
    Base64,
    /// A wrapped key of more than [`MAX_WRAPPED_BYTES`](crate::MAX_WRAPPED_BYTES). One of 0 bytes
    /// has no spelling.
    #[error("the wrapped key is larger than 8 KiB")]
    WrappedSize,
    /// More than [`MAX_WRAPS`](crate::MAX_WRAPS) or [`MAX_DEKS`](crate::MAX_DEKS).
    #[error("too many: at most 8 wraps a dek and 2 deks")]
    TooMany,
    /// A cipher that this release does not know.
    #[error("unknown cipher {0:?} (written by a newer nimbus?)")]
    UnknownCipher(String),
    /// A state that this release does not know.
    #[error("unknown state {0:?} (written by a newer nimbus?)")]
    UnknownState(String),
    /// A provider that this release does not know.
    #[error("unknown provider {0:?} (written by a newer nimbus?)")]
    UnknownProvider(String),
    /// An algorithm that this release does not know.
    #[error("unknown algorithm {0:?} (written by a newer nimbus?)")]
    UnknownAlgorithm(String),
}

/// Which rule the parts of a manifest break together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidManifest {
    /// `new` and `ready` have one data key, `rekeying` has two.
    #[error("the number of data keys does not fit the state: one, or two while rekeying")]
    DekCount,
    /// Two data keys of one id.
    #[error("both data keys have the same id")]
    DuplicateDek,
    /// A data key with no wrap or more than [`MAX_WRAPS`](crate::MAX_WRAPS).
    #[error("a data key has {0} wraps; it must have 1 to 8")]
    WrapCount(usize),
    /// Two wraps of one data key by the same key.
    #[error("a data key is wrapped twice by the same key")]
    DuplicateWrap,
    /// A wrapped key of 0 bytes or more than [`MAX_WRAPPED_BYTES`](crate::MAX_WRAPPED_BYTES).
    #[error("a wrapped key is empty or larger than 8 KiB")]
    WrappedSize,
    /// A key id that this kind of provider does not have.
    #[error("{0} has no key ids of this form")]
    KeyId(ProviderKind),
    /// An algorithm that this kind of provider does not use.
    #[error("{0} does not use {1}")]
    Algorithm(ProviderKind, WrapAlgorithm),
    /// A cipher that this kind of subject does not have.
    #[error("the cipher does not fit the subject")]
    Cipher,
    /// Revisions begin at 1 and end at 2^63 - 1.
    #[error("the revision is out of range")]
    Revision,
    /// More than [`MAX_MANIFEST_BYTES`](crate::MAX_MANIFEST_BYTES) as text.
    #[error("it is larger than 32 KiB")]
    TooLarge,
}

/// The MAC does not belong to this text under this key. Says no more, on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the manifest's MAC does not match")]
pub struct MacMismatch;
