//! JSON objects of a known shape, as clients write them.

use serde::Deserialize;

use super::error::reason;

/// Reads an object. `serde` would take a list for it: its members by their places.
pub(super) fn object<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, String> {
    if !text.trim_start().starts_with('{') {
        return Err("it must be a JSON object".to_owned());
    }
    serde_json::from_str(text).map_err(|error| reason(&error))
}
