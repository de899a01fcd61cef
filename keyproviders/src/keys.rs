//! The data key of one file, and the keys derived from it.
//!
//! ```text
//! DEK ─┬─ HKDF-SHA256 info "nimbus-enc/1 data"     ─► CipherKey
//!      ├─ HKDF-SHA256 info "nimbus-enc/1 manifest" ─► MacKey (and key commitment)
//!      ├─ HKDF-SHA256 info "nimbus-enc/1 archive"  ─► ArchiveKey
//!      ├─ HKDF-SHA256 info "nimbus-enc/1 audit"    ─► AuditKey (of the control file's DEK alone)
//!      ├─ HKDF-SHA256 info "nimbus-enc/1 seal"     ─► SealKey  (of tenants in databases)
//!      └─ HKDF-SHA256 info "nimbus-enc/1 blind"    ─► BlindKey (of the same)
//! ```
//!
//! The salt is the 16 bytes of the file-id (RFC 5869). The DEK itself encrypts nothing.

use std::fmt;

use hkdf::Hkdf;
use nimbus_manifests::{
    FileId, HKDF_INFO_ARCHIVE, HKDF_INFO_AUDIT, HKDF_INFO_BLIND, HKDF_INFO_DATA,
    HKDF_INFO_MANIFEST, HKDF_INFO_SEAL, MacKey, on_wiped_stack,
};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::memory::{KEY_BYTES, KeyBytes};
use crate::random::{RandomError, SecureRandom};

/// A data encryption key: 32 random bytes, one a file. Wiped when dropped; cannot be cloned,
/// printed or serialised, and its bytes never leave this crate.
pub struct Dek(KeyBytes);

impl Dek {
    /// A new key from `random`.
    ///
    /// # Errors
    /// When the source of randomness does not deliver.
    pub fn generate(random: &dyn SecureRandom) -> Result<Self, RandomError> {
        let mut bytes = KeyBytes::zeroed();
        random.fill(&mut *bytes)?;
        Ok(Self(bytes))
    }

    /// The key that the file itself is encrypted with.
    #[must_use]
    pub fn cipher_key(&self, file_id: &FileId) -> CipherKey {
        let mut key = KeyBytes::zeroed();
        self.derive(file_id, HKDF_INFO_DATA, &mut key);
        CipherKey(key)
    }

    /// The key that authenticates the file's manifest, and thereby commits to this DEK.
    #[must_use]
    pub fn manifest_key(&self, file_id: &FileId) -> MacKey {
        MacKey::init_with(|key| self.derive(file_id, HKDF_INFO_MANIFEST, key))
    }

    /// The key that authenticates what a backup archive holds of the file.
    #[must_use]
    pub fn archive_key(&self, file_id: &FileId) -> ArchiveKey {
        let mut key = KeyBytes::zeroed();
        self.derive(file_id, HKDF_INFO_ARCHIVE, &mut key);
        ArchiveKey(key)
    }

    /// The key that authenticates the lines of the audit log; meant for the control file's DEK.
    #[must_use]
    pub fn audit_key(&self, file_id: &FileId) -> AuditKey {
        let mut key = KeyBytes::zeroed();
        self.derive(file_id, HKDF_INFO_AUDIT, &mut key);
        AuditKey(key)
    }

    /// The key from which each sealed value of a tenant in a database gets its own.
    #[must_use]
    pub fn seal_key(&self, file_id: &FileId) -> SealKey {
        let mut key = KeyBytes::zeroed();
        self.derive(file_id, HKDF_INFO_SEAL, &mut key);
        SealKey(key)
    }

    /// The key that blinds index entries of a tenant in a database.
    #[must_use]
    pub fn blind_key(&self, file_id: &FileId) -> BlindKey {
        let mut key = KeyBytes::zeroed();
        self.derive(file_id, HKDF_INFO_BLIND, &mut key);
        BlindKey(key)
    }

    /// A key filled in place by what unwrapped it.
    pub(crate) fn try_init_with<E>(
        fill: impl FnOnce(&mut [u8; KEY_BYTES]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut bytes = KeyBytes::zeroed();
        fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The bytes, for wrapping.
    pub(crate) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Whether this is `other`, in constant time.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.bytes().ct_eq(other.bytes()).into()
    }

    fn derive(&self, file_id: &FileId, info: &[u8], out: &mut [u8; KEY_BYTES]) {
        hkdf_sha256(Some(file_id.as_bytes()), self.bytes(), info, out);
    }
}

impl fmt::Debug for Dek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dek([REDACTED])")
    }
}

/// The key of a file's cipher. Wiped when dropped.
pub struct CipherKey(KeyBytes);

impl CipherKey {
    /// The bytes: the one way out, for the modules that hand them to SQLCipher or to the block
    /// cipher. Whoever copies them wipes the copy.
    #[must_use]
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for CipherKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CipherKey([REDACTED])")
    }
}

/// The MAC key of a file's backup archive. Wiped when dropped.
pub struct ArchiveKey(KeyBytes);

impl ArchiveKey {
    /// The bytes, for the archive's MAC only. Whoever copies them wipes the copy.
    #[must_use]
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for ArchiveKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ArchiveKey([REDACTED])")
    }
}

/// The MAC key of the audit log. Wiped when dropped.
pub struct AuditKey(KeyBytes);

impl AuditKey {
    /// The bytes, for the log's MAC only. Whoever copies them wipes the copy.
    #[must_use]
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for AuditKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuditKey([REDACTED])")
    }
}

/// The key of a tenant's sealed values: it encrypts nothing itself. Wiped when dropped.
pub struct SealKey(KeyBytes);

impl SealKey {
    /// The bytes, for the derivation of a value's key only. Whoever copies them wipes the copy.
    #[must_use]
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey([REDACTED])")
    }
}

/// The key of a tenant's blind index entries. Wiped when dropped.
pub struct BlindKey(KeyBytes);

impl BlindKey {
    /// The bytes, for HMAC only. Whoever copies them wipes the copy.
    #[must_use]
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for BlindKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlindKey([REDACTED])")
    }
}

/// The MAC key of a database's pages, which SQLCipher derives from the file's cipher key. Wiped
/// when dropped.
pub struct PageMacKey(KeyBytes);

impl PageMacKey {
    /// A copy of `key`, which its owner still has to wipe.
    #[must_use]
    pub fn copy_of(key: &[u8; KEY_BYTES]) -> Self {
        let mut bytes = KeyBytes::zeroed();
        bytes.copy_from_slice(key);
        Self(bytes)
    }

    /// Whether it is `key`, in constant time.
    #[must_use]
    pub fn is(&self, key: &[u8; KEY_BYTES]) -> bool {
        self.0.ct_eq(key).into()
    }
}

impl fmt::Debug for PageMacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PageMacKey([REDACTED])")
    }
}

/// HKDF-SHA256 (RFC 5869), leaving nothing behind but `out`: `Hkdf` drops blocks of its output, and
/// `Hkdf::new` the pseudorandom key, unwiped. The HMAC states wipe themselves (feature "zeroize").
///
/// # Panics
/// When `out` is longer than 255 hashes, which no caller here comes near.
pub(crate) fn hkdf_sha256(salt: Option<&[u8]>, key: &[u8], info: &[u8], out: &mut [u8]) {
    on_wiped_stack(|| Hkdf::<Sha256>::new(salt, key).expand(info, out))
        .expect("the output is far shorter than 255 hashes");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::OsRandom;

    #[test]
    fn derives_a_different_key_for_each_purpose_and_file() {
        let dek = Dek::generate(&OsRandom).unwrap();
        let [one, two]: [FileId; 2] = [
            "0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a10".parse().unwrap(),
            "0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a11".parse().unwrap(),
        ];
        let data = dek.cipher_key(&one);
        assert_eq!(data.expose(), dek.cipher_key(&one).expose());
        assert_ne!(data.expose(), dek.cipher_key(&two).expose());
        assert_ne!(data.expose(), dek.archive_key(&one).expose());
        assert_ne!(dek.audit_key(&one).expose(), dek.archive_key(&one).expose());
        assert_ne!(data.expose(), dek.bytes());
        let (seal, blind) = (dek.seal_key(&one), dek.blind_key(&one));
        assert_ne!(seal.expose(), blind.expose());
        assert_ne!(seal.expose(), dek.seal_key(&two).expose());
        assert_ne!(seal.expose(), data.expose());
        assert_ne!(blind.expose(), data.expose());
        assert_eq!(
            format!("{seal:?}{blind:?}"),
            "SealKey([REDACTED])BlindKey([REDACTED])"
        );
    }

    #[test]
    fn prints_no_key_bytes() {
        let dek = Dek::generate(&OsRandom).unwrap();
        let file_id: FileId = "0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a10".parse().unwrap();
        assert_eq!(format!("{dek:?}"), "Dek([REDACTED])");
        assert_eq!(
            format!("{:?}", dek.cipher_key(&file_id)),
            "CipherKey([REDACTED])"
        );
        assert_eq!(
            format!("{:?}", dek.archive_key(&file_id)),
            "ArchiveKey([REDACTED])"
        );
    }

    #[test]
    fn hkdf_matches_rfc_5869_test_case_1() {
        let mut out = [0; 42];
        hkdf_sha256(
            Some(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
            &[0x0b; 22],
            &[0xf0, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9],
            &mut out,
        );
        assert_eq!(
            data_encoding::HEXLOWER.encode(&out),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
        );
    }
}
