//! How much room there is on a disk, and how much of it is kept free.

use std::io;
use std::path::Path;

/// A file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// What this process may still write to it.
    pub free: u64,
    /// How large it is.
    pub total: u64,
}

impl Disk {
    /// The file system of `dir`.
    ///
    /// # Errors
    ///
    /// What the operating system said.
    pub fn of(dir: &Path) -> io::Result<Self> {
        let disk = rustix::fs::statvfs(dir)?;
        Ok(Self {
            free: disk.f_bavail.saturating_mul(disk.f_frsize),
            total: disk.f_blocks.saturating_mul(disk.f_frsize),
        })
    }
}

/// How much may be written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that a tenant may have, database and WAL; `None` when that is not limited.
    pub tenant: Option<u64>,
    /// What is kept free on the disk.
    pub reserve: Reserve,
}

/// What is kept free on a disk, for deletes, rotations and whatever else makes room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reserve {
    /// A twentieth of the disk, at most 1 GiB.
    #[default]
    Share,
    /// So many bytes.
    Bytes(u64),
}

impl Reserve {
    /// How many bytes of `disk` that is.
    #[must_use]
    pub fn on(self, disk: Disk) -> u64 {
        match self {
            Self::Share => (disk.total / 20).min(MOST),
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// How many bytes this process may still write to the file system of `dir`.
///
/// # Errors
///
/// What the operating system said.
pub fn free_bytes(dir: &Path) -> io::Result<u64> {
    Ok(Disk::of(dir)?.free)
}

/// 1 GiB.
const MOST: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_a_twentieth_but_no_more_than_a_gibibyte() {
        let on = |reserve: Reserve, total| reserve.on(Disk { free: 0, total });
        assert_eq!(on(Reserve::Share, 8 << 20), (8 << 20) / 20);
        assert_eq!(on(Reserve::Share, 4 << 40), 1 << 30);
        assert_eq!(on(Reserve::Bytes(7), 4 << 40), 7);
        let here = Disk::of(Path::new(".")).unwrap();
        assert!(here.free <= here.total && here.total > 0);
    }
}
