//! Checks of the directories, of the disk and of this machine.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nimbus_keyproviders::locked_memory;

use super::keys::named;
use super::{Check, Verdict, check, fine};
use crate::clock;
use crate::data_dir::{self, Entry, PLAINTEXT, Role};
use crate::encryption::size_of;
use crate::encryption::status::EncryptionStatus;
use crate::envelope::{FileKind, classify};
use crate::process::{Disk, Reserve, harden};

pub(super) fn directory_modes(dirs: &[&Path]) -> Check {
    let name = "data-modes";
    for dir in dirs {
        let mode = fs::metadata(dir).map_or(0, |dir| dir.mode() & 0o7777);
        if mode & 0o077 != 0 {
            let verdict = if mode & 0o022 == 0 {
                Verdict::Warning
            } else {
                Verdict::Problem
            };
            return check(
                name,
                verdict,
                format!("{} has mode {mode:o}", dir.display()),
                Some(
                    "`chmod 700` it: others see which tenants there are, or can remove their files",
                ),
            );
        }
    }
    fine(name, "nobody else can look into the data directories")
}

pub(super) fn leftovers(dirs: &[&Path]) -> Check {
    let name = "plaintext-left";
    let mut left: Vec<String> = dirs
        .iter()
        .flat_map(|dir| data_dir::scan_readable(dir))
        .filter(may_be_plaintext)
        .map(|entry| entry.path.display().to_string())
        .collect();
    // The two directories may be one.
    left.sort();
    left.dedup();
    if left.is_empty() {
        return fine(name, "no plaintext is left beside the data");
    }
    check(
        name,
        Verdict::Warning,
        format!(
            "left of a migration, an export or a creation: {}",
            named(&left)
        ),
        Some("look what it is, and remove it: it may be plaintext"),
    )
}

/// Whether it is left of something that handles plaintext. What is set aside holds whatever stood
/// there.
fn may_be_plaintext(entry: &Entry) -> bool {
    let set_aside = || {
        let derived = entry.derived();
        derived.is_some_and(|derived| derived.kind == data_dir::Kind::SetAside)
    };
    let plain = || {
        matches!(
            classify(&entry.path),
            Ok(FileKind::PlainSqlite | FileKind::PlainRedb)
        )
    };
    entry.name().contains(PLAINTEXT) || entry.role == Role::Temporary || set_aside() && plain()
}

pub(super) fn disk(data_dir: &Path, reserve: Reserve) -> Check {
    let name = "disk-space";
    let Ok(disk) = Disk::of(data_dir) else {
        return check(
            name,
            Verdict::Problem,
            format!("the disk of {} cannot be looked at", data_dir.display()),
            None,
        );
    };
    let (free, kept) = (disk.free, reserve.on(disk));
    let sizes = data_dir::scan_readable(data_dir).map(|entry| entry.len());
    let largest = sizes.max().unwrap_or(0);
    let found = format!(
        "{} MiB free, of which {} MiB are kept free; the largest file has {} MiB",
        free >> 20,
        kept >> 20,
        largest >> 20
    );
    let remedy = "free some space: below what is kept free only deletes are let in, and `rotate-dek` and `migrate` need room for a second copy";
    if free < LEAST_FREE.max(kept) {
        check(name, Verdict::Problem, found, Some(remedy))
    } else if free < largest + largest / 20 {
        check(name, Verdict::Warning, found, Some(remedy))
    } else {
        fine(name, found)
    }
}

pub(super) fn tenant_size(data_dir: &Path, limit: Option<u64>) -> Check {
    let name = "tenant-size";
    let Some(limit) = limit else {
        return fine(name, "a tenant may have as much as the disk has");
    };
    let largest = data_dir::scan_readable(data_dir)
        .filter(|entry| matches!(entry.role, Role::Database(_)))
        .map(|entry| (size_of(&entry.path), entry.path))
        .max();
    let Some((bytes, path)) = largest else {
        return fine(name, "there are no tenants");
    };
    let found = format!(
        "{} is the largest, with {} of {} MiB",
        path.file_name().unwrap_or_default().display(),
        bytes >> 20,
        limit >> 20
    );
    let remedy = "at its limit a tenant takes deletes alone: raise --max-tenant-bytes, or have documents deleted";
    if bytes >= limit {
        check(name, Verdict::Problem, found, Some(remedy))
    } else if bytes >= limit / 10 * 9 {
        check(name, Verdict::Warning, found, Some(remedy))
    } else {
        fine(name, found)
    }
}

pub(super) fn clock(status: &EncryptionStatus) -> Check {
    let name = "clock";
    let now = clock::now().as_second();
    let ahead = status.files.iter().find(|file| {
        let times = file
            .wraps
            .iter()
            .map(|wrap| &wrap.at)
            .chain(&file.dek_created);
        times
            .filter_map(|time| time.parse::<jiff::Timestamp>().ok())
            .any(|time| time.as_second() > now + SKEW)
    });
    match ahead {
        None => fine(name, "no key was made in the future"),
        Some(file) => check(
            name,
            Verdict::Problem,
            format!("{} has a key that was made in the future", file.path),
            Some("set this machine's clock: ages of keys, jobs and leases go by it"),
        ),
    }
}

pub(super) fn memory_lock(max_open: usize) -> Check {
    let name = "memory-lock";
    let memory = locked_memory();
    let limit = harden().memory_lock_limit;
    let needed = max_open as u64 * KEY_MEMORY_A_TENANT;
    let found = format!(
        "{} KiB of key memory locked, {} KiB refused; the limit is {}",
        memory.locked_bytes >> 10,
        memory.unlocked_bytes >> 10,
        limit.map_or("none".to_owned(), |bytes| format!("{} KiB", bytes >> 10))
    );
    if memory.unlocked_bytes == 0 && limit.is_none_or(|limit| limit >= needed) {
        return fine(name, found);
    }
    check(
        name,
        Verdict::Warning,
        found,
        Some(
            "raise it (`ulimit -l`, LimitMEMLOCK= in a systemd unit): keys beyond it may be swapped; or use no swap, or an encrypted one",
        ),
    )
}

pub(super) fn core_dumps() -> Check {
    let hardening = harden();
    if hardening.no_core_dumps && hardening.not_dumpable {
        return fine(
            "core-dumps",
            "off, and no other process of this user may attach",
        );
    }
    check(
        "core-dumps",
        Verdict::Warning,
        "this platform does not let them be turned off for good",
        Some("turn them off for the user that Nimbus runs as"),
    )
}

/// A clock may be this many seconds behind the one that made a key.
const SKEW: i64 = 300;
/// Below this a server cannot write its WALs: 64 MiB.
const LEAST_FREE: u64 = 64 << 20;
/// Data key, cipher key and some that are derived for a moment.
const KEY_MEMORY_A_TENANT: u64 = 4 * 32;
