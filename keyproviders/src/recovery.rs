//! Recovery recipients: the public half of an age identity whose private half lies in a safe.
//!
//! The wrapped key is an ordinary age file (<https://age-encryption.org/v1>) with one X25519
//! recipient:
//!
//! ```text
//! age-encryption.org/v1
//! -> X25519 <ephemeral share>
//! <file key, wrapped>
//! --- <HMAC-SHA256 of the header>
//! nonce (16) ‖ ChaCha20-Poly1305(SHA-256(context) ‖ DEK) ‖ tag
//! ```
//!
//! so that stock `age -d` opens it, with or without nimbus. The digest tells which file, subject
//! and DEK the key is for. Opening a file in service never needs it.
//!
//! The `age` crate wraps the file key. The payload, one chunk of 64 bytes, is sealed here, because
//! the crate's stream writer frees its plaintext buffer unwiped. What it leaves on the stack while it
//! wraps the file key (the X25519 shared secret's derivative) is beyond reach here.

use std::fmt;
use std::str::FromStr;

use age::Recipient as _;
use age::secrecy::ExposeSecret;
use age_core::format::{FileKey, Stanza};
use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use data_encoding::BASE64_NOPAD;
use hmac::{Hmac, Mac};
use nimbus_manifests::{KeyId, ProviderKind, WrapAlgorithm, WrapContext};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::error::ProviderError;
use crate::keys::{Dek, hkdf_sha256};
use crate::memory::KEY_BYTES;
use crate::provider::Wrapped;
use crate::random::{OsRandom, SecureRandom};

/// Someone who can open every file that is wrapped for them: an age X25519 public key, `age1…`.
#[derive(Clone, PartialEq, Eq)]
pub struct Recipient {
    key: age::x25519::Recipient,
    id: KeyId,
}

impl Recipient {
    /// The key id of wraps for this recipient: the public key as it was given.
    #[must_use]
    pub fn key_id(&self) -> &KeyId {
        &self.id
    }

    /// Wraps `dek` for this recipient.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn wrap(&self, dek: &Dek, context: &WrapContext<'_>) -> Result<Wrapped, ProviderError> {
        let context = context.encode(ProviderKind::Age, &self.id);
        let file_key = FileKey::try_init_with_mut(|bytes| OsRandom.fill(bytes))?;
        let mut file = self.header(&file_key)?;
        let mut nonce = [0; 16];
        OsRandom.fill(&mut nonce)?;
        file.extend_from_slice(&nonce);

        let mut key = Zeroizing::new([0; KEY_BYTES]);
        hkdf_sha256(
            Some(&nonce),
            file_key.expose_secret(),
            b"payload",
            &mut *key,
        );
        let mut payload = Zeroizing::new([0; 2 * KEY_BYTES]);
        payload[..KEY_BYTES].copy_from_slice(&Sha256::digest(&context));
        payload[KEY_BYTES..].copy_from_slice(dek.bytes());
        let tag = ChaCha20Poly1305::new_from_slice(&*key)
            .expect("the cipher takes 32 bytes of key")
            .encrypt_inout_detached(&LAST_CHUNK.into(), b"", payload.as_mut_slice().into())
            .expect("64 bytes are within the cipher's limits");
        file.extend_from_slice(&*payload);
        file.extend_from_slice(&tag);
        Ok(Wrapped {
            provider: ProviderKind::Age,
            key_id: self.id.clone(),
            algorithm: WrapAlgorithm::X25519,
            blob: file,
        })
    }

    /// The age header that gives this recipient the file key.
    fn header(&self, file_key: &FileKey) -> Result<Vec<u8>, ProviderError> {
        let (stanzas, _labels) =
            self.key
                .wrap_file_key(file_key)
                .map_err(|error| ProviderError::Recovery {
                    recipient: self.id.clone(),
                    source: Box::new(error),
                })?;
        let mut header = String::from("age-encryption.org/v1\n");
        for Stanza { tag, args, body } in &stanzas {
            header += &format!("-> {tag} {}\n", args.join(" "));
            let body = BASE64_NOPAD.encode(body);
            // Lines of 64 characters, the last one shorter, if need be empty.
            let (full, last) = body.split_at(body.len() - body.len() % 64);
            for line in full.as_bytes().chunks(64) {
                header += &format!("{}\n", String::from_utf8_lossy(line));
            }
            header += &format!("{last}\n");
        }
        header += "---";
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        hkdf_sha256(None, file_key.expose_secret(), b"header", &mut *key);
        let mac = <Hmac<Sha256> as hmac::KeyInit>::new_from_slice(&*key)
            .expect("HMAC takes a key of any length")
            .chain_update(&header)
            .finalize();
        header += &format!(" {}\n", BASE64_NOPAD.encode(&mac.into_bytes()));
        Ok(header.into_bytes())
    }
}

impl FromStr for Recipient {
    type Err = RecipientError;

    fn from_str(text: &str) -> Result<Self, RecipientError> {
        // Anywhere in it: with a space before it, say, or after the comment lines of `age-keygen`.
        if text.to_ascii_lowercase().contains("age-secret-key-") {
            return Err(RecipientError::SecretKey);
        }
        let given = || text.to_owned();
        let key = match text.parse::<age::x25519::Recipient>() {
            Ok(key) => key,
            // age1pq1…, age1tag1…, age1yubikey1…: a second separator names the kind.
            Err(_)
                if text.starts_with("ssh-")
                    || text
                        .strip_prefix("age1")
                        .is_some_and(|kind| kind.contains('1')) =>
            {
                return Err(RecipientError::NotX25519 { given: given() });
            }
            Err(reason) => {
                return Err(RecipientError::Invalid {
                    given: given(),
                    reason,
                });
            }
        };
        // Bech32 allows all capitals too; the manifest knows one spelling.
        let id = KeyId::new(key.to_string()).map_err(|_| RecipientError::Invalid {
            given: given(),
            reason: "not a key id",
        })?;
        Ok(Self { key, id })
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id.as_str())
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recipient({self})")
    }
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

/// The nonce of a payload's first chunk when it is also the last: counter 0, flag 1.
const LAST_CHUNK: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
