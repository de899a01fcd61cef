//! How commands speak: answers on standard output, everything else on standard error.

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

/// What commands log by default: what they have to say stands in their answer, and key events in the audit log.
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

/// Whether a piece of `RUST_LOG` is a word alone and no level. The library would take a level with a slip of the pen for the name of a part.
fn names_no_level(part: &str) -> bool {
    let part = part.trim();
    !part.is_empty() && !part.contains(['=', '[']) && part.parse::<LevelFilter>().is_err()
}

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
    log::line(format!("{text}\n").as_bytes());
}

/// Prints an error and what caused it. Causes that a message already repeats are left out.
pub(super) fn error(error: &dyn std::error::Error) {
    let text = format!("error: {}", joined(error, "\n  because: "));
    note(&text);
}
