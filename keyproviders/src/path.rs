//! The directory of a path.

use std::path::Path;

/// The directory that holds `path`. `Path::parent` answers an empty path for a bare name, which no
/// system call takes.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is what the lint points to")]
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}
