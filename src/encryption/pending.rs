//! Deletions that have begun and not ended: what kept them, and what ends them.

use std::path::Path;

use nimbus_manifests::TenantId;

use crate::audit;
use crate::data_dir;

/// Such a deletion: its cause, as the audit log has it, what is left of the tenant, and the command
/// that finishes it. Blocks.
pub(super) fn describe(control_dir: &Path, data_dir: &Path, tenant: &TenantId) -> String {
    let why = cause(control_dir, tenant).unwrap_or_else(|| "it was cut short".to_owned());
    let left = data_dir::of_tenant(data_dir, tenant).unwrap_or_default();
    let mut names: Vec<_> = left
        .iter()
        .filter_map(|(_kind, path)| path.file_name()?.to_str())
        .take(NAMED)
        .collect();
    if left.len() > names.len() {
        names.push("…");
    }
    let left = match names.is_empty() {
        true => "none of its files is left".to_owned(),
        false => format!("what is left: {}", names.join(", ")),
    };
    format!(
        "tenant {tenant} is being deleted, and that has not ended: {why}; {left}. Restore nothing. `nimbus encryption shred \
         --tenant-id {tenant} --yes` finishes it, with or without a server, once the cause is gone; so does the next start of the server"
    )
}

/// What the last line about a deletion of `tenant` says kept it, if it failed.
fn cause(control_dir: &Path, tenant: &TenantId) -> Option<String> {
    let subject = data_dir::subject(tenant).to_string();
    let lines = audit::lines(control_dir, None).ok()?;
    let last = lines
        .into_iter()
        .rev()
        .find(|line| line.subject.as_ref() == Some(&subject) && line.event == "delete")?;
    last.detail.filter(|_| last.outcome == "failed")
}

/// How many files are named.
const NAMED: usize = 4;
