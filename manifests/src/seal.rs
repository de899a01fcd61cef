//! A manifest with its MAC: HMAC-SHA-256 (RFC 2104) over every byte up to and including `mac: `.
//!
//! The key is derived from the first data key, so that the MAC is also the commitment to it: a data
//! key that was unwrapped by mistake does not verify.

use std::fmt;

use data_encoding::BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroize as _;

use crate::error::{MacMismatch, ParseError};
use crate::manifest::{MAC_VALUE_BYTES, Manifest};
use crate::parser;
use crate::wiped_stack::on_wiped_stack;

/// The key of a manifest's MAC. It stays where it was made, and is wiped when dropped.
pub struct MacKey(Box<[u8; 32]>);

impl MacKey {
    /// A key that `fill` writes in place.
    #[must_use]
    pub fn init_with(fill: impl FnOnce(&mut [u8; 32])) -> Self {
        let mut key = Self(Box::new([0; 32]));
        fill(&mut key.0);
        key
    }

    fn mac(&self, text: &str) -> [u8; 32] {
        on_wiped_stack(|| self.over(text).finalize().into_bytes().into())
    }

    /// In constant time.
    fn is_mac(&self, mac: &[u8; 32], text: &str) -> bool {
        on_wiped_stack(|| self.over(text).verify_slice(mac).is_ok())
    }

    fn over(&self, text: &str) -> Hmac<Sha256> {
        <Hmac<Sha256>>::new_from_slice(&*self.0)
            .expect("HMAC takes a key of any length")
            .chain_update(text)
    }
}

impl Drop for MacKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for MacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MacKey([REDACTED])")
    }
}

/// A manifest with its MAC, in its one spelling. What it claims counts only after
/// [`SealedManifest::verify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedManifest {
    text: String,
    manifest: Manifest,
    mac: [u8; 32],
}

impl Manifest {
    /// Writes the manifest and its MAC. `key` is derived from the first data key.
    #[must_use]
    pub fn seal(&self, key: &MacKey) -> SealedManifest {
        SealedManifest::new(self.clone(), key)
    }
}

impl SealedManifest {
    fn new(manifest: Manifest, key: &MacKey) -> Self {
        let covered = manifest.covered_text();
        let mac = key.mac(&covered);
        Self::assemble(covered, manifest, mac)
    }

    /// Reads the one spelling of a manifest. Nothing in it is verified.
    ///
    /// # Errors
    ///
    /// [`ParseError`] names the line and the rule.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let (manifest, mac) = parser::parse(bytes)?;
        Ok(Self::assemble(manifest.covered_text(), manifest, mac))
    }

    fn assemble(mut text: String, manifest: Manifest, mac: [u8; 32]) -> Self {
        BASE64.encode_append(&mac, &mut text);
        text.push('\n');
        Self {
            text,
            manifest,
            mac,
        }
    }

    /// What the manifest claims, before anyone verified it: enough to choose a key to unwrap with.
    #[must_use]
    pub fn claims(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest, if `key` made its MAC. In constant time.
    ///
    /// # Errors
    ///
    /// [`MacMismatch`]: the text was changed, or the key is not the one it was written under.
    pub fn verify(&self, key: &MacKey) -> Result<&Manifest, MacMismatch> {
        let covered = &self.text[..self.text.len() - MAC_VALUE_BYTES];
        if key.is_mac(&self.mac, covered) {
            Ok(&self.manifest)
        } else {
            Err(MacMismatch)
        }
    }

    /// The manifest as it lies on the disk.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COVERED: &str = "\
nimbus-enc/1
subject: db:redb:control:nimbus-control.db
file-id: 0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a10
cipher: blocks1
state: ready
revision: 1
created: 2026-11-22T18:04:05Z
dek: 4f1c0a9be2d35577 2026-11-22T18:04:05Z
wrap: aws-kms arn:aws:kms:x symmetric-default 2026-11-22T18:04:06Z
 AQIDBA==
mac: ";
    /// Made with `openssl dgst -sha256 -mac HMAC -macopt hexkey:0707…07 -binary | base64` over
    /// [`COVERED`].
    const MAC: &str = "Y/9ivGTmjlCNoGXNxVi7Vx3yvarAFQcQD0j6bb3OJso=";

    fn sealed() -> SealedManifest {
        SealedManifest::parse(format!("{COVERED}{MAC}\n").as_bytes()).unwrap()
    }

    fn key(byte: u8) -> MacKey {
        MacKey::init_with(|key| key.fill(byte))
    }

    #[test]
    fn accepts_the_known_mac_over_every_byte_up_to_it() {
        let sealed = sealed();
        assert_eq!(sealed.verify(&key(7)), Ok(sealed.claims()));
    }

    #[test]
    fn writes_the_known_mac() {
        let sealed = sealed().claims().seal(&key(7));
        assert_eq!(sealed.as_bytes(), format!("{COVERED}{MAC}\n").as_bytes());
        assert_eq!(sealed, super::tests::sealed());
    }

    #[test]
    fn rejects_another_key() {
        assert_eq!(sealed().verify(&key(8)), Err(MacMismatch));
    }

    #[test]
    fn rejects_another_text_under_the_same_mac() {
        let text = format!("{COVERED}{MAC}\n").replace("revision: 1", "revision: 2");
        let sealed = SealedManifest::parse(text.as_bytes()).unwrap();
        assert_eq!(sealed.verify(&key(7)), Err(MacMismatch));
    }

    #[test]
    fn rejects_another_mac() {
        let zeros = format!("{COVERED}AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n");
        let sealed = SealedManifest::parse(zeros.as_bytes()).unwrap();
        assert_eq!(sealed.verify(&key(7)), Err(MacMismatch));
    }

    #[test]
    fn prints_no_key() {
        assert_eq!(format!("{:?}", key(7)), "MacKey([REDACTED])");
    }
}
