//! Small file systems of a test's own: tmpfs mounts, which takes root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system of one's own, mounted in the place of a directory.
#[derive(Debug)]
pub struct Disk(PathBuf);

impl Disk {
    /// `None`, with a loud word, where mounting is not allowed.
    ///
    /// # Panics
    ///
    /// When the directory cannot be made.
    #[must_use]
    pub fn mount(at: &Path, options: &str) -> Option<Self> {
        fs::create_dir_all(at).expect("a place to mount at");
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "nimbus-test"])
            .arg(at)
            .output();
        match output {
            Ok(output) if output.status.success() => Some(Self(at.to_owned())),
            other => {
                eprintln!(
                    "SKIPPED: this test mounts a tmpfs, which takes root and CAP_SYS_ADMIN: {other:?}"
                );
                None
            }
        }
    }

    /// Changes its options.
    ///
    /// # Panics
    ///
    /// When that is refused.
    pub fn remount(&self, options: &str) {
        let status = Command::new("mount")
            .args(["-o", &format!("remount,{options}")])
            .arg(&self.0)
            .status();
        assert!(status.expect("mount").success(), "remount,{options}");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}
