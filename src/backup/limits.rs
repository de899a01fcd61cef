//! How large what lies in a repository may be.

/// A catalogue.
pub(super) const CATALOGUE: u64 = 256 << 20;
/// Pages, or a piece of the audit log, with what stands before them.
pub(super) const OBJECT: u64 = 64 << 20;
/// A piece of the audit log, as it is written.
pub(super) const PIECE: usize = 16 << 20;
