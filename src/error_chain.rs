//! An error with everything that caused it.

use std::error::Error;

/// `error` and its causes in one line. Causes that a message already repeats are left out.
pub(crate) fn error_chain(error: &dyn Error) -> String {
    joined(error, ": ")
}

/// `error` and its causes, with `between` each two.
pub(crate) fn joined(error: &dyn Error, between: &str) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(between);
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}
