//! Values in a database whose engine is not to read them: one blob each, `docs/sealed-format.md`.
//!
//! ```text
//! blob       = 01 || DEK id (8) || salt (32) || commitment (32) || ciphertext || tag (16)
//! key, commitment = HKDF-SHA256(seal key, salt, info "nimbus-sealed/1 value"), 32 bytes each
//! ciphertext, tag = ChaCha20-Poly1305(key, nonce of zeros, padded content, associated data)
//! associated data = 01 || DEK id || context
//! ```
//!
//! Keys are on the stack while this works: who calls it wipes what is below.
//!
//! Each value has a key of its own, from 256 random bits: there is no nonce to run out of, and none
//! to repeat. The commitment binds a blob to one key, which the tag of this cipher does not.

use chacha20poly1305::aead::{AeadInOut as _, KeyInit as _};
use chacha20poly1305::{ChaCha20Poly1305, Nonce, Tag};
use hkdf::Hkdf;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize as _, Zeroizing};

/// Bytes of a key of this module.
pub const KEY: usize = 32;
/// Bytes of a salt.
pub const SALT: usize = 32;
/// Bytes of a blind index entry, for each field.
pub const BLIND: usize = 16;
/// Bytes of the MAC of a row.
pub const MAC: usize = 32;
/// What a blob has beside its padded content.
pub const OVERHEAD: usize = CIPHERTEXT + TAG;
/// The least that a content is padded to.
pub const LEAST: usize = 256;

const VERSION: u8 = 1;
const DEK_ID: usize = 8;
const COMMITMENT: usize = 32;
const TAG: usize = 16;
const SALT_AT: usize = 1 + DEK_ID;
const COMMITMENT_AT: usize = SALT_AT + SALT;
const CIPHERTEXT: usize = COMMITMENT_AT + COMMITMENT;
/// Where the padding begins; zeros follow (ISO/IEC 7816-4).
const PADDING: u8 = 0x80;

/// What a value is bound to: the tenant, the column, and the rest of its row. Each part is written
/// after its length, so that no two contexts are alike.
#[derive(Debug, Clone)]
pub struct Context(Vec<u8>);

impl Context {
    /// Of a column of a tenant, whose manifest has this subject and this file id.
    #[must_use]
    pub fn new(subject: &str, file_id: &str, column: &str) -> Self {
        let start = Self(b"nimbus-sealed/1 context".to_vec());
        let texts = [subject, file_id, column].into_iter();
        texts.fold(start, |context, text| context.bytes(text.as_bytes()))
    }

    /// The same with a text or bytes of the row.
    ///
    /// # Panics
    ///
    /// When it has 4 GiB.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        let length = u32::try_from(bytes.len()).expect("a part of a row is below 4 GiB");
        self.0.extend(length.to_be_bytes());
        self.0.extend(bytes);
        self
    }

    /// The same with an integer of the row.
    #[must_use]
    pub fn integer(self, integer: i64) -> Self {
        self.bytes(&integer.to_be_bytes())
    }

    /// The same with a part that the row does not have.
    #[must_use]
    pub fn absent(mut self) -> Self {
        self.0.extend(u32::MAX.to_be_bytes());
        self
    }
}

/// Why a blob does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotOpened {
    /// It is no blob of this version.
    Malformed,
    /// It is under another data key.
    OtherKey,
    /// It was changed, or is in another place than it was sealed for.
    Forged,
}

/// Seals a content under a salt that is used for nothing else.
#[must_use]
pub fn seal(
    key: &[u8; KEY],
    dek_id: [u8; DEK_ID],
    salt: &[u8; SALT],
    context: &Context,
    content: &[u8],
) -> Vec<u8> {
    let derived = derive(key, salt);
    let padded = padded(content.len());
    let mut blob = Vec::with_capacity(OVERHEAD + padded);
    blob.push(VERSION);
    blob.extend(dek_id);
    blob.extend(salt);
    blob.extend(&derived[KEY..]);
    blob.extend(content);
    blob.push(PADDING);
    blob.resize(CIPHERTEXT + padded, 0);
    let tag = cipher(&derived).encrypt_inout_detached(
        &Nonce::default(),
        &associated(dek_id, context),
        (&mut blob[CIPHERTEXT..]).into(),
    );
    blob.extend(tag.expect("a value is far shorter than the 256 GiB that the cipher takes"));
    blob
}

/// The content of a blob that was sealed for this context.
///
/// # Errors
///
/// [`NotOpened`]; nothing is decrypted then.
pub fn open(
    key: &[u8; KEY],
    dek_id: [u8; DEK_ID],
    context: &Context,
    mut blob: Vec<u8>,
) -> Result<Vec<u8>, NotOpened> {
    if blob.len() < OVERHEAD || blob[0] != VERSION {
        return Err(NotOpened::Malformed);
    }
    if blob[1..SALT_AT] != dek_id {
        return Err(NotOpened::OtherKey);
    }
    let mut salt = [0; SALT];
    salt.copy_from_slice(&blob[SALT_AT..COMMITMENT_AT]);
    let derived = derive(key, &salt);
    let commits: bool = derived[KEY..]
        .ct_eq(&blob[COMMITMENT_AT..CIPHERTEXT])
        .into();
    if !commits {
        return Err(NotOpened::Forged);
    }
    let mut tag = Tag::default();
    tag.copy_from_slice(&blob[blob.len() - TAG..]);
    blob.truncate(blob.len() - TAG);
    let opened = cipher(&derived).decrypt_inout_detached(
        &Nonce::default(),
        &associated(dek_id, context),
        (&mut blob[CIPHERTEXT..]).into(),
        &tag,
    );
    opened.map_err(|_forged| NotOpened::Forged)?;
    let content = blob.iter().rposition(|byte| *byte != 0);
    let end = content.filter(|at| *at >= CIPHERTEXT && blob[*at] == PADDING);
    blob.truncate(end.ok_or(NotOpened::Malformed)?);
    Ok(blob.split_off(CIPHERTEXT))
}

/// The salt of a value that is to have one blob wherever it is: a pseudorandom function of all that
/// is sealed (as SIV has it, RFC 5297). Equal blobs are then equal values of one context, which is
/// what makes it possible to find them, and all that they tell.
#[must_use]
pub fn salt_of(blind_key: &[u8; KEY], context: &Context, content: &[u8]) -> [u8; SALT] {
    let length = (context.0.len() as u64).to_be_bytes();
    prf(
        blind_key,
        &[b"nimbus-sealed/1 salt", &length, &context.0, content],
    )
}

/// The MAC of a row that is in the clear.
#[must_use]
pub fn mac_of(blind_key: &[u8; KEY], context: &Context) -> [u8; MAC] {
    prf(blind_key, &[b"nimbus-sealed/1 record", &context.0])
}

/// Whether it is that of the row, in constant time.
#[must_use]
pub fn is_mac_of(blind_key: &[u8; KEY], context: &Context, mac: &[u8]) -> bool {
    mac_of(blind_key, context).ct_eq(mac).into()
}

/// The key of the blind entries of one field. It stays where it was made, and is wiped when
/// dropped.
#[derive(Clone)]
pub struct FieldKey(Zeroizing<Vec<u8>>);

impl FieldKey {
    /// Of the field at this path in the documents of a table.
    #[must_use]
    pub fn new(blind_key: &[u8; KEY], table: &str, path: &[String]) -> Self {
        let texts = std::iter::once(table).chain(path.iter().map(String::as_str));
        let parts = texts.fold(Context(Vec::new()), |parts, text| {
            parts.bytes(text.as_bytes())
        });
        let label: &[u8] = b"nimbus-sealed/1 field";
        Self(Zeroizing::new(prf(blind_key, &[label, &parts.0]).to_vec()))
    }

    /// The entry of a value, given as bytes that equal values have alike.
    #[must_use]
    pub fn blind(&self, value: &[u8]) -> [u8; BLIND] {
        let full = prf(&self.0, &[value]);
        let mut entry = [0; BLIND];
        entry.copy_from_slice(&full[..BLIND]);
        entry
    }
}

impl std::fmt::Debug for FieldKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FieldKey([REDACTED])")
    }
}

/// The class of a content's size: Padmé (Nikitin et al., PETS 2019), from 256 bytes on.
fn padded(content: usize) -> usize {
    let length = (content + 1).max(LEAST);
    let exponent = length.ilog2();
    let kept = exponent.ilog2() + 1;
    let mask = (1 << (exponent - kept)) - 1;
    (length + mask) & !mask
}

fn derive(key: &[u8; KEY], salt: &[u8; SALT]) -> Zeroizing<[u8; KEY + COMMITMENT]> {
    let mut derived = Zeroizing::new([0; KEY + COMMITMENT]);
    let (mut pseudorandom_key, hkdf) = Hkdf::<Sha256>::extract(Some(salt), key);
    hkdf.expand(b"nimbus-sealed/1 value", &mut *derived)
        .expect("two hashes are fewer than 255");
    pseudorandom_key.as_mut_slice().zeroize();
    derived
}

fn cipher(derived: &[u8; KEY + COMMITMENT]) -> ChaCha20Poly1305 {
    let (key, _commitment) = derived.split_at(KEY);
    ChaCha20Poly1305::new_from_slice(key).expect("a key has 32 bytes")
}

fn associated(dek_id: [u8; DEK_ID], context: &Context) -> Vec<u8> {
    [&[VERSION][..], &dek_id, &context.0].concat()
}

fn prf(key: &[u8], parts: &[&[u8]]) -> [u8; KEY] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}
