//! What a failure of a provider means for a key in use.

/// What a failure means for a key that is already in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureClass {
    /// The answer was no: the key is gone, disabled or withheld. A lease on it ends now.
    Denied,
    /// There was no answer. A lease rides on for its grace.
    Unavailable,
    /// The key answers, and this wrap or this configuration is wrong. Says nothing about a lease.
    Invalid,
}
