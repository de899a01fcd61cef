//! Which field a filter or an order is about.

use std::str::FromStr;

use serde::Serialize;

use super::super::{MAX_DEPTH, error::excerpt};

/// A field of a document: one of the server's own, or a path to one of the user's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Field {
    /// `_id`.
    Id,
    /// `_creationTime`.
    Created,
    /// `_updateTime`.
    Updated,
    /// `_version`.
    Version,
    /// The names on the way to it, from the document through objects within objects; at least one.
    /// A path does not lead into a list.
    Path(Vec<String>),
}

impl FromStr for Field {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "_id" => return Ok(Self::Id),
            "_creationTime" => return Ok(Self::Created),
            "_updateTime" => return Ok(Self::Updated),
            "_version" => return Ok(Self::Version),
            _ => {}
        }
        let name = excerpt(text);
        if text.starts_with('_') {
            return Err(format!(
                "field {name:?}: of the names that begin with '_' there are _id, _creationTime, _updateTime and _version"
            ));
        }
        if text.len() > MAX_PATH_BYTES || text.split('.').count() > MAX_DEPTH {
            return Err(format!(
                "field {name:?} is longer than {MAX_PATH_BYTES} bytes or deeper than {MAX_DEPTH} levels"
            ));
        }
        if text.contains('\0') || text.split('.').any(str::is_empty) {
            return Err(format!(
                "field {name:?} is no path: write names with dots between them"
            ));
        }
        Ok(Self::Path(text.split('.').map(str::to_owned).collect()))
    }
}

/// The longest path.
const MAX_PATH_BYTES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_servers_fields_and_paths() {
        let path =
            |names: &[&str]| Field::Path(names.iter().map(|name| (*name).to_owned()).collect());
        for (text, field) in [
            ("_id", Field::Id),
            ("_creationTime", Field::Created),
            ("_updateTime", Field::Updated),
            ("_version", Field::Version),
            ("a", path(&["a"])),
            (
                "größe.日本._x.\"$[0]",
                path(&["größe", "日本", "_x", "\"$[0]"]),
            ),
        ] {
            assert_eq!(text.parse(), Ok(field));
        }
    }

    #[test]
    fn rejects_what_is_no_path() {
        let (long, deep) = ("x".repeat(1025), ["x"; 65].join("."));
        for text in [
            "", ".", "a.", ".a", "a..b", "_", "_id.x", "_rev", "a\0b", &long, &deep,
        ] {
            assert!(text.parse::<Field>().is_err(), "{text}");
        }
        assert!(["x"; 64].join(".").parse::<Field>().is_ok());
    }
}
