//! How many files this process may have open: an open tenant takes a handful.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit on open files (1024 on many systems, too few for the tenants that may be open) to the hard one, which an
/// operator sets. Gives the limit as it is then, `None` when there is none.
#[must_use]
pub fn raise_file_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(_refused) => current,
    }
}
