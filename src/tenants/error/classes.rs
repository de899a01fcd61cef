//! What a failure means to the caller.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;

use nimbus_manifests::TenantId;

use super::NoDataKeys;
use crate::process;
use crate::tenants::{EngineFault, StoreError};

impl StoreError {
    /// The database of a backup does not become a tenant here.
    pub(in crate::tenants) fn not_adopted(
        tenant: &TenantId,
        source: impl StdError + Send + Sync + 'static,
    ) -> Self {
        Self::Adopt {
            tenant: tenant.clone(),
            source: Arc::new(source),
        }
    }

    /// Tenants of this provider are not files of Nimbus.
    pub(in crate::tenants) fn adopts_none(tenant: &TenantId) -> Self {
        Self::not_adopted(tenant, NoDataKeys)
    }

    /// A tenant gets no new data key, for it has none.
    pub(in crate::tenants) fn no_data_keys(tenant: &TenantId) -> Self {
        Self::Rekey {
            tenant: tenant.clone(),
            source: Arc::new(NoDataKeys),
        }
    }

    /// Whether the process, or the machine, had no files, threads or memory left. It may have once
    /// something is closed.
    pub(in crate::tenants) fn is_exhaustion(&self) -> bool {
        match self {
            Self::Open { exhausted, .. } => *exhausted,
            Self::Engine { fault, .. } => *fault == EngineFault::Exhausted,
            Self::Envelope { source, .. } | Self::Unaudited { source, .. } => {
                is_exhaustion(&**source)
            }
            Self::Control { source } => is_exhaustion(&**source),
            Self::Io { source, .. } => is_exhaustion(&**source),
            _ => false,
        }
    }

    /// Whether the engine failed at its task, and not because something of the
    /// machine is missing.
    pub(in crate::tenants) fn is_of_statement(&self) -> bool {
        matches!(
            self,
            Self::Engine {
                fault: EngineFault::Statement,
                ..
            }
        )
    }

    /// Whether it is about the mutation that was asked for, and not about the tenant or the
    /// machine.
    #[must_use]
    pub fn concerns_mutation(&self) -> bool {
        matches!(
            self,
            Self::DocumentNotFound { .. }
                | Self::DocumentExists { .. }
                | Self::PreconditionFailed { .. }
                | Self::Input(_)
                | Self::TooManyTables { .. }
                | Self::SchemaViolation { .. }
                | Self::NotUnique { .. }
        )
    }
}

fn is_exhaustion(error: &(dyn StdError + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(process::is_exhaustion)
}
