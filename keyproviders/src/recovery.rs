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
//! so that stock `age -d` opens it, with or without nimbus. The digest says which file, subject
//! and DEK the key is for. Opening a file in service never needs it.
//!
//! The `age` crate wraps the file key. The payload, one chunk of 64 bytes, is sealed here, because
//! the crate's stream writer frees its plaintext buffer unwiped. What it leaves on the stack while
//! it wraps the file key (the X25519 shared secret's derivative) is beyond reach here.
//!
//! What is proven of a wrap before it is given out: the crate reads it as an age file with this one
//! stanza and a header MAC under its file key, and the payload opens to this context and this data
//! key. Not proven: that somebody holds the private half, and that the stanza gives it the file
//! key. Only a drill with the identity shows that.

use std::fmt;
use std::str::FromStr;

use age::Recipient as _;
use age::secrecy::ExposeSecret;
use age_core::format::{FILE_KEY_BYTES, FileKey, Stanza};
use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use data_encoding::{BASE64_NOPAD, Specification};
use hmac::{Hmac, Mac};
use nimbus_manifests::{
    KeyId, ProviderKind, Timestamp, Wrap, WrapAlgorithm, WrapContext, on_wiped_stack,
};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

pub use crate::error::RecipientError;
use crate::error::{ProviderError, Unproven};
use crate::keys::{Dek, hkdf_sha256};
use crate::memory::KEY_BYTES;
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

    /// Wraps `dek` for this recipient, and proves the wrap as far as that goes without the
    /// identity.
    ///
    /// # Errors
    /// When there is no randomness, or [`ProviderError::Unproven`].
    pub fn wrap(
        &self,
        dek: &Dek,
        context: &WrapContext<'_>,
        at: Timestamp,
    ) -> Result<Wrap, ProviderError> {
        on_wiped_stack(|| self.wrap_here(dek, context, at))
    }

    fn wrap_here(
        &self,
        dek: &Dek,
        context: &WrapContext<'_>,
        at: Timestamp,
    ) -> Result<Wrap, ProviderError> {
        let subject = context.subject;
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
        if !opens(&file, &file_key, &Sha256::digest(&context), dek) {
            return Err(ProviderError::Unproven {
                provider: ProviderKind::Age,
                key_id: self.id.clone(),
                subject: subject.clone(),
                source: Unproven::Malformed,
            });
        }
        Ok(Wrap {
            provider: ProviderKind::Age,
            key_id: self.id.clone(),
            algorithm: WrapAlgorithm::X25519,
            at,
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
        let spelled = key.to_string();
        if is_of_low_order(&spelled) {
            return Err(RecipientError::LowOrder { given: given() });
        }
        // Bech32 allows all capitals too; the manifest knows one spelling.
        let id = KeyId::new(spelled).map_err(|_| RecipientError::Invalid {
            given: given(),
            reason: "not a key id",
        })?;
        Ok(Self { key, id })
    }
}

/// Whether `file` is an age file of one X25519 stanza under `file_key`, whose payload is `digest`
/// and `dek`.
fn opens(file: &[u8], file_key: &FileKey, digest: &[u8], dek: &Dek) -> bool {
    let known = ExpectedKey(file_key);
    let header_is_right = age::Decryptor::new_buffered(file)
        .and_then(|file| file.decrypt(std::iter::once(&known as &dyn age::Identity)))
        .is_ok();
    let Some((rest, tag)) = file.split_last_chunk::<16>() else {
        return false;
    };
    let Some((rest, payload)) = rest.split_last_chunk::<{ 2 * KEY_BYTES }>() else {
        return false;
    };
    let Some((_header, nonce)) = rest.split_last_chunk::<16>() else {
        return false;
    };
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    hkdf_sha256(Some(nonce), file_key.expose_secret(), b"payload", &mut *key);
    let mut payload = Zeroizing::new(*payload);
    let opened = ChaCha20Poly1305::new_from_slice(&*key)
        .expect("the cipher takes 32 bytes of key")
        .decrypt_inout_detached(
            &LAST_CHUNK.into(),
            b"",
            payload.as_mut_slice().into(),
            tag.into(),
        );
    let same = payload[..KEY_BYTES].ct_eq(digest) & payload[KEY_BYTES..].ct_eq(dek.bytes());
    header_is_right && opened.is_ok() && same.into()
}

/// Stands in for the identity: it knows the file key, and says so to one stanza of the right form.
struct ExpectedKey<'a>(&'a FileKey);

impl age::Identity for ExpectedKey<'_> {
    fn unwrap_stanza(&self, stanza: &Stanza) -> Option<Result<FileKey, age::DecryptError>> {
        let share = match stanza.args.as_slice() {
            [share] => BASE64_NOPAD.decode(share.as_bytes()).ok()?,
            _ => return None,
        };
        let right = stanza.tag == "X25519"
            && share.len() == POINT_BYTES
            && share.iter().any(|byte| *byte != 0)
            && stanza.body.len() == FILE_KEY_BYTES + TAG_BYTES;
        let copy = |bytes: &mut [u8; FILE_KEY_BYTES]| *bytes = *self.0.expose_secret();
        right.then(|| Ok(FileKey::init_with_mut(copy)))
    }
}

/// Whether the point of a recipient, spelled in Bech32, is one that makes every shared secret the
/// same.
fn is_of_low_order(spelled: &str) -> bool {
    let mut bech32 = Specification::new();
    bech32.symbols.push_str("qpzry9x8gf2tvdw0s3jn54khce6mua7l");
    let encoding = bech32.encoding().expect("32 different symbols");
    let data = spelled.strip_prefix("age1");
    // The last six characters are the checksum, which the parser has looked at.
    let data = data.and_then(|data| data.get(..data.len().checked_sub(6)?));
    let Some(mut point) = data.and_then(|data| encoding.decode(data.as_bytes()).ok()) else {
        return true;
    };
    // X25519 does not look at the highest bit.
    if let Some(last) = point.last_mut() {
        *last &= 0x7F;
    }
    LOW_ORDER.iter().any(|low| point == low)
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

const POINT_BYTES: usize = 32;
const TAG_BYTES: usize = 16;

/// The points of Curve25519 and of its twist whose order divides 8, every spelling of each below
/// 2^255.
const LOW_ORDER: [[u8; POINT_BYTES]; 7] = {
    // 2^255 - 19 with another lowest byte.
    const fn near_p(low: u8) -> [u8; POINT_BYTES] {
        let mut point = [0xFF; POINT_BYTES];
        point[0] = low;
        point[POINT_BYTES - 1] = 0x7F;
        point
    }
    const fn small(low: u8) -> [u8; POINT_BYTES] {
        let mut point = [0; POINT_BYTES];
        point[0] = low;
        point
    }
    [
        small(0),
        small(1),
        [
            0xE0, 0xEB, 0x7A, 0x7C, 0x3B, 0x41, 0xB8, 0xAE, 0x16, 0x56, 0xE3, 0xFA, 0xF1, 0x9F,
            0xC4, 0x6A, 0xDA, 0x09, 0x8D, 0xEB, 0x9C, 0x32, 0xB1, 0xFD, 0x86, 0x62, 0x05, 0x16,
            0x5F, 0x49, 0xB8, 0x00,
        ],
        [
            0x5F, 0x9C, 0x95, 0xBC, 0xA3, 0x50, 0x8C, 0x24, 0xB1, 0xD0, 0xB1, 0x55, 0x9C, 0x83,
            0xEF, 0x5B, 0x04, 0x44, 0x5C, 0xC4, 0x58, 0x1C, 0x8E, 0x86, 0xD8, 0x22, 0x4E, 0xDD,
            0xD0, 0x9F, 0x11, 0x57,
        ],
        near_p(0xEC),
        near_p(0xED),
        near_p(0xEE),
    ]
};

/// The nonce of a payload's first chunk when it is also the last: counter 0, flag 1.
const LAST_CHUNK: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
