//! One file a resource; each handler parses, calls the library, and answers.

pub(super) mod admin;
pub(super) mod apps;
pub(super) mod audit;
pub(super) mod batch;
pub(super) mod deploy;
pub(super) mod documents;
pub(super) mod health;
pub(super) mod journal;
pub(super) mod lock;
pub(super) mod query;
pub(super) mod tenants;

use nimbus_manifests::TenantId;

use super::error::{ApiError, Code};

/// A tenant id from a path or a body.
fn tenant_id(text: &str) -> Result<TenantId, ApiError> {
    text.parse()
        .map_err(|error: nimbus_manifests::InvalidName| {
            ApiError::new(Code::InvalidInput, error.to_string())
        })
}
