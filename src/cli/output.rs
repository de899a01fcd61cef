//! How commands speak: answers on standard output, everything else on standard error.

use std::borrow::Cow;
use std::io::{self, Write as _};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::error_chain::joined;
use crate::runtime::log;

/// Form of an answer, or of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

/// What commands log by default: what they have to say stands in their answer, and key events in
/// the audit log.
pub(super) const COMMAND_LOG: &str = "error";

/// Logs go to standard error; `RUST_LOG` chooses what is logged.
pub(super) fn init_log(format: Format, default: &str) {
    let said = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_default();
    let asked = match said.trim() {
        "" => Ok(EnvFilter::new(default)),
        asked => match asked.split(',').find(|part| names_no_level(part)) {
            Some(part) => Err(format!(
                "{part:?} is no level: error, warn, info, debug, trace or off; a part of the program is written with one, as in nimbus=debug"
            )),
            None => EnvFilter::try_new(asked).map_err(|error| error.to_string()),
        },
    };
    let (filter, refused) = match asked {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new(default), Some(error)),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // What the library would say of a line that cannot be written would panic with it.
        .log_internal_errors(false)
        .with_writer(log::writer);
    match format {
        Format::Text => builder.with_ansi(log::is_terminal()).init(),
        Format::Json => builder.json().init(),
    }
    if let Some(error) = refused {
        // At the level that every default shows.
        tracing::error!(
            "RUST_LOG={said:?} cannot be understood and is ignored ({error}); it is written like RUST_LOG=info,nimbus::audit=debug"
        );
    }
}

/// Whether a piece of `RUST_LOG` is a word alone and no level. The library would take a level with
/// a slip of the pen for the name of a part.
fn names_no_level(part: &str) -> bool {
    let part = part.trim();
    !part.is_empty() && !part.contains(['=', '[']) && part.parse::<LevelFilter>().is_err()
}

/// Text that may quote others, for a terminal: what moves the cursor, colours, or changes the
/// direction of what is read shows as what it is, in the spelling of JSON.
fn tamed(text: &str) -> Cow<'_, str> {
    let is_wild = |c: char| {
        (c.is_control() && !matches!(c, '\n' | '\t'))
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(is_wild) {
        return Cow::Borrowed(text);
    }
    let mut tamed = String::with_capacity(text.len());
    for c in text.chars() {
        match is_wild(c) {
            true => tamed.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => tamed.push(c),
        }
    }
    Cow::Owned(tamed)
}

/// A cell of a table, or a name in a line: it also begins no line.
pub(super) fn cell(text: &str) -> Cow<'_, str> {
    match text.contains(['\n', '\t']) {
        false => tamed(text),
        true => Cow::Owned(tamed(&text.replace('\n', "\\n").replace('\t', "\\t")).into_owned()),
    }
}

/// Prints an answer.
pub(super) fn answer(text: &str) -> io::Result<()> {
    let text = tamed(text);
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Prints something that a person should see and a program should not parse.
pub(super) fn note(text: &str) {
    log::line(format!("{}\n", tamed(text)).as_bytes());
}

/// Prints an error and what caused it. Causes that a message already repeats are left out.
pub(super) fn error(error: &dyn std::error::Error) {
    let text = format!("error: {}", joined(error, "\n  because: "));
    note(&text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_move_the_cursor_shows_as_what_it_is_and_stays_json() {
        for (text, shown, in_cell) in [
            ("plain – ünï\n", "plain – ünï\n", "plain – ünï\\n"),
            ("\u{1b}[2J", "\\u001b[2J", "\\u001b[2J"),
            ("a\rb\u{9b}c", "a\\u000db\\u009bc", "a\\u000db\\u009bc"),
            ("\u{202e}key\t", "\\u202ekey\t", "\\u202ekey\\t"),
            ("\u{7f}\u{0}", "\\u007f\\u0000", "\\u007f\\u0000"),
        ] {
            assert_eq!(tamed(text), shown);
            assert_eq!(cell(text), in_cell);
        }
        let json = serde_json::to_string(&["\u{1b}\u{9b}\u{202e}"]).unwrap();
        let read: Vec<String> = serde_json::from_str(&tamed(&json)).unwrap();
        assert_eq!(read, ["\u{1b}\u{9b}\u{202e}"]);
    }
}
