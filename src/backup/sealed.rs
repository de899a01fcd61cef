//! What a repository says under a MAC: three lines, the second of them JSON.
//!
//! ```text
//! nimbus-snapshot/1
//! {"number":…,…}                                            one line of JSON
//! mac: <control file-id> <dek-id> <base64 of 32 bytes>
//! ```
//!
//! The MAC is HMAC-SHA-256 (RFC 2104) over every byte before its base64, under the archive key of
//! the control file's data key.

use data_encoding::BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use nimbus_keyproviders::ArchiveKey;
use nimbus_manifests::{DekId, FileId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::Sha256;

use crate::control::ArchiveSealer;

/// Why what is sealed cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealedError {
    /// Another format.
    #[error("its format is {0}")]
    Format(String),
    /// It is none.
    #[error("{0}")]
    Malformed(String),
}

/// What stands in the second line.
pub trait Claims: Serialize + DeserializeOwned {
    /// The first line.
    const FORMAT: &'static str;

    /// Refuses what no release writes.
    ///
    /// # Errors
    ///
    /// What is wrong.
    fn check(&self) -> Result<(), String>;
}

/// The three lines that say `claims`.
pub(super) fn seal<T: Claims>(claims: &T, sealer: &ArchiveSealer) -> Vec<u8> {
    let body = serde_json::to_string(claims).expect("strings and numbers are JSON");
    let format = T::FORMAT;
    let mut text = format!(
        "{format}\n{body}\nmac: {} {} ",
        sealer.file_id, sealer.dek_id
    );
    let mac = mac(&sealer.key, text.as_bytes()).finalize().into_bytes();
    text.push_str(&BASE64.encode(&mac));
    text.push('\n');
    text.into_bytes()
}

/// Three lines whose MAC was not verified.
#[derive(Debug, Clone)]
pub struct Sealed<T> {
    /// What they say.
    pub claims: T,
    /// The control file whose data key they are sealed with.
    pub file_id: FileId,
    /// That data key.
    pub dek_id: DekId,
    text: Vec<u8>,
    mac: Vec<u8>,
}

impl<T: Claims> Sealed<T> {
    /// Reads three lines, and nothing else.
    ///
    /// # Errors
    ///
    /// [`SealedError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, SealedError> {
        match Self::parse_head(bytes)? {
            (read, length) if length == bytes.len() => Ok(read),
            _ => Err(malformed("something stands behind its MAC")),
        }
    }

    /// Reads the three lines with which `bytes` begin, and answers how long they are.
    ///
    /// # Errors
    ///
    /// [`SealedError`].
    pub fn parse_head(bytes: &[u8]) -> Result<(Self, usize), SealedError> {
        let ends = ends(bytes);
        let line = |number: usize| {
            let begin = number
                .checked_sub(1)
                .map_or(Some(0), |before| ends.get(before).map(|end| end + 1))?;
            std::str::from_utf8(&bytes[begin..*ends.get(number)?]).ok()
        };
        let format = line(0).ok_or_else(|| malformed("it is cut short"))?;
        if format != T::FORMAT {
            let name = T::FORMAT.trim_end_matches(|digit: char| digit.is_ascii_digit());
            return Err(match format.starts_with(name) {
                true => SealedError::Format(format.to_owned()),
                false => malformed("it is not what stands under such a name"),
            });
        }
        let body = line(1).ok_or_else(|| malformed("it is cut short"))?;
        let seal = line(2).and_then(|line| line.strip_prefix("mac: "));
        let seal = seal.ok_or_else(|| malformed("its MAC is cut short"))?;
        let [file_id, dek_id, mac] = seal.split(' ').collect::<Vec<_>>()[..] else {
            return Err(malformed("its MAC is not right"));
        };
        let claims: T = serde_json::from_str(body)
            .map_err(|error| SealedError::Malformed(error.to_string()))?;
        claims.check().map_err(SealedError::Malformed)?;
        let wrong = || malformed("its MAC is not right");
        let read = Self {
            claims,
            file_id: file_id.parse().map_err(|_| wrong())?,
            dek_id: dek_id.parse().map_err(|_| wrong())?,
            text: bytes[..ends[2] - mac.len()].to_vec(),
            mac: BASE64.decode(mac.as_bytes()).map_err(|_| wrong())?,
        };
        Ok((read, ends[2] + 1))
    }

    /// Whether the MAC is right, in constant time.
    #[must_use]
    pub fn is_authentic(&self, key: &ArchiveKey) -> bool {
        mac(key, &self.text).verify_slice(&self.mac).is_ok()
    }
}

/// Where the first three lines end; fewer where they do not.
pub(super) fn ends(bytes: &[u8]) -> Vec<usize> {
    let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    ends.map(|(at, _)| at).take(3).collect()
}

fn malformed(why: &str) -> SealedError {
    SealedError::Malformed(why.to_owned())
}

/// Whether two keys are one, in constant time.
pub(super) fn is_same_key(one: &ArchiveKey, other: &ArchiveKey) -> bool {
    let of_one = mac(one, b"").finalize().into_bytes();
    mac(other, b"").verify_slice(&of_one).is_ok()
}

fn mac(key: &ArchiveKey, text: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose()).expect("HMAC takes any key");
    mac.update(text);
    mac
}
