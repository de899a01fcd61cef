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
use nimbus_manifests::{HKDF_INFO_KEK_ID, KeyId, ProviderKind, Wrap, WrapAlgorithm, WrapContext};
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
        match algorithm {
            LocalAlgorithm::Aes256Gcm => {
                self.seal::<Aes256Gcm>(salt, &context, dek, text, tag);
            }
            LocalAlgorithm::XChaCha20Poly1305 => {
                self.seal::<XChaCha20Poly1305>(salt, &context, dek, text, tag);
            }
        }
        Ok(Wrapped {
            provider: kind,
            key_id: self.id.clone(),
            algorithm: algorithm.into(),
            blob,
        })
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
        let dek = match algorithm {
            LocalAlgorithm::Aes256Gcm => self.open::<Aes256Gcm>(salt, &context, text, tag),
            LocalAlgorithm::XChaCha20Poly1305 => {
                self.open::<XChaCha20Poly1305>(salt, &context, text, tag)
            }
        };
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
