//! What operators and platforms write, as they mean it: an empty variable is none, a list may have
//! spaces and a last comma, a text may begin with a byte order mark, and `~` is the shell's.

use std::any::TypeId;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Command;
use clap::builder::{OsStringValueParser, TypedValueParser as _};

/// Makes a command, with all that are below it, read variables and paths in that way.
pub(crate) fn as_meant(command: Command) -> Command {
    command
        .mut_args(|arg| {
            let is_empty = arg
                .get_env()
                .and_then(std::env::var_os)
                .is_some_and(|value| value.is_empty());
            let arg = if is_empty {
                arg.env(None::<&'static str>)
            } else {
                arg
            };
            // Pieces of a list are looked at when it is whole.
            let is_path = arg.get_value_parser().type_id() == TypeId::of::<PathBuf>();
            match (is_path, arg.get_value_delimiter()) {
                (true, None) => arg.value_parser(OsStringValueParser::new().try_map(path)),
                (true, Some(_)) => arg.value_parser(OsStringValueParser::new().map(PathBuf::from)),
                (false, _) => arg,
            }
        })
        .mut_subcommands(as_meant)
}

fn path(text: OsString) -> Result<PathBuf, &'static str> {
    let path = PathBuf::from(text);
    refused(&path).map_or(Ok(path), Err)
}

/// Why a path cannot be what is meant.
pub(super) fn refused(path: &Path) -> Option<&'static str> {
    let first = path.iter().next()?;
    first.as_encoded_bytes().starts_with(b"~").then_some(
        "only a shell replaces `~`, and none did; write the path out (`./~…` where it is meant)",
    )
}

/// The pieces of a list, without the spaces around them, and without those that are nothing else.
pub(crate) fn pieces(list: Vec<String>) -> Vec<String> {
    list.iter()
        .map(|piece| piece.trim())
        .filter(|piece| !piece.is_empty())
        .map(str::to_owned)
        .collect()
}

/// As [`pieces`], of paths. One that is not UTF-8 stays as it is.
pub(super) fn paths(list: Vec<PathBuf>) -> Vec<PathBuf> {
    list.into_iter()
        .map(|path| {
            path.to_str()
                .map_or(path.clone(), |text| text.trim().into())
        })
        .filter(|path| !path.as_os_str().is_empty())
        .collect()
}

/// A text without the mark that some editors put before it.
pub(crate) fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

/// Whether a text is UTF-16, by its mark.
pub(super) fn is_utf16(text: &[u8]) -> bool {
    text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff")
}
