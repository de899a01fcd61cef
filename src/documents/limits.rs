//! Limits that both a type and its errors name.

/// The deepest nesting: the document itself is level 1, an object or array in it level 2, and so
/// on.
pub const MAX_DEPTH: usize = 64;

/// The largest document: bytes of its fields as compact JSON (1 MiB).
pub const MAX_FIELDS_BYTES: usize = 1 << 20;

/// The longest table name, in bytes (all are ASCII).
pub const MAX_TABLE_NAME_BYTES: usize = 64;

/// The longest name of a cron, in bytes (all are ASCII).
pub(super) const MAX_CRON_NAME_BYTES: usize = 64;

/// The longest path, in bytes of its normal form.
pub const MAX_PATH_BYTES: usize = 1024;

/// The longest name of a file or directory in a path, in bytes.
pub const MAX_PATH_NAME_BYTES: usize = 255;
