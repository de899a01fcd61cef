//! The one wrap and unwrap for keys that lie in local files.
//!
//! ```text
//! salt     32 random bytes
//! okm      HKDF-SHA256(ikm = key, salt, info = context), 32 bytes of AEAD key then the nonce
//! blob     salt ‖ AEAD(okm, plaintext = DEK, AAD = context) ‖ tag
//! key id   hex of the first 8 bytes of HKDF-SHA256(key, no salt, "nimbus-enc/1 kek id")
//! ```
//!
//! Key and nonce come from a fresh salt, so a nonce never meets the same key twice (AES-GCM:
//! NIST SP 800-38D; XChaCha20-Poly1305: draft-irtf-cfrg-xchacha).

use std::fmt;

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, KeyInit, Nonce, Tag};
use chacha20poly1305::XChaCha20Poly1305;
use nimbus_manifests::{
    HKDF_INFO_KEK_ID, KeyId, ProviderKind, Wrap, WrapAlgorithm, WrapContext, on_wiped_stack,
};
use zeroize::Zeroizing;

use crate::error::ProviderError;
use crate::keys::{Dek, hkdf_sha256};
use crate::memory::{KEY_BYTES, KeyBytes};
use crate::provider::{Unwrapped, Wrapped};
use crate::random::{RandomError, SecureRandom};

/// A key-encryption key of 32 bytes, read from a file or drawn for a test. Wiped when dropped.
pub struct LocalKey {
    bytes: KeyBytes,
    id: KeyId,
}

impl LocalKey {
    /// The key's id: says which key this is and nothing about its bytes.
    #[must_use]
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// A new key from `random`.
    pub(crate) fn generate(random: &dyn SecureRandom) -> Result<Self, RandomError> {
        Self::try_init_with(|bytes| random.fill(bytes))
    }

    /// A key filled in place.
    pub(crate) fn try_init_with<E>(
        fill: impl FnOnce(&mut [u8; KEY_BYTES]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut bytes = KeyBytes::zeroed();
        fill(&mut bytes)?;
        let mut id = [0; KEY_ID_BYTES];
        hkdf_sha256(None, &*bytes, HKDF_INFO_KEK_ID, &mut id);
        let id = KeyId::new(data_encoding::HEXLOWER.encode(&id))
            .expect("sixteen hex digits are a key id");
        Ok(Self { bytes, id })
    }

    /// The bytes, to be written to the key's own file.
    pub(crate) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.bytes
    }

    /// Wraps `dek` for `context`, in the name of a provider of this `kind`.
    pub(crate) fn wrap(
        &self,
        kind: ProviderKind,
        algorithm: LocalAlgorithm,
        random: &dyn SecureRandom,
        dek: &Dek,
        context: &WrapContext<'_>,
    ) -> Result<Wrapped, RandomError> {
        let context = context.encode(kind, &self.id);
        let mut blob = vec![0; BLOB_BYTES];
        let (salt, sealed) = blob.split_at_mut(SALT_BYTES);
        random.fill(salt)?;
        let (text, tag) = sealed.split_at_mut(KEY_BYTES);
        // The DEK is encrypted where it will lie in the blob: no copy of it stays behind.
        on_wiped_stack(|| match algorithm {
            LocalAlgorithm::Aes256Gcm => {
                self.seal::<Aes256Gcm>(salt, &context, dek, text, tag);
            }
            LocalAlgorithm::XChaCha20Poly1305 => {
                self.seal::<XChaCha20Poly1305>(salt, &context, dek, text, tag);
            }
        });
        Ok(Wrapped::new(kind, self.id.clone(), algorithm.into(), blob))
    }

    /// Opens `wrap` if it was made by a provider of this `kind` with this key.
    pub(crate) fn unwrap(
        &self,
        kind: ProviderKind,
        wrap: &Wrap,
        context: &WrapContext<'_>,
    ) -> Result<Unwrapped, ProviderError> {
        if wrap.provider != kind || wrap.key_id != self.id {
            return Ok(Unwrapped::NotMine);
        }
        let failed = || ProviderError::UnwrapFailed {
            provider: kind,
            key_id: self.id.clone(),
            subject: context.subject.clone(),
        };
        let algorithm = LocalAlgorithm::try_from(wrap.algorithm).map_err(|()| {
            ProviderError::UnsupportedAlgorithm {
                provider: kind,
                algorithm: wrap.algorithm,
            }
        })?;
        if wrap.blob.len() != BLOB_BYTES {
            return Err(failed());
        }
        let (salt, sealed) = wrap.blob.split_at(SALT_BYTES);
        let (text, tag) = sealed.split_at(KEY_BYTES);
        let context = context.encode(kind, &self.id);
        let dek = on_wiped_stack(|| match algorithm {
            LocalAlgorithm::Aes256Gcm => self.open::<Aes256Gcm>(salt, &context, text, tag),
            LocalAlgorithm::XChaCha20Poly1305 => {
                self.open::<XChaCha20Poly1305>(salt, &context, text, tag)
            }
        });
        dek.map(Unwrapped::Key).map_err(|_| failed())
    }

    fn seal<A: AeadInOut + KeyInit>(
        &self,
        salt: &[u8],
        context: &[u8],
        dek: &Dek,
        text: &mut [u8],
        tag: &mut [u8],
    ) {
        let (cipher, nonce) = self.cipher::<A>(salt, context);
        text.copy_from_slice(dek.bytes());
        let made = cipher
            .encrypt_inout_detached(&nonce, context, text.into())
            .expect("32 bytes and a short context are within every AEAD's limits");
        tag.copy_from_slice(&made);
    }

    fn open<A: AeadInOut + KeyInit>(
        &self,
        salt: &[u8],
        context: &[u8],
        text: &[u8],
        tag: &[u8],
    ) -> Result<Dek, aes_gcm::aead::Error> {
        let (cipher, nonce) = self.cipher::<A>(salt, context);
        let tag = Tag::<A>::try_from(tag).map_err(|_| aes_gcm::aead::Error)?;
        Dek::try_init_with(|bytes| {
            bytes.copy_from_slice(text);
            cipher.decrypt_inout_detached(&nonce, context, bytes.as_mut_slice().into(), &tag)
        })
    }

    /// The AEAD under the key and nonce that this salt and context give.
    fn cipher<A: AeadInOut + KeyInit>(&self, salt: &[u8], context: &[u8]) -> (A, Nonce<A>) {
        let mut nonce = Nonce::<A>::default();
        let mut okm = Zeroizing::new([0; KEY_BYTES + MAX_NONCE_BYTES]);
        let okm = &mut okm[..KEY_BYTES + nonce.len()];
        hkdf_sha256(Some(salt), &*self.bytes, context, okm);
        let (key, nonce_bytes) = okm.split_at(KEY_BYTES);
        nonce.copy_from_slice(nonce_bytes);
        (
            A::new_from_slice(key).expect("both ciphers take 32 bytes of key"),
            nonce,
        )
    }
}

impl fmt::Debug for LocalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalKey")
            .field("id", &self.id)
            .field("bytes", &format_args!("[REDACTED]"))
            .finish()
    }
}

/// How a local key wraps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LocalAlgorithm {
    /// `hkdf-sha256+aes-256-gcm`, the default.
    #[default]
    Aes256Gcm,
    /// `hkdf-sha256+xchacha20-poly1305`, for machines without AES instructions.
    XChaCha20Poly1305,
}

impl From<LocalAlgorithm> for WrapAlgorithm {
    fn from(algorithm: LocalAlgorithm) -> Self {
        match algorithm {
            LocalAlgorithm::Aes256Gcm => Self::HkdfSha256Aes256Gcm,
            LocalAlgorithm::XChaCha20Poly1305 => Self::HkdfSha256XChaCha20Poly1305,
        }
    }
}

impl TryFrom<WrapAlgorithm> for LocalAlgorithm {
    type Error = ();

    fn try_from(algorithm: WrapAlgorithm) -> Result<Self, ()> {
        match algorithm {
            WrapAlgorithm::HkdfSha256Aes256Gcm => Ok(Self::Aes256Gcm),
            WrapAlgorithm::HkdfSha256XChaCha20Poly1305 => Ok(Self::XChaCha20Poly1305),
            _ => Err(()),
        }
    }
}

const SALT_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
const BLOB_BYTES: usize = SALT_BYTES + KEY_BYTES + TAG_BYTES;
const MAX_NONCE_BYTES: usize = 24;
const KEY_ID_BYTES: usize = 8;

/// Wraps made with Python's `cryptography` (tests/interop), from fixed key, DEK and salt.
#[cfg(test)]
mod tests {
    use nimbus_manifests::{Cipher, DekId, FileId, Subject, Timestamp};

    use super::*;

    const KEY_ID: &str = "0009af89f194fd11";
    const SALT_HEX: &str = "404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f";
    const VECTORS: [(LocalAlgorithm, &str); 2] = [
        (
            LocalAlgorithm::Aes256Gcm,
            "e94ce6433feee5a7784f123ba7d61dcc38b0e727b67f6a4642e30d9501137706ed1c2b5fe812294057c77bac61c7a8ed",
        ),
        (
            LocalAlgorithm::XChaCha20Poly1305,
            "07e8fc9fc3b11748784215731958a5e22a072ea1f7e0009a28538b451903ff83fb2dc949f6a7a1a90aceeea5f841d1e7",
        ),
    ];

    /// Counts up from `0`: the salt of the vectors.
    #[derive(Debug)]
    struct From(u8);

    impl SecureRandom for From {
        fn fill(&self, bytes: &mut [u8]) -> Result<(), RandomError> {
            for (byte, value) in bytes.iter_mut().zip(self.0..) {
                *byte = value;
            }
            Ok(())
        }
    }

    #[test]
    fn wraps_and_unwraps_the_known_vectors() {
        let key = LocalKey::generate(&From(0)).unwrap();
        assert_eq!(key.id().as_str(), KEY_ID);
        let dek = Dek::generate(&From(0x80)).unwrap();
        let subject: Subject = "db:sqlite:tenant:demo:demo.sqlite3".parse().unwrap();
        let file_id: FileId = "0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a10".parse().unwrap();
        let dek_id: DekId = "4f1c0a9be2d35577".parse().unwrap();
        let context = WrapContext {
            subject: &subject,
            file_id,
            cipher: Cipher::Sqlcipher4,
            dek_id,
        };
        for (algorithm, sealed) in VECTORS {
            let expected = SALT_HEX.to_owned() + sealed;
            let kind = ProviderKind::MasterKeyFile;
            let wrapped = key
                .wrap(kind, algorithm, &From(0x40), &dek, &context)
                .unwrap();
            let wrap = wrapped.at(Timestamp::from_unix(0).unwrap());
            assert_eq!(
                data_encoding::HEXLOWER.encode(&wrap.blob),
                expected,
                "{algorithm:?}"
            );
            let Unwrapped::Key(opened) = key.unwrap(kind, &wrap, &context).unwrap() else {
                panic!("not known as its own")
            };
            assert_eq!(
                *opened.bytes(),
                core::array::from_fn(|index| 0x80 + index as u8)
            );
        }
        assert_eq!(
            data_encoding::HEXLOWER.encode(dek.cipher_key(&file_id).expose()),
            "f06d11199952a51c28229f0cf4cb808efe9cd3910e64d9c8350baa5f62938b9c"
        );
    }
}
