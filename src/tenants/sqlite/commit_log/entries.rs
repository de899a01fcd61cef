//! What goes through the log, and what is known of it.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use nimbus_manifests::TenantId;
use uuid::Uuid;

use super::Captured;

/// Into what the log is shipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shipping {
    /// The repository.
    pub repository: Uuid,
    /// The epoch in it.
    pub epoch: u64,
    /// The last pack that was formed.
    pub pack: u64,
    /// How many bytes of frames may wait.
    pub most_bytes: u64,
}

/// A place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Its time: later than everything before it, and not later than anything after it.
    pub at_ms: i64,
    /// Where shipping is; `None` while nothing is shipped.
    pub position: Option<Position>,
}

/// Where shipping is at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Into what it ships.
    pub shipping: Shipping,
    /// The number of the next base.
    pub base: u32,
    /// Whether the log begins here.
    pub afresh: bool,
}

/// Frames of one commit, or a part of them.
#[derive(Debug)]
pub struct Frames {
    /// Whose.
    pub tenant: TenantId,
    /// What they build on.
    pub base: u32,
    /// When they were committed.
    pub at_ms: i64,
    /// As they lie in the WAL.
    pub bytes: Vec<u8>,
}

/// A file whose pages must be stored as they were at a moment.
#[derive(Debug)]
pub struct BegunBase {
    /// Whose.
    pub tenant: TenantId,
    /// Its number.
    pub number: u32,
    /// The moment.
    pub at_ms: i64,
    /// Since when it is held.
    pub since: Instant,
    /// The data key that its pages are under; `None` where it is its manifest's.
    pub dek_id: Option<String>,
    /// Its pages, and its manifest.
    pub captured: Arc<Mutex<Captured>>,
}

/// A tenant that was deleted.
#[derive(Debug, Clone)]
pub struct Gone {
    /// Which.
    pub tenant: TenantId,
    /// When.
    pub at_ms: i64,
    /// Files of the tenant with a base below this are gone.
    pub before: u32,
}

/// All that was in the log at a moment.
#[derive(Debug)]
pub struct Boundary {
    /// Its time.
    pub at_ms: i64,
    /// How many pieces of frames the log had been given.
    pub upto: u64,
    /// Files that were begun since the boundary before.
    pub begun: Vec<BegunBase>,
    /// Tenants that were deleted since.
    pub gone: Vec<Gone>,
}

/// The log is not whole: what is shipped next would not go on from what was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken(pub String);
