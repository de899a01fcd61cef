//! What failures of SQLite and of the opener mean for a tenant.

use std::{error::Error as StdError, io, iter::successors, sync::Arc};

use nimbus_manifests::TenantId;
use rusqlite::ErrorCode;

use crate::budget::Refused;
use crate::envelope::Trouble;
use crate::process;
use crate::sqlcipher::{self, OpenError};
use crate::tenants::StoreError;
use crate::tenants::error::{EngineFault, Limit, NoRoom};

/// What a failed opening means to the caller.
pub(super) fn opening(tenant: &TenantId, error: OpenError) -> StoreError {
    let tenant = tenant.clone();
    match error.trouble() {
        Trouble::NotFound => StoreError::TenantNotFound { tenant },
        Trouble::AlreadyExists => StoreError::TenantExists { tenant },
        trouble => StoreError::Open {
            tenant,
            trouble,
            exhausted: is_exhaustion(&error),
            source: Arc::new(error),
        },
    }
}

/// What a failure of the engine means. Corruption stays corruption and a full disk a full disk.
pub(super) fn failure(tenant: &TenantId, error: rusqlite::Error) -> StoreError {
    let tenant = tenant.clone();
    if let rusqlite::Error::UserFunctionError(ours) = &error
        && ours.is::<Refused>()
    {
        let what = Limit::BufferedBytes;
        return StoreError::Busy { what, tenant };
    }
    let code = error.sqlite_error_code();
    // A stored value of the wrong kind is damage, too.
    let malformed = matches!(
        error,
        rusqlite::Error::FromSqlConversionFailure(..) | rusqlite::Error::InvalidColumnType(..)
    );
    let source: Arc<dyn StdError + Send + Sync> = Arc::new(error);
    match code {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Busy {
            what: Limit::FileLock,
            tenant,
        },
        Some(ErrorCode::DiskFull) if sqlcipher::was_refused() => {
            let what = NoRoom::Temporary;
            StoreError::NoRoom { tenant, what }
        }
        Some(ErrorCode::DiskFull) => StoreError::StorageFull { tenant },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Corrupt { tenant, source }
        }
        None if malformed => StoreError::Corrupt { tenant, source },
        _ => StoreError::Engine {
            tenant,
            fault: fault(code),
            source,
        },
    }
}

/// Where a failure lies that has no meaning of its own.
fn fault(code: Option<ErrorCode>) -> EngineFault {
    match code {
        Some(code) if is_exhausted(code) => EngineFault::Exhausted,
        Some(
            ErrorCode::SystemIoFailure
            | ErrorCode::CannotOpen
            | ErrorCode::ReadOnly
            | ErrorCode::PermissionDenied
            | ErrorCode::FileLockingProtocolFailed
            | ErrorCode::OperationInterrupted
            | ErrorCode::OperationAborted
            | ErrorCode::SchemaChanged,
        ) => EngineFault::Machine,
        _ => EngineFault::Statement,
    }
}

/// Whether the process, or the machine, had no files, threads or memory left.
fn is_exhaustion(error: &(dyn StdError + 'static)) -> bool {
    successors(Some(error), |&error| error.source()).any(|error| {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return process::is_exhaustion(error);
        }
        let error = error.downcast_ref::<rusqlite::Error>();
        error
            .and_then(rusqlite::Error::sqlite_error_code)
            .is_some_and(is_exhausted)
    })
}

fn is_exhausted(code: ErrorCode) -> bool {
    match code {
        ErrorCode::OutOfMemory => true,
        // SQLite does not say why.
        ErrorCode::CannotOpen | ErrorCode::SystemIoFailure => process::files_ran_out(),
        _ => false,
    }
}
