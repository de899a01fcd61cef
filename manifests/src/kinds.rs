//! The closed sets of words that a manifest is made of.

use std::fmt;

use crate::error::Problem;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident: $problem:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// Every value, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The word that stands in a manifest.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            pub(crate) fn from_word(word: &str) -> Result<Self, Problem> {
                match word {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(Problem::$problem(word.to_owned())),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

words! {
    /// What a file is encrypted with; parameters that differ get a new name.
    Cipher: UnknownCipher {
        /// SQLCipher 4 with its defaults: 4096-byte pages, AES-256-CBC, HMAC-SHA512, a raw key.
        Sqlcipher4 = "sqlcipher4",
        /// The block device under redb: XChaCha20-Poly1305 a block.
        Blocks1 = "blocks1",
    }
}

words! {
    /// How far the life of a file has come.
    State: UnknownState {
        /// The file is not initialised yet: nothing was ever in it.
        New = "new",
        /// The file holds data under the manifest's data key.
        Ready = "ready",
        /// The file holds data under the first of two data keys, or already under the next.
        Rekeying = "rekeying",
    }
}

words! {
    /// Who wrapped a data key.
    ProviderKind: UnknownProvider {
        /// A key file of 32 bytes for all files.
        MasterKeyFile = "master-key-file",
        /// A directory with one key file a subject.
        KeyDir = "key-dir",
        /// A key in AWS KMS.
        AwsKms = "aws-kms",
        /// An age recovery recipient.
        Age = "age",
    }
}

words! {
    /// How a data key is wrapped.
    WrapAlgorithm: UnknownAlgorithm {
        /// HKDF-SHA256 (RFC 5869) to a key and nonce of AES-256-GCM (NIST SP 800-38D).
        HkdfSha256Aes256Gcm = "hkdf-sha256+aes-256-gcm",
        /// HKDF-SHA256 (RFC 5869) to a key and nonce of XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha).
        HkdfSha256XChaCha20Poly1305 = "hkdf-sha256+xchacha20-poly1305",
        /// AWS KMS's `SYMMETRIC_DEFAULT`.
        SymmetricDefault = "symmetric-default",
        /// age's X25519 recipient (age-encryption.org/v1).
        X25519 = "x25519",
    }
}

impl ProviderKind {
    /// Whether this kind of provider makes wraps of `algorithm`.
    #[must_use]
    pub const fn uses(self, algorithm: WrapAlgorithm) -> bool {
        match self {
            Self::MasterKeyFile | Self::KeyDir => matches!(
                algorithm,
                WrapAlgorithm::HkdfSha256Aes256Gcm | WrapAlgorithm::HkdfSha256XChaCha20Poly1305
            ),
            Self::AwsKms => matches!(algorithm, WrapAlgorithm::SymmetricDefault),
            Self::Age => matches!(algorithm, WrapAlgorithm::X25519),
        }
    }
}
