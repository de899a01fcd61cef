//! A lost control file, and the new one that takes its place.
//!
//! The data key that sealed the log's lines is lost with it, so nothing in the log can be verified.
//! The log is believed nevertheless: a new control file has no locks and no access keys, so the log
//! can only take rights away, and an attacker who can forge it can also remove it.

use std::fmt;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::files;
use crate::control::{AuditHead as Head, Control};
use crate::data_dir::{self, sync_dir};
use crate::envelope::manifest_path;

/// A control file that is gone, with its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlLost {
    /// Where it would be.
    pub path: PathBuf,
    /// Whether the audit log is there.
    pub log: bool,
}

impl ControlLost {
    /// Whether the control file of `control_dir` is gone. Tenants without a log say so only in a
    /// directory that is marked as a deployment's (`mark_deployed`): others may have been brought
    /// there, or migrated. Blocks.
    #[must_use]
    pub fn look(control_dir: &Path, data_dir: &Path) -> Option<Self> {
        let path = Control::path_in(control_dir);
        if is_there(&path) || is_there(&manifest_path(&path)) {
            return None;
        }
        let log = has_log(control_dir);
        let deployed = is_there(&data_dir.join(data_dir::DEPLOYED));
        (log || deployed && has_tenants(data_dir)).then_some(Self { path, log })
    }
}

/// Marks `data_dir` as a deployment's, durably: from now on a control file that is gone is missed.
/// Called once there is one, before anything that must not be forgotten is written there. Blocks.
///
/// # Errors
///
/// What the operating system said.
#[expect(
    clippy::disallowed_methods,
    reason = "an empty file that is none of SQLite's, made here"
)]
pub(crate) fn mark_deployed(data_dir: &Path) -> io::Result<()> {
    let path = data_dir.join(data_dir::DEPLOYED);
    if is_there(&path) {
        return Ok(());
    }
    let mut options = std::fs::OpenOptions::new();
    let made = options.write(true).create_new(true).mode(0o600).open(&path);
    match made {
        Ok(_empty) => sync_dir(data_dir),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

impl fmt::Display for ControlLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.log {
            true => write!(
                f,
                "the control file {path} and its manifest are gone, and the audit log says that they were there: put both back from the newest \
                 backup. Without one, `nimbus start` makes a new control file: it locks again what the log says is locked, and forgets all \
                 access keys (docs/runbook.md)"
            ),
            false => write!(
                f,
                "this is the data directory of a deployment, and there are tenants, but no control file {path} and no audit log: put both back, with the control file's manifest, from the newest \
                 backup. Without one, `nimbus start` makes a new control file; which tenants were locked or \
                 being deleted, and which access keys there were, is not known then (docs/runbook.md)"
            ),
        }
    }
}

/// Whether a control file whose log has no head yet stands beside the log of another.
pub(super) fn is_of_another(
    dir: &Path,
    head: Head,
    own: impl Fn(&str) -> bool,
) -> io::Result<bool> {
    if head != Head::START {
        return Ok(false);
    }
    let growing = files::read_growing(dir)?;
    let first = growing.lines().next();
    Ok(first.is_some_and(|line| !own(line)) || !files::full_parts(dir)?.is_empty())
}

/// Whether there are databases of tenants in `data_dir`, or their manifests.
pub(crate) fn has_tenants(data_dir: &Path) -> bool {
    data_dir::scan_readable(data_dir).any(|entry| entry.derived().is_some())
}

/// Whether there is a part of the log in `dir`, with a line in it.
fn has_log(dir: &Path) -> bool {
    let growing = files::read_growing(dir).is_ok_and(|text| text.contains('\n'));
    growing || files::full_parts(dir).is_ok_and(|parts| !parts.is_empty())
}

fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
