//! How much all temporary files may take together, and what is left free on their disk.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::metrics;
use crate::process::{Disk, Reserve};

/// The room for temporary files in one directory.
#[derive(Debug)]
pub(super) struct Room {
    dir: PathBuf,
    reserve: Mutex<Reserve>,
}

/// What one file has of it, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    room: &'static Room,
    bytes: u64,
}

/// The room in `dir`, until the end of the process.
pub(super) fn room(dir: &Path) -> &'static Room {
    static ROOMS: Mutex<BTreeMap<PathBuf, &'static Room>> = Mutex::new(BTreeMap::new());
    let mut rooms = ROOMS.lock().unwrap_or_else(PoisonError::into_inner);
    rooms.entry(dir.to_owned()).or_insert_with(|| {
        let (dir, reserve) = (dir.to_owned(), Mutex::default());
        Box::leak(Box::new(Room { dir, reserve }))
    })
}

/// Says what temporary files in `dir` leave free on its disk. Until then it is [`Reserve::Share`].
pub(crate) fn keep_free(dir: &Path, reserve: Reserve) {
    let kept = &room(dir).reserve;
    *kept.lock().unwrap_or_else(PoisonError::into_inner) = reserve;
}

/// Whether a temporary file was refused room on this thread since this was asked last: that, and no
/// full disk, is then why SQLite says that it is full.
pub(crate) fn was_refused() -> bool {
    REFUSED.take()
}

impl Room {
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn look(&self) -> Left {
        let used = USED.load(Ordering::Relaxed);
        let all = MOST.saturating_sub(used);
        let Ok(disk) = Disk::of(&self.dir) else {
            // As where documents are written: a disk that cannot be looked at is no reason to
            // refuse.
            let (free, kept) = (u64::MAX, 0);
            return Left { all, free, kept };
        };
        let reserve = self.reserve.lock().unwrap_or_else(PoisonError::into_inner);
        Left {
            all,
            free: disk.free,
            kept: reserve.on(disk),
        }
    }
}

impl Share {
    /// Nothing yet.
    pub(super) fn new(room: &'static Room) -> Self {
        metrics::TEMPORARY_FILES.increment(1.0);
        Self { room, bytes: 0 }
    }

    /// Has room for `bytes` in all.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::StorageFull`]; it has what it had.
    pub(super) fn grow(&mut self, bytes: u64) -> io::Result<()> {
        if bytes <= self.bytes {
            return Ok(());
        }
        let wanted = bytes.checked_next_multiple_of(STEP);
        let allowed = wanted.filter(|wanted| self.room.look().allows(self.bytes, *wanted));
        let Some(wanted) = allowed else {
            metrics::TEMPORARY_REFUSED.increment(1);
            REFUSED.set(true);
            return Err(io::ErrorKind::StorageFull.into());
        };
        self.set(wanted);
        Ok(())
    }

    /// Needs room for no more than `bytes`.
    pub(super) fn shrink(&mut self, bytes: u64) {
        let bytes = bytes.next_multiple_of(STEP);
        if bytes < self.bytes {
            self.set(bytes);
        }
    }

    fn set(&mut self, bytes: u64) {
        let before = std::mem::replace(&mut self.bytes, bytes);
        // Two files that grow at once may both find the same room, of a step each.
        if bytes > before {
            USED.fetch_add(bytes - before, Ordering::Relaxed);
        } else {
            USED.fetch_sub(before - bytes, Ordering::Relaxed);
        }
        metrics::TEMPORARY.increment(bytes as f64 - before as f64);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
        metrics::TEMPORARY_FILES.decrement(1.0);
    }
}

/// What is left, in bytes.
#[derive(Debug, Clone, Copy)]
struct Left {
    /// Of what all temporary files may take.
    all: u64,
    /// On the disk.
    free: u64,
    /// To be kept free on the disk.
    kept: u64,
}

impl Left {
    /// Whether a file may grow from `now` to `wanted` bytes: to as many as are left for the others,
    /// so that however many files grow at once, the last part stays free (`budget` has the same
    /// rule). A small file may use the reserve down to its half: a batch that deletes needs one,
    /// and makes room.
    fn allows(self, now: u64, wanted: u64) -> bool {
        let more = wanted.saturating_sub(now);
        let all = self.all.saturating_sub(more);
        let free = self.free.saturating_sub(more);
        wanted <= all
            && (wanted <= free.saturating_sub(self.kept)
                || wanted <= SMALL && free >= self.kept / 2)
    }
}

thread_local! {
    static REFUSED: Cell<bool> = const { Cell::new(false) };
}

/// What all temporary files of this process have.
static USED: AtomicU64 = AtomicU64::new(0);
/// What they may have: 16 GiB, for which 96 MiB are in memory. One file alone may have half of it.
const MOST: u64 = 16 << 30;
/// Room is taken in steps: each looks at the disk.
const STEP: u64 = 1 << 20;
/// What a file may have of the reserve: 64 MiB.
const SMALL: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// How large files get that grow in turn.
    fn filled(files: usize, mut left: Left) -> Vec<u64> {
        let mut sizes = vec![0; files];
        loop {
            let mut grew = false;
            for size in &mut sizes {
                if left.allows(*size, *size + STEP) {
                    *size += STEP;
                    left.all -= STEP;
                    left.free -= STEP;
                    grew = true;
                }
            }
            if !grew {
                return sizes;
            }
        }
    }

    #[test]
    fn files_leave_as_much_as_each_of_them_has_of_all_and_of_the_disk() {
        let (all, free, kept) = (4 * GIB, 100 * GIB, GIB);
        let of_all = Left { all, free, kept };
        assert_eq!(filled(1, of_all), [2 * GIB]);
        assert_eq!(filled(3, of_all), [GIB; 3]);
        let free = 3 * GIB;
        let of_disk = Left { all, free, kept };
        assert_eq!(filled(1, of_disk), [GIB]);
        assert_eq!(filled(1, Left { all: 0, ..of_disk }), [0]);
    }

    #[test]
    fn a_small_file_may_use_half_of_the_reserve_and_a_large_one_nothing() {
        let (all, free, kept) = (4 * GIB, GIB, GIB);
        let at_reserve = Left { all, free, kept };
        assert_eq!(filled(1, at_reserve), [SMALL]);
        assert_eq!(filled(20, at_reserve).iter().sum::<u64>(), GIB / 2);
        let free = kept / 2;
        assert_eq!(filled(1, Left { free, ..at_reserve }), [0]);
    }

    #[test]
    fn a_share_is_given_back_and_a_refusal_is_said_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut share = Share::new(room(dir.path()));
        share.grow(1).unwrap();
        assert_eq!(share.bytes, STEP);
        share.grow(STEP).unwrap();
        share.grow(STEP + 1).unwrap();
        assert_eq!(share.bytes, 2 * STEP);
        share.shrink(1);
        assert_eq!(share.bytes, STEP);
        assert!(!was_refused());
        keep_free(dir.path(), Reserve::Bytes(u64::MAX));
        let refused = share.grow(2 * STEP).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        assert_eq!(share.bytes, STEP);
        assert!(was_refused() && !was_refused());
        assert!(share.grow(u64::MAX).is_err());
    }
}
