//! When tenants have work due: one entry for each that has, and none for the others.

use nimbus_manifests::TenantId;
use redb::{ReadableDatabase as _, ReadableTable as _, WriteTransaction};

use super::tables::{DUE, META};
use super::{Control, ControlError};

/// What the control file knows of work that is due.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DueIndex {
    /// When to look at which tenant, in milliseconds since the Unix epoch: not later than its
    /// first work is due.
    pub entries: Vec<(TenantId, i64)>,
    /// What the clock said when an entry was written last.
    pub clock_ms: Option<i64>,
    /// Whether every tenant that has work has an entry. Not so in a file that was made anew beside
    /// tenants that are older.
    pub complete: bool,
}

impl Control {
    /// All entries.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn due(&self) -> Result<DueIndex, ControlError> {
        self.with(|database| {
            let transaction = database.begin_read()?;
            let mut index = DueIndex::default();
            for entry in transaction.open_table(DUE)?.iter()? {
                let (tenant, at) = entry?;
                // Only this file's own writer put it there.
                let tenant = tenant.value().parse::<TenantId>().ok();
                index
                    .entries
                    .extend(tenant.map(|tenant| (tenant, at.value())));
            }
            let meta = transaction.open_table(META)?;
            let clock = meta.get(CLOCK)?.map(|clock| clock.value());
            index.clock_ms = clock.and_then(|clock| i64::try_from(clock).ok());
            index.complete = meta.get(COMPLETE)?.is_some();
            Ok(index)
        })
    }

    /// Sets entries, or removes them, in one commit.
    ///
    /// # Errors
    ///
    /// [`ControlError`]; nothing is changed then.
    pub fn set_due<'a>(
        &self,
        changes: impl IntoIterator<Item = (&'a TenantId, Option<i64>)>,
        clock_ms: i64,
    ) -> Result<(), ControlError> {
        let changes: Vec<_> = changes.into_iter().collect();
        self.write(|transaction| put(transaction, &changes, clock_ms))
    }

    /// Gives each of these tenants an entry that is due at once, and notes that from now on none is
    /// missing.
    ///
    /// # Errors
    ///
    /// [`ControlError`]; nothing is changed then.
    pub fn complete_due(&self, tenants: &[TenantId], clock_ms: i64) -> Result<(), ControlError> {
        let changes: Vec<_> = tenants.iter().map(|tenant| (tenant, Some(0))).collect();
        self.write(|transaction| {
            put(transaction, &changes, clock_ms)?;
            drop(transaction.open_table(META)?.insert(COMPLETE, 1)?);
            Ok(())
        })
    }
}

fn put(
    transaction: &WriteTransaction,
    changes: &[(&TenantId, Option<i64>)],
    clock_ms: i64,
) -> Result<(), redb::Error> {
    let mut due = transaction.open_table(DUE)?;
    for (tenant, at) in changes {
        match at {
            Some(at) => drop(due.insert(tenant.as_str(), at)?),
            None => drop(due.remove(tenant.as_str())?),
        }
    }
    let clock = u64::try_from(clock_ms).unwrap_or(0);
    drop(transaction.open_table(META)?.insert(CLOCK, clock)?);
    Ok(())
}

const CLOCK: &str = "due-clock";
const COMPLETE: &str = "due-complete";
