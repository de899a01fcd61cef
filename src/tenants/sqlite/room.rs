//! Whether a tenant may grow: its own limit, and what is kept free on the disk for all.

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use rusqlite::Connection;

use crate::metrics;
use crate::process::{Disk, Limits};
use crate::tenants::error::NoRoom;

/// The limits of one data directory.
#[derive(Debug)]
pub(super) struct Room {
    dir: PathBuf,
    limits: Limits,
    looked: Mutex<Option<Looked>>,
}

#[derive(Debug, Clone, Copy)]
struct Looked {
    at: Instant,
    /// Whether less is free than is kept free.
    low: bool,
}

impl Room {
    /// The limits in `dir`.
    pub(super) fn new(dir: PathBuf, limits: Limits) -> Self {
        Self {
            dir,
            limits,
            looked: Mutex::default(),
        }
    }

    /// What a tenant may have; `None` when that is not limited.
    pub(super) fn tenant(&self) -> Option<u64> {
        self.limits.tenant
    }

    /// Whether the disk has as much free as is kept free. Looked at once a second at most; one that
    /// cannot be looked at is no reason to refuse.
    pub(super) fn on_disk(&self) -> Result<(), NoRoom> {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let low = match *looked {
            Some(Looked { at, low }) if at.elapsed() < LOOK_EVERY => low,
            before => {
                let low = self.look(before.is_some_and(|before| before.low));
                let at = Instant::now();
                *looked = Some(Looked { at, low });
                low
            }
        };
        if low { Err(NoRoom::Disk) } else { Ok(()) }
    }

    fn look(&self, was_low: bool) -> bool {
        let Ok(disk) = Disk::of(&self.dir) else {
            return false;
        };
        let kept = self.limits.reserve.on(disk);
        metrics::DISK_FREE.set(disk.free as f64);
        metrics::DISK_RESERVE.set(kept as f64);
        let (low, dir, free) = (disk.free < kept, self.dir.display(), disk.free);
        if low && !was_low {
            tracing::error!(%dir, free, kept, "the disk is nearly full: nothing is let in but what makes room (--disk-reserve-bytes)");
        } else if was_low && !low {
            tracing::info!(%dir, free, kept, "the disk has room again: writes are let in");
        }
        low
    }
}

#[cfg(test)]
impl Default for Room {
    /// No limits.
    fn default() -> Self {
        let reserve = crate::process::Reserve::Bytes(0);
        let tenant = None;
        Self::new(".".into(), Limits { tenant, reserve })
    }
}

/// How many bytes of a database are in use, which its free pages are not: they are filled before it
/// grows.
pub(super) fn in_use(connection: &Connection) -> rusqlite::Result<u64> {
    let ask = |pragma: &str| {
        connection
            .prepare_cached(pragma)?
            .query_row([], |row| row.get::<_, u32>(0))
    };
    let (pages, free) = (ask("PRAGMA page_count")?, ask("PRAGMA freelist_count")?);
    Ok(u64::from(pages.saturating_sub(free)) * PAGE_BYTES)
}

const LOOK_EVERY: Duration = Duration::from_secs(1);
const PAGE_BYTES: u64 = 4096;
