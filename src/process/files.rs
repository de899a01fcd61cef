//! How many files this process may have open, and how they are shared out.

use std::fs::File;
use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::memory_limit;

/// The files that this process may have open; `None` when there is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileLimit(Option<u64>);

impl FileLimit {
    /// Raises the soft limit (1024 on many systems, too few for the tenants that may be open) to
    /// the hard one, which an operator sets.
    #[must_use]
    pub fn raise() -> Self {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let raised = Rlimit {
            current: maximum,
            maximum,
        };
        Self(match setrlimit(Resource::Nofile, raised) {
            Ok(()) => maximum,
            Err(_refused) => current,
        })
    }

    /// How many connections may be open: a quarter, and all that `USUAL_TENANTS` leave, so that
    /// tenants can be opened whatever clients do.
    #[must_use]
    pub fn connections(self) -> u32 {
        let left = |files: u64| files.saturating_sub(OWN_FILES + USUAL_TENANTS * FILES_A_TENANT);
        let part = self
            .0
            .map_or(MOST_CONNECTIONS.into(), |files| left(files).max(files / 4));
        let part = u32::try_from(part).unwrap_or(MOST_CONNECTIONS);
        part.clamp(FEWEST_CONNECTIONS, MOST_CONNECTIONS)
    }

    /// How many tenants may be open at most, as the rest allows.
    #[must_use]
    pub fn tenants(self) -> usize {
        let Some(files) = self.0 else {
            return usize::MAX;
        };
        let tenants = self.rest(files) / FILES_A_TENANT;
        usize::try_from(tenants).map_or(usize::MAX, |tenants| tenants.max(1))
    }

    /// How many connections may read beyond one of each of so many open tenants.
    #[must_use]
    pub fn spare_readers(self, tenants: usize) -> usize {
        let Some(files) = self.0 else {
            return usize::MAX;
        };
        let taken = LEAST_FILES_A_TENANT.saturating_mul(tenants as u64);
        let spare = self.rest(files).saturating_sub(taken) / FILES_A_READER;
        usize::try_from(spare).unwrap_or(usize::MAX)
    }

    fn rest(self, files: u64) -> u64 {
        files.saturating_sub(u64::from(self.connections()) + OWN_FILES)
    }
}

/// How many tenants may be open where the operator names no number: what a quarter of the memory
/// and the files suffice for.
#[must_use]
pub fn most_open_tenants(files: FileLimit) -> usize {
    within(files, memory_limit())
}

fn within(files: FileLimit, memory: Option<u64>) -> usize {
    let by_memory = memory.map_or(MOST_TENANTS, |bytes| bytes / 4 / MEMORY_A_TENANT);
    let by_memory = by_memory.clamp(FEWEST_TENANTS, MOST_TENANTS);
    usize::try_from(by_memory).map_or(usize::MAX, |tenants| tenants.min(files.tenants()))
}

/// Whether the system refused for want of files, threads or memory.
#[must_use]
pub fn is_exhaustion(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(
        errno,
        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN)
    )
}

/// Whether this process can open no more files than one or two, which is not enough for a database.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "a device, and no database")]
pub fn files_ran_out() -> bool {
    let opened: Vec<_> = (0..FILES_TO_OPEN)
        .map(|_| File::open("/dev/null"))
        .collect();
    opened
        .iter()
        .any(|file| file.as_ref().is_err_and(is_exhaustion))
}

/// Database and WAL of the writer and of one reader, their shared memory, and the WAL once more
/// where it is shipped.
const LEAST_FILES_A_TENANT: u64 = 6;
/// Database and WAL.
const FILES_A_READER: u64 = 2;
/// So that tenants can have two readers each, or fewer of them more.
const FILES_A_TENANT: u64 = LEAST_FILES_A_TENANT + FILES_A_READER;
/// Of the server itself: the control file, the log, key providers, what a rotation copies.
const OWN_FILES: u64 = 64;
/// What one more connection to a database may need.
const FILES_TO_OPEN: usize = 4;
/// As many as have files before connections take more than a quarter of them.
const USUAL_TENANTS: u64 = 512;
/// About what an open tenant in use takes; one at rest takes a fifth of it.
const MEMORY_A_TENANT: u64 = 1 << 20;
const FEWEST_TENANTS: u64 = 64;
/// Each has a thread.
const MOST_TENANTS: u64 = 8192;
const FEWEST_CONNECTIONS: u32 = 64;
const MOST_CONNECTIONS: u32 = 8192;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_and_tenants_share_what_there_is() {
        for (files, connections, tenants) in [
            (Some(64), 64, 1),
            (Some(256), 64, 16),
            (Some(1024), 256, 88),
            (Some(20_000), 8192, 1468),
            (Some(65_536), 8192, 7160),
            (None, 8192, usize::MAX),
        ] {
            let limit = FileLimit(files);
            assert_eq!(
                (limit.connections(), limit.tenants()),
                (connections, tenants),
                "{files:?}"
            );
        }
    }

    #[test]
    fn readers_have_what_open_tenants_leave() {
        let limit = FileLimit(Some(20_000));
        for (tenants, spare) in [(1468, 1468), (100, 5572), (10_000, 0)] {
            assert_eq!(limit.spare_readers(tenants), spare, "{tenants}");
        }
        assert_eq!(FileLimit(None).spare_readers(1), usize::MAX);
    }

    #[test]
    fn memory_and_files_bound_the_open_tenants() {
        for (memory, files, tenants) in [
            (Some(128 << 20), None, 64),
            (Some(1 << 30), None, 256),
            (Some(24 << 30), None, 6144),
            (None, None, 8192),
            (Some(24 << 30), Some(20_000), 1468),
            (Some(128 << 20), Some(256), 16),
        ] {
            assert_eq!(
                within(FileLimit(files), memory),
                tenants,
                "{memory:?} {files:?}"
            );
        }
    }

    #[test]
    fn tells_want_of_resources_from_other_errors() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN] {
            assert!(is_exhaustion(&errno.into()), "{errno}");
        }
        assert!(!is_exhaustion(&Errno::NOENT.into()));
        assert!(!is_exhaustion(&io::ErrorKind::UnexpectedEof.into()));
        assert!(!files_ran_out());
    }
}
