//! How large what lies in a repository may be. Nothing longer is read, and nothing longer is
//! written.

use nimbus_manifests::MAX_MANIFEST_BYTES;

use crate::sqlcipher::UNIT;

/// A catalogue.
pub(super) const CATALOGUE: u64 = 256 << 20;
/// Pages, or a piece of the audit log, with what stands before them.
pub(super) const OBJECT: u64 = 64 << 20;
/// A piece of the audit log, as it is written.
pub(super) const PIECE: usize = 16 << 20;
/// A file, or a part of the audit log, put together: what SQLite's largest database has.
pub(super) const FILE: u64 = u32::MAX as u64 * UNIT as u64;
/// A pack.
pub(super) const PACK: u64 = 256 << 20;
/// What says little: what a repository begins with, an epoch, a mark.
const SMALL: u64 = 64 << 10;

/// How long the object of this name may be, by its kind.
pub(super) fn of(name: &str) -> u64 {
    match name.split('/').next().unwrap_or_default() {
        "snapshots" => CATALOGUE,
        "log" => PACK,
        "keys" => MAX_MANIFEST_BYTES as u64,
        "nimbus-repository" | "epochs" | "removing" => SMALL,
        // Pages, pieces of the audit log, and when each tenant was proven.
        _ => OBJECT,
    }
}

/// Numbers in names of objects have ten digits, and begin with 1.
pub(super) fn is_number(number: u64) -> bool {
    (1..=9_999_999_999).contains(&number)
}
