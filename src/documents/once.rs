//! Requests that are done once, however often they are sent.

use std::time::Duration;

use sha2::{Digest as _, Sha256};

/// How long a key is remembered.
pub const REMEMBERED_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// The most keys that a tenant remembers.
pub const MAX_REMEMBERED: i64 = 1_000_000;

/// The most bytes of answers that a tenant remembers: 256 MiB.
pub const MAX_REMEMBERED_BYTES: i64 = 256 << 20;

/// Of both, one credential may have a half: so that none of them uses up what all need.
pub const CREDENTIAL_PART: i64 = 2;

/// The key that a client gives a request, which request it is, and whose: all as hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Once {
    key: [u8; 32],
    request: [u8; 32],
    credential: [u8; 32],
}

impl Once {
    /// The request with this hash, under a client's key, from who is called so.
    #[must_use]
    pub fn new(key: &[u8], request: [u8; 32], credential: &str) -> Self {
        Self {
            key: Sha256::digest(key).into(),
            request,
            credential: Sha256::digest(credential).into(),
        }
    }

    /// The hash of the key.
    #[must_use]
    pub fn key(&self) -> &[u8; 32] {
        &self.key
    }

    /// The hash of what the credential is called.
    #[must_use]
    pub fn credential(&self) -> &[u8; 32] {
        &self.credential
    }

    /// The hash of the request.
    #[must_use]
    pub fn request(&self) -> &[u8; 32] {
        &self.request
    }
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done<T> {
    /// What was done, now or when the request was first sent.
    pub outcome: T,
    /// Whether it was done before.
    pub replayed: bool,
}
