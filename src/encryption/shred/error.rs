//! Why a tenant was not shredded.

use nimbus_keyproviders::{KeyFileError, ProviderError};
use nimbus_manifests::TenantId;

use crate::envelope::EnvelopeError;
use crate::tenants::StoreError;

/// Why a tenant was not shredded, or not to the end: run it again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShredError {
    /// Its key file could not be destroyed.
    #[error("the key file of tenant {tenant} could not be destroyed; nothing else was done")]
    KeyFile {
        /// The tenant.
        tenant: TenantId,
        /// Why.
        source: KeyFileError,
    },
    /// The audit log cannot be written.
    #[error(transparent)]
    Audit(#[from] EnvelopeError),
    /// The KMS key that is the tenant's own could not be found out, or not disabled.
    #[error(
        "the KMS key of tenant {tenant} could not be disabled; of the data nothing was removed. Without --disable-kms-key it is shredded all the same"
    )]
    KmsKey {
        /// The tenant.
        tenant: TenantId,
        /// Why.
        source: ProviderError,
    },
    /// Nothing is there to be destroyed.
    #[error(
        "there is no tenant {tenant}, nor anything left of one; `nimbus encryption status` lists what is there"
    )]
    NoTenant {
        /// The tenant.
        tenant: TenantId,
    },
    /// The tenants cannot be listed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The deletion failed; the next start finishes one that has begun.
    #[error("{source}. {worth}")]
    Halfway {
        /// Why.
        source: StoreError,
        /// What copies of its files are still worth.
        worth: String,
    },
}
