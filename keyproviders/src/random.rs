//! Where randomness comes from: injected, so that test vectors can fix it.

use std::fmt::Debug;

/// A source of bytes that nobody can predict.
pub trait SecureRandom: Debug + Send + Sync {
    /// Fills all of `bytes`.
    ///
    /// # Errors
    /// When the source cannot deliver; `bytes` must not be used then.
    fn fill(&self, bytes: &mut [u8]) -> Result<(), RandomError>;
}

/// The operating system's generator (`getrandom(2)` and its kin).
#[derive(Clone, Copy, Debug, Default)]
pub struct OsRandom;

impl SecureRandom for OsRandom {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), RandomError> {
        getrandom::fill(bytes).map_err(|error| RandomError {
            reason: error.to_string(),
        })
    }
}

/// The source of randomness did not deliver.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the system gave no random bytes ({reason}); nothing was written: \
     check that the process may call getrandom or read /dev/urandom, then try again"
)]
pub struct RandomError {
    /// What the source said.
    pub reason: String,
}
