//! Which instants of one tenant can be restored.

use nimbus_manifests::TenantId;
use serde::Serialize;

use super::state::State;
use crate::backup::list::Listed;
use crate::backup::prover::Prover;
use crate::backup::{BackupError, Repository};
use crate::{clock, data_dir};

/// How fine the instants of a range are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Granularity {
    /// Each commit
    Commit,
    /// The snapshots alone
    Snapshot,
}

/// Instants of a tenant that can be restored. A tenant that was deleted and made again under its
/// name has ranges of two files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TenantRange {
    /// The id of its file.
    pub file_id: String,
    /// The first instant.
    pub from: String,
    /// The last.
    pub to: String,
    /// How fine those in between are.
    pub granularity: Granularity,
    /// The epoch; null where there are snapshots alone.
    pub epoch: Option<u64>,
    /// The snapshot with which it begins, or all of them where there are snapshots alone.
    pub snapshots: Vec<u64>,
    /// At how many instants it changed; null where there are snapshots alone.
    pub changes: Option<usize>,
    /// How long its file is at the end.
    pub bytes: u64,
    /// Bytes that were stored for it: of its commits, or of the pages that these snapshots added.
    pub stored: u64,
}

impl Repository {
    /// The ranges of a tenant, in the order in which they begin; `snapshots` are those that hold
    /// it. Nothing is proven, and no key is needed. Reads the heads of all packs.
    ///
    /// # Errors
    ///
    /// [`BackupError::Store`].
    pub async fn tenant_ranges(
        &self,
        tenant: &TenantId,
        snapshots: &[Listed],
    ) -> Result<Vec<TenantRange>, BackupError> {
        let subject = data_dir::subject(tenant).to_string();
        let mut ranges = Vec::new();
        for range in self.ranges().await? {
            let Some((read, _)) = self.catalogue(range.snapshot).await? else {
                continue;
            };
            let taken = clock::ms_of(&read.claims.taken);
            let (Some(shipping), Some(taken)) = (read.claims.shipping, taken) else {
                continue;
            };
            let mut state = State::new(self, read.claims, taken);
            let mut prover = Prover::new(self, None);
            match state.read(&mut prover, shipping, i64::MAX).await {
                Ok(()) => {}
                // Up to there.
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error),
            }
            let lines = state.lines(&subject).into_iter();
            ranges.extend(lines.map(|line| TenantRange {
                file_id: line.file_id,
                from: clock::stamp_of(line.from_ms),
                to: clock::stamp_of(line.to_ms),
                granularity: Granularity::Commit,
                epoch: Some(range.epoch),
                snapshots: vec![range.snapshot],
                changes: Some(line.changes),
                bytes: line.bytes,
                stored: line.shipped,
            }));
        }
        let apart = apart(tenant, snapshots, &ranges);
        ranges.extend(apart);
        ranges.sort_by(|one, other| one.from.cmp(&other.from));
        Ok(ranges)
    }
}

/// The snapshots that lie in no range of commits, those of one file that follow each other
/// together.
fn apart(tenant: &TenantId, snapshots: &[Listed], commits: &[TenantRange]) -> Vec<TenantRange> {
    let mut ranges: Vec<TenantRange> = Vec::new();
    let mut follows = false;
    for one in snapshots {
        let Some(file_id) = &one.file_id else {
            continue;
        };
        let mut within = commits.iter().filter(|range| range.file_id == *file_id);
        let is_within = within.any(|range| range.from <= one.taken && one.taken <= range.to);
        let is_missing = one.missing.iter().any(|missing| missing == tenant.as_str());
        if is_within || is_missing {
            follows = false;
            continue;
        }
        match ranges.last_mut() {
            Some(last) if follows && last.file_id == *file_id => {
                last.to.clone_from(&one.taken);
                last.snapshots.push(one.snapshot);
                last.bytes = one.bytes;
                last.stored += one.added;
            }
            _ => ranges.push(TenantRange {
                file_id: file_id.clone(),
                from: one.taken.clone(),
                to: one.taken.clone(),
                granularity: Granularity::Snapshot,
                epoch: None,
                snapshots: vec![one.snapshot],
                changes: None,
                bytes: one.bytes,
                stored: one.added,
            }),
        }
        follows = true;
    }
    ranges
}
