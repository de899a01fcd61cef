//! Where frames wait: in memory, and on the disk beyond.
//!
//! Files have no name and hold ciphertext. One that is full is followed by another, and each is
//! given up once all in it was taken: together they are never longer than what waits by more than
//! one file at each end.

use std::{collections::VecDeque, fs::File, io, os::unix::fs::FileExt as _, path::Path, sync::Arc};

use nimbus_manifests::TenantId;

use super::{Frames, Room};

/// Frames in their order.
#[derive(Debug, Default)]
pub(super) struct Spool {
    held: VecDeque<SpooledFrames>,
    /// How many pieces were ever given.
    given: u64,
    bytes: u64,
    in_memory: u64,
    /// The file that grows. Those before it stay for as long as something in them waits.
    file: Option<(Arc<File>, u64)>,
}

/// Frames, and where they are.
#[derive(Debug)]
pub(super) struct SpooledFrames {
    tenant: TenantId,
    base: u32,
    at_ms: i64,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Memory(Vec<u8>),
    File(Arc<File>, u64, usize),
}

impl Spool {
    pub(super) fn given(&self) -> u64 {
        self.given
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub(super) fn oldest_ms(&self) -> Option<i64> {
        self.held.front().map(|held| held.at_ms)
    }

    /// Takes one more. What does not go into memory goes into a file in `dir`.
    pub(super) fn give(&mut self, frames: Frames, dir: &Path, room: &Room) -> io::Result<()> {
        let length = frames.bytes.len();
        let place = if self.in_memory + length as u64 <= MOST_IN_MEMORY {
            self.in_memory += length as u64;
            Place::Memory(frames.bytes)
        } else {
            room.on_disk()
                .map_err(|_full| io::Error::from(io::ErrorKind::StorageFull))?;
            let (file, end) = match &mut self.file {
                Some(file) if file.1 < FULL => file,
                Some(full) => {
                    *full = (Arc::new(tempfile::tempfile_in(dir)?), 0);
                    full
                }
                none => none.insert((Arc::new(tempfile::tempfile_in(dir)?), 0)),
            };
            file.write_all_at(&frames.bytes, *end)?;
            let place = Place::File(Arc::clone(file), *end, length);
            *end += length as u64;
            place
        };
        self.given += 1;
        self.bytes += length as u64;
        self.held.push_back(SpooledFrames {
            tenant: frames.tenant,
            base: frames.base,
            at_ms: frames.at_ms,
            place,
        });
        Ok(())
    }

    /// The next that were given before `upto`, about `most` bytes of them.
    pub(super) fn take(&mut self, upto: u64, most: u64) -> Vec<SpooledFrames> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while bytes < most && self.given - (self.held.len() as u64) < upto {
            let Some(held) = self.held.pop_front() else {
                break;
            };
            let length = held.bytes();
            if let Place::Memory(_) = held.place {
                self.in_memory -= length;
            }
            (bytes, self.bytes) = (bytes + length, self.bytes - length);
            taken.push(held);
        }
        let is_in_file = |held: &SpooledFrames| matches!(held.place, Place::File(..));
        if self.file.is_some() && !self.held.iter().any(is_in_file) {
            self.file = None;
        }
        taken
    }
}

impl SpooledFrames {
    fn bytes(&self) -> u64 {
        match &self.place {
            Place::Memory(bytes) => bytes.len() as u64,
            Place::File(_, _, length) => *length as u64,
        }
    }

    pub(super) fn read(self) -> io::Result<Frames> {
        let bytes = match self.place {
            Place::Memory(bytes) => bytes,
            Place::File(file, at, length) => {
                let mut bytes = vec![0; length];
                file.read_exact_at(&mut bytes, at)?;
                bytes
            }
        };
        Ok(Frames {
            tenant: self.tenant,
            base: self.base,
            at_ms: self.at_ms,
            bytes,
        })
    }
}

/// Beyond this they go to the disk: 16 MiB.
pub(super) const MOST_IN_MEMORY: u64 = 16 << 20;
/// A file of this length is followed by another: 64 MiB.
const FULL: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(n: u8, length: usize) -> Frames {
        Frames {
            tenant: "a".parse().unwrap(),
            base: u32::from(n),
            at_ms: i64::from(n),
            bytes: vec![n; length],
        }
    }

    #[test]
    fn a_backlog_that_never_ends_leaves_no_file_behind() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room::default();
        let mut spool = Spool::default();
        let piece = MOST_IN_MEMORY as usize;
        let mut files = Vec::new();
        for n in 0..24 {
            spool.give(frames(n, piece), dir.path(), &room).unwrap();
            if let Some((file, _)) = &spool.file
                && !files
                    .iter()
                    .any(|known| std::sync::Weak::ptr_eq(known, &Arc::downgrade(file)))
            {
                files.push(Arc::downgrade(file));
            }
            // Two wait at all times, one of them on the disk.
            if n > 1 {
                drop(spool.take(spool.given(), 1));
            }
        }
        let there = files.iter().filter(|file| file.strong_count() > 0);
        assert!(files.len() > 2 && there.count() <= 2, "{}", files.len());
    }

    #[test]
    fn gives_back_in_order_what_went_to_memory_and_to_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room::default();
        let mut spool = Spool::default();
        let half = MOST_IN_MEMORY as usize / 2;
        for (n, length) in [(1, half), (2, half), (3, 5000), (4, half), (5, 10)] {
            spool.give(frames(n, length), dir.path(), &room).unwrap();
        }
        assert!(spool.file.is_some());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let upto = spool.given();
        // After the boundary.
        spool.give(frames(6, 10), dir.path(), &room).unwrap();
        let mut seen = Vec::new();
        loop {
            let taken = spool.take(upto, 6000);
            if taken.is_empty() {
                break;
            }
            for held in taken {
                let read = held.read().unwrap();
                let n = u8::try_from(read.base).unwrap();
                assert!(read.bytes.iter().all(|byte| *byte == n));
                seen.push((n, read.bytes.len()));
            }
        }
        assert_eq!(seen, [(1, half), (2, half), (3, 5000), (4, half), (5, 10)]);
        assert_eq!((spool.bytes(), spool.oldest_ms()), (10, Some(6)));
        assert_eq!(spool.take(spool.given(), 1).len(), 1);
        assert!(spool.is_empty() && spool.file.is_none());
        assert_eq!((spool.bytes(), spool.in_memory), (0, 0));
    }
}
