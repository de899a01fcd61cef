//! What a write ran into: too little room, a limit, rows that are in its way.

use crate::documents::DocumentId;
use crate::documents::schema::Violation;

/// Where a failure of a storage engine lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngineFault {
    /// In the engine's task. It may succeed at other work.
    Statement,
    /// In the machine or in the connection to the engine.
    Machine,
    /// The process, or the machine, had no files, threads or memory left.
    Exhausted,
}

/// Documents that do not fit a new schema.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Offenders {
    /// The first of them in the order of their insertion, at most [`MAX_OFFENDERS`], and the first
    /// that is wrong with each.
    pub first: Vec<(DocumentId, Violation)>,
    /// Whether there are more.
    pub more: bool,
}

impl std::fmt::Display for Offenders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (place, (id, violation)) in self.first.iter().enumerate() {
            let comma = if place > 0 { "; " } else { "" };
            write!(f, "{comma}{id}: {violation}")?;
        }
        if self.more {
            f.write_str("; and more")?;
        }
        Ok(())
    }
}

/// How many offenders are named.
pub const MAX_OFFENDERS: usize = 10;

/// Why a tenant may not grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoom {
    /// It has as much as it may have.
    Tenant {
        /// How much it has.
        bytes: u64,
        /// How much it may have.
        limit: u64,
    },
    /// Less is free on the disk than is kept free.
    Disk,
    /// What is done takes more in temporary files than there is room for now.
    Temporary,
}

pub(super) const DELETE: &str = "delete what is not needed, which is let through";

/// A limit that more work ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limit {
    /// The queue of one tenant's writer.
    WriteQueue,
    /// The number of open tenants, all of which are in use.
    OpenTenants,
    /// The database file is locked by another process.
    FileLock,
    /// The bytes that are buffered for requests.
    BufferedBytes,
    /// The connections to the database.
    Connections,
    /// Another transaction was in the way of this one.
    Contention,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::WriteQueue => "the tenant's write queue is full",
            Self::OpenTenants => "all tenants that may be open at once are in use",
            Self::FileLock => "another process holds the tenant's file locked",
            Self::Connections => "all connections to the database are in use",
            Self::Contention => {
                "another server wrote to the tenant at the same time, and nothing of this was done"
            }
            Self::BufferedBytes => {
                "requests and answers that are not sent take all the memory that they may, or this tenant's share of it"
            }
        })
    }
}
