//! How commands speak: answers on standard output, everything else on standard error.

use std::io::{self, Write as _};

/// Prints an answer.
pub(super) fn answer(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Prints something that a person should see and a program should not parse.
pub(super) fn note(text: &str) {
    // Nobody is left to be told when standard error is gone.
    drop(writeln!(io::stderr().lock(), "{text}"));
}

/// Prints an error and what caused it. Causes that a message already repeats are left out.
pub(super) fn error(error: &dyn std::error::Error) {
    let mut text = format!("error: {error}");
    let mut said = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !said.contains(&words) {
            text.push_str("\n  because: ");
            text.push_str(&words);
            said.push_str(&words);
        }
        next = cause.source();
    }
    note(&text);
}
