//! The caller of a request.

use std::fmt;

use data_encoding::HEXLOWER;
use nimbus_manifests::TenantId;

use super::error::ApiError;
use crate::control::{AccessKeyId, Scope};

/// The caller of a request: an extension of every request that needed a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// The holder of the admin token.
    Admin {
        /// Tells one token from the next.
        credential: CredentialId,
    },
    /// The holder of a tenant access key.
    Key {
        /// The key's public id.
        id: AccessKeyId,
        /// The tenant that it is for.
        tenant: TenantId,
        /// What it allows.
        scope: Scope,
    },
}

/// As logs name the caller: `admin:5f0c2a91`, `key:<id>`.
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin { credential } => write!(f, "admin:{credential}"),
            Self::Key { id, .. } => write!(f, "key:{id}"),
        }
    }
}

/// The beginning of an admin token's SHA-256: enough to tell two tokens apart, nothing to guess one
/// by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CredentialId([u8; 4]);

impl CredentialId {
    /// The id of the token with this SHA-256.
    #[must_use]
    pub fn of_digest(digest: &[u8; 32]) -> Self {
        let [a, b, c, d, ..] = *digest;
        Self([a, b, c, d])
    }
}

impl fmt::Display for CredentialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for CredentialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The caller of a request, or why there is none: an extension of it until its route is found.
#[derive(Debug, Clone)]
pub(super) struct Identified(pub(super) Result<Caller, ApiError>);
