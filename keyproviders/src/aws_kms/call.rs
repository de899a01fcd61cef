//! What a call was about.

use std::time::Duration;

/// What a call was about, for its error.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub(super) action: &'static str,
    pub(super) key: &'a str,
    /// Empty for a call that concerns no file.
    pub(super) subject: &'a str,
    pub(super) endpoint: &'a str,
    pub(super) deadline: Duration,
}

impl Call<'_> {
    /// No call at all, where only the kind of an error counts.
    pub(super) const NONE: Call<'static> = Call {
        action: "",
        key: "",
        subject: "",
        endpoint: "",
        deadline: Duration::ZERO,
    };
}
