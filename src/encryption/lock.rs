//! `lock` and `unlock`: an operator closes a tenant by hand, whatever its key provider, until it is
//! unlocked.
//!
//! The lock is written first, to the control file, or to the database where several servers share
//! the tenants; then the tenant is closed: a crash between leaves one that the next start, or the
//! other servers, find locked. At most one of them runs per tenant, so control file, core and log
//! record the same order.

use std::sync::Arc;

use clap::Args;
use nimbus_manifests::TenantId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::control::{Control, ControlError};
use crate::envelope::{Envelope, EnvelopeError, Event, EventKind, EventOutcome};
use crate::failpoints::crash_point;
use crate::runtime::blocking;
use crate::tenants::{StoreError, TenantProvider};
use crate::{as_text, data_dir, schemas};

/// Why a tenant is not locked, or still is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockTenantError {
    /// There is no such tenant.
    #[error("there is no tenant {tenant}; `nimbus encryption status` lists what is there")]
    NoTenant {
        /// The tenant.
        tenant: TenantId,
    },
    /// The lock could not be recorded, or its end; nothing was changed.
    #[error("the lock of tenant {tenant} could not be recorded; nothing was changed")]
    Control {
        /// The tenant.
        tenant: TenantId,
        /// Why.
        source: ControlError,
    },
    /// The audit log cannot be written; nothing was changed.
    #[error(transparent)]
    Audit(#[from] EnvelopeError),
    /// It is done, and the audit log does not say so.
    #[error(
        "tenant {tenant} is {} now, but the audit log does not say so: run the command again once the log can be written",
        if *.locked { "locked" } else { "unlocked" }
    )]
    Unrecorded {
        /// The tenant.
        tenant: TenantId,
        /// Whether it is locked.
        locked: bool,
        /// Why it was not recorded.
        source: EnvelopeError,
    },
    /// The tenants cannot be listed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The tenant to lock or unlock.
#[derive(Debug, Clone, Args, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = LockedTenant)]
pub struct Request {
    /// The tenant
    #[arg(long, value_name = "TENANT")]
    #[serde(with = "as_text")]
    #[schema(value_type = schemas::TenantId)]
    pub tenant_id: TenantId,
}

/// What `lock` and `unlock` answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TenantLock {
    /// The tenant.
    #[schema(value_type = schemas::TenantId)]
    pub tenant_id: String,
    /// Whether it is locked now.
    pub locked: bool,
    /// Whether it was not so before.
    pub changed: bool,
}

/// Locks or unlocks `tenant`, durably. Once a lock is answered, its keys are wiped, or go with the
/// last request that was using them.
///
/// # Errors
///
/// [`LockTenantError`].
pub async fn set(
    envelope: &Envelope,
    control: &Arc<Control>,
    tenants: &dyn TenantProvider,
    tenant: &TenantId,
    locked: bool,
) -> Result<TenantLock, LockTenantError> {
    let no_tenant = || LockTenantError::NoTenant {
        tenant: tenant.clone(),
    };
    if !tenants.list_tenants().await?.contains(tenant) {
        return Err(no_tenant());
    }
    let _turn = envelope.lock_turn(tenant).await;
    let kind = if locked {
        EventKind::Lock
    } else {
        EventKind::Unlock
    };
    let event = Event::new(kind, EventOutcome::Begun).about(&data_dir::subject(tenant));
    if !locked {
        envelope.record(event.clone()).await?;
    }
    let shared = match tenants.set_locked(tenant, locked).await {
        Err(StoreError::TenantNotFound { .. }) => return Err(no_tenant()),
        shared => shared?,
    };
    let before = match shared {
        Some(before) => before,
        None => record(control, tenant, locked).await?,
    };
    crash_point!("lock::recorded");
    // Deleted meanwhile: a later tenant of the name is another one.
    if locked && shared.is_none() && !tenants.list_tenants().await?.contains(tenant) {
        let (keeper, named) = (control.clone(), tenant.clone());
        let undone = blocking(move || keeper.unlock_tenant(&named)).await;
        undone.map_err(|source| LockTenantError::Control {
            tenant: tenant.clone(),
            source,
        })?;
        return Err(no_tenant());
    }
    // Also of what was so before: the line of the first may have failed.
    let ended = event.ended(&Ok::<_, LockTenantError>(()));
    let recorded = if locked {
        // The line does not wait for the requests that still use the keys: those may take long.
        tokio::join!(envelope.lock(tenant), envelope.record(ended)).1
    } else {
        envelope.unlock(tenant);
        envelope.record(ended).await
    };
    recorded.map_err(|source| LockTenantError::Unrecorded {
        tenant: tenant.clone(),
        locked,
        source,
    })?;
    Ok(TenantLock {
        tenant_id: tenant.to_string(),
        locked,
        changed: before != locked,
    })
}

/// Notes the lock, or its end, in the control file; whether the tenant was locked before.
async fn record(
    control: &Arc<Control>,
    tenant: &TenantId,
    locked: bool,
) -> Result<bool, LockTenantError> {
    let (keeper, named) = (control.clone(), tenant.clone());
    let recorded = blocking(move || {
        let before = keeper.locked_tenants()?.contains(&named);
        match (before, locked) {
            (false, true) => keeper.lock_tenant(&named)?,
            (true, false) => keeper.unlock_tenant(&named)?,
            _ => {}
        }
        Ok(before)
    });
    recorded.await.map_err(|source| LockTenantError::Control {
        tenant: tenant.clone(),
        source,
    })
}
