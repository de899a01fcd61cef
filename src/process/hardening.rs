//! Keeps key material out of core dumps and away from other processes of the same user.
//!
//! What this gives and does not give stands in `SECURITY.md`, "Process hardening". Key pages are
//! locked one by one where they are allocated; `mlockall` is deliberately not used: in a process
//! that maps files it ends in the OOM killer.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What [`harden`] achieved; `start` logs it, so that an operator sees what the platform refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hardening {
    /// `RLIMIT_CORE` is 0: the kernel writes no core file for this process.
    pub no_core_dumps: bool,
    /// `PR_SET_DUMPABLE` is off: no other process of this user may attach, and `/proc/<pid>/mem`
    /// belongs to root.
    pub not_dumpable: bool,
    /// The soft `RLIMIT_MEMLOCK` in bytes, `None` when unlimited: how much key memory can be kept
    /// out of swap.
    pub memory_lock_limit: Option<u64>,
}

/// Turns off core dumps and foreign access to this process's memory. Call first in `main`, before
/// any key is read.
///
/// Never fails: a platform that refuses is reported in the answer, not treated as fatal.
#[must_use]
pub fn harden() -> Hardening {
    let no_core_dumps = setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )
    .is_ok();
    Hardening {
        no_core_dumps,
        not_dumpable: forbid_dumping(),
        memory_lock_limit: getrlimit(Resource::Memlock).current,
    }
}

#[cfg(target_os = "linux")]
fn forbid_dumping() -> bool {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    set_dumpable_behavior(DumpableBehavior::NotDumpable).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn forbid_dumping() -> bool {
    false
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn leaves_the_process_without_core_dumps_and_not_dumpable() {
        let hardening = harden();
        assert!(hardening.no_core_dumps && hardening.not_dumpable);
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        let core = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"))
            .unwrap();
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    }
}
