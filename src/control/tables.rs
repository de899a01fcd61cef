//! The tables of the control file, and its layout's version.

use std::path::Path;

use redb::{Database, ReadableDatabase as _, TableDefinition, WriteTransaction};

use super::database::explain;
use super::{ControlError, FILE_NAME};

pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Subject to manifest, as it lies on the disk.
pub(super) const MANIFESTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("manifests");
/// The same for manifests that a rotation is about to publish under another key.
pub(super) const ANNOUNCED: TableDefinition<'_, &str, &[u8]> =
    TableDefinition::new("announced_manifests");
/// Tenants whose deletion has begun.
pub(super) const DELETIONS: TableDefinition<'_, &str, ()> = TableDefinition::new("deletions");
/// Tenants that an operator locked.
pub(super) const LOCKS: TableDefinition<'_, &str, ()> = TableDefinition::new("locks");
/// Key id to a tenant access key's record, which is JSON.
pub(super) const ACCESS_KEYS: TableDefinition<'_, &str, &[u8]> =
    TableDefinition::new("access_keys");
/// Month, tenant, and an identity's keyed hash, of months that are still counted.
pub(super) const IDENTITIES: TableDefinition<'_, (u32, &str, u64), ()> =
    TableDefinition::new("usage_identities");
/// Month and tenant to the number of identities; what deleted tenants had stands under the empty
/// name.
pub(super) const USAGE_COUNTS: TableDefinition<'_, (u32, &str), u64> =
    TableDefinition::new("usage_counts");
/// Month to its number in the order in which months began, and whether its counting has ended.
pub(super) const USAGE_MONTHS: TableDefinition<'_, u32, (u64, bool)> =
    TableDefinition::new("usage_months");
/// `head` to the number and the hash of the audit log's last line.
pub(super) const AUDIT: TableDefinition<'_, &str, (u64, [u8; 32])> = TableDefinition::new("audit");
/// Tenant to when it must be looked at for work that is due, in milliseconds since the Unix epoch.
pub(super) const DUE: TableDefinition<'_, &str, i64> = TableDefinition::new("due");
/// Random bytes of this deployment's own, by purpose; and its line of backups.
pub(super) const SECRETS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("secrets");

/// Id of a repository to the number and the SHA-256 of the catalogue that this deployment last made
/// there.
pub(super) const BACKUPS: TableDefinition<'_, &str, (u64, [u8; 32])> =
    TableDefinition::new("backups");

pub(super) const LAYOUT: &str = "layout";
/// 2: access keys, usage, the audit log's head, and when work is due. A release that does not know
/// them would delete a tenant and leave its keys. 3: announced manifests. A release that does not
/// know them would delete a tenant and leave a wrap of its data key. 4: the snapshots that this
/// deployment made. A release that does not know them would not miss one that is gone. 5: the line
/// of a restored deployment. A release that does not know it would add to the backups of another.
pub(super) const KNOWN_LAYOUT: u64 = 5;

/// The layout of an opened file; 0 where none is noted.
pub(super) fn layout(database: &Database) -> Result<u64, redb::Error> {
    let transaction = database.begin_read()?;
    let meta = transaction.open_table(META)?;
    Ok(meta.get(LAYOUT)?.map_or(0, |value| value.value()))
}

/// Makes every table that is missing, so that a reader finds them, and notes the layout.
pub(super) fn make_all(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    drop(transaction.open_table(META)?.insert(LAYOUT, KNOWN_LAYOUT)?);
    drop(transaction.open_table(MANIFESTS)?);
    drop(transaction.open_table(ANNOUNCED)?);
    drop(transaction.open_table(DELETIONS)?);
    drop(transaction.open_table(LOCKS)?);
    drop(transaction.open_table(ACCESS_KEYS)?);
    drop(transaction.open_table(IDENTITIES)?);
    drop(transaction.open_table(USAGE_COUNTS)?);
    drop(transaction.open_table(USAGE_MONTHS)?);
    drop(transaction.open_table(AUDIT)?);
    drop(transaction.open_table(DUE)?);
    drop(transaction.open_table(SECRETS)?);
    drop(transaction.open_table(BACKUPS)?);
    // Layout 1 reserved it and never wrote to it.
    transaction.delete_table(OLD_USAGE)?;
    Ok(())
}

/// Fills a new file.
pub(super) fn fill(database: &Database) -> Result<(), ControlError> {
    let work = || -> Result<(), redb::Error> {
        let transaction = database.begin_write()?;
        make_all(&transaction)?;
        transaction.commit()?;
        Ok(())
    };
    work().map_err(|error| explain(Path::new(FILE_NAME), error))
}

const OLD_USAGE: TableDefinition<'_, (&str, &[u8]), u64> = TableDefinition::new("usage");
