//! Deploys that were stored: what a store returns about them.

use serde::Serialize;

use super::{ContentHash, Diff};

/// How many generations are kept: the newest ones. One that is removed is never the active one:
/// that is the newest then.
pub const GENERATIONS_KEPT: usize = 50;

/// What came of a deploy or an activation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deployed {
    /// The generation that is active now; none after a dry run, which makes none.
    pub generation: Option<i64>,
    /// The one that was active before.
    pub previous_generation: Option<i64>,
    /// Whether it is active; not after a dry run.
    pub activated: bool,
    /// What is different, or would be.
    pub diff: Diff,
}

/// The generations of a tenant, as of one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Generations {
    /// The one that is active; none before the first deploy.
    pub active: Option<i64>,
    /// All that are kept, the newest first.
    pub generations: Vec<Generation>,
}

/// One stored deploy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Generation {
    /// Its number: deploys of a tenant are numbered from 1, and no number is given twice.
    pub generation: i64,
    /// What it is called.
    pub name: String,
    /// When it was stored, in milliseconds since the Unix epoch.
    pub created_at: i64,
    /// How many schemas it has.
    pub schemas: i64,
    /// How many crons it has.
    pub crons: i64,
    /// How many files it has.
    pub files: i64,
    /// Bytes of all of them. What generations have in common is stored once.
    pub bytes: i64,
}

/// A file of the active generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppFile {
    /// What names its content.
    pub hash: ContentHash,
    /// How many bytes it has.
    pub size: u64,
}
