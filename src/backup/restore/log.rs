//! The audit log of a snapshot.

use crate::audit::Line;
use crate::backup::catalogue::StoredPart;
use crate::backup::{BackupError, Repository, sha256};

/// What the newest log tells of the time after the snapshot, and that the restored control file
/// does not know.
pub(super) async fn later(
    repository: &Repository,
    at: &[StoredPart],
    newest: &[StoredPart],
) -> Result<Vec<String>, BackupError> {
    if at == newest {
        return Ok(Vec::new());
    }
    let seq = lines(repository, at)
        .await?
        .last()
        .map_or(0, |line| line.seq);
    let newest = lines(repository, newest).await?;
    let after = newest.iter().filter(|line| line.seq > seq);
    Ok(after.filter(|line| tells(line)).map(described).collect())
}

/// Whether a line tells of something that an older state does not know, and that should stay so.
pub(super) fn tells(line: &Line) -> bool {
    matches!(
        (line.event.as_str(), line.outcome.as_str()),
        (
            "access-key-revoked" | "lock" | "unlock" | "delete" | "shred",
            "done"
        )
    )
}

/// What a line tells, for people.
pub(super) fn described(line: &Line) -> String {
    let subject = line.subject.as_deref().unwrap_or_default();
    let detail = line.detail.as_deref();
    let detail = detail.map_or(String::new(), |said| format!(": {said}"));
    format!(
        "{} {} {subject} by {}{detail}",
        line.time, line.event, line.actor
    )
}

async fn lines(repository: &Repository, parts: &[StoredPart]) -> Result<Vec<Line>, BackupError> {
    let mut lines = Vec::new();
    for part in parts {
        let text = log_part(repository, part).await?;
        let text = String::from_utf8_lossy(&text).into_owned();
        lines.extend(
            text.lines()
                .filter_map(|line| serde_json::from_str::<Line>(line).ok()),
        );
    }
    Ok(lines)
}

/// A part of the audit log, whole.
pub(super) async fn log_part(
    repository: &Repository,
    part: &StoredPart,
) -> Result<Vec<u8>, BackupError> {
    let mut text = Vec::new();
    for piece in &part.pieces {
        let found = repository.span(piece).await?;
        let skip = usize::try_from(piece.skip).unwrap_or(usize::MAX);
        text.extend(found.get(skip..).unwrap_or_default());
    }
    match text.len() as u64 == part.bytes && sha256(&text) == part.sha256 {
        true => Ok(text),
        false => Err(repository.damaged(
            &part.name,
            "its pieces do not make the part of the audit log that was saved",
        )),
    }
}
