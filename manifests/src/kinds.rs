//! The closed sets of words that a manifest is made of.

use std::fmt;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
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

            pub(crate) fn from_word(word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self::$variant),)*
                    _ => None,
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
    Cipher {
        /// SQLCipher 4 with its defaults: 4096-byte pages, AES-256-CBC, HMAC-SHA512, a raw key.
        Sqlcipher4 = "sqlcipher4",
        /// The block device under redb: XChaCha20-Poly1305 a block.
        Blocks1 = "blocks1",
        /// Values in a database of another engine, each sealed by itself: `docs/sealed-format.md`.
        Sealed1 = "sealed1",
    }
}

words! {
    /// How far the life of a file has come.
    State {
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
    ProviderKind {
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
    WrapAlgorithm {
        /// HKDF-SHA256 (RFC 5869) to a key and nonce of AES-256-GCM (NIST SP 800-38D).
        HkdfSha256Aes256Gcm = "hkdf-sha256+aes-256-gcm",
        /// HKDF-SHA256 (RFC 5869) to a key and nonce of XChaCha20-Poly1305
        /// (draft-irtf-cfrg-xchacha).
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_words_it_writes_and_no_others() {
        let words = |all: &[&str]| all.join(" ");
        assert_eq!(
            words(
                &Cipher::ALL
                    .iter()
                    .map(|one| one.as_str())
                    .collect::<Vec<_>>()
            ),
            "sqlcipher4 blocks1 sealed1"
        );
        assert_eq!(
            words(
                &State::ALL
                    .iter()
                    .map(|one| one.as_str())
                    .collect::<Vec<_>>()
            ),
            "new ready rekeying"
        );
        assert_eq!(
            words(
                &ProviderKind::ALL
                    .iter()
                    .map(|one| one.as_str())
                    .collect::<Vec<_>>()
            ),
            "master-key-file key-dir aws-kms age"
        );
        assert_eq!(
            words(
                &WrapAlgorithm::ALL
                    .iter()
                    .map(|one| one.as_str())
                    .collect::<Vec<_>>()
            ),
            "hkdf-sha256+aes-256-gcm hkdf-sha256+xchacha20-poly1305 symmetric-default x25519"
        );
        assert_eq!(Cipher::from_word("blocks1"), Some(Cipher::Blocks1));
        assert_eq!(Cipher::from_word("blocks2"), None);
        assert_eq!(State::from_word(""), None);
        assert_eq!(ProviderKind::from_word("none"), None);
        assert_eq!(WrapAlgorithm::from_word("X25519"), None);
    }

    #[test]
    fn gives_each_provider_its_algorithms() {
        let pairs: Vec<_> = ProviderKind::ALL
            .iter()
            .flat_map(|kind| {
                WrapAlgorithm::ALL
                    .iter()
                    .map(move |algorithm| (kind, algorithm))
            })
            .filter(|(kind, algorithm)| kind.uses(**algorithm))
            .map(|(kind, algorithm)| format!("{kind} {algorithm}"))
            .collect();
        assert_eq!(
            pairs,
            [
                "master-key-file hkdf-sha256+aes-256-gcm",
                "master-key-file hkdf-sha256+xchacha20-poly1305",
                "key-dir hkdf-sha256+aes-256-gcm",
                "key-dir hkdf-sha256+xchacha20-poly1305",
                "aws-kms symmetric-default",
                "age x25519",
            ]
        );
    }
}
