//! The data directory: names, the one scan, and durable changes. Whoever lists, removes or judges
//! files asks here.

mod durable;
mod names;
mod scan;

pub(crate) use durable::{set_aside, set_aside_copy, sync_dir};
pub(crate) use names::{
    AUDIT_LOG, CONTROL, DATABASE, DEPLOYED, ENCRYPTED, Kind, LOCK, MIGRATING, PLAINTEXT, REKEY,
    RESTORING, Role, TEMPORARY_PREFIX, WAL, audit_part, audit_part_number, beside, database_name,
    derived, is_audit_log, may_be_database, protected_by, side_files, subject, tenant_of_database,
};
pub(crate) use nimbus_keyproviders::keyfile::parent;
pub(crate) use scan::{Entry, of_tenant, remove_all, remove_leftovers, scan, scan_readable};
