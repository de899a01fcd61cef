//! JSON as clients write it, and what is wrong with it in words for them: never in those of the
//! libraries that read it.

use serde::Deserialize;
use serde_json::error::Category;

use super::error::excerpt;

/// Reads an object from the bytes of a body. `serde` would take a list for it: its members by their
/// places.
pub fn read_object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, String> {
    if !json.trim_ascii_start().starts_with(b"{") {
        return Err(NO_OBJECT.to_owned());
    }
    serde_json::from_slice(json).map_err(|error| explain::<T>(json, &error))
}

/// The same from text.
pub(super) fn object<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, String> {
    if !text.trim_start().starts_with('{') {
        return Err(NO_OBJECT.to_owned());
    }
    serde_json::from_str(text).map_err(|error| explain::<T>(text.as_bytes(), &error))
}

/// What is wrong with JSON that was to be a `T`, and in which of its fields.
fn explain<'a, T: Deserialize<'a>>(json: &'a [u8], error: &serde_json::Error) -> String {
    let reason = reason(error);
    if error.classify() != Category::Data || reason.starts_with('"') {
        return reason;
    }
    // Read again: to keep count of where it is would slow down what is right.
    let mut json = serde_json::Deserializer::from_slice(json);
    let again = serde_path_to_error::deserialize::<_, T>(&mut json);
    let path = again.err().map(|error| error.path().to_string());
    match path {
        // A dot is the whole, a question mark what cannot be named.
        Some(path) if path != "." && path != "?" => format!("\"{}\": {reason}", excerpt(&path)),
        _ => reason,
    }
}

/// What is wrong with JSON.
pub(super) fn reason(error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    let said = error.to_string();
    let said = said.strip_suffix(&format!(" at line {line} column {column}"));
    let said = said.map_or_else(|| error.to_string(), str::to_owned);
    match error.classify() {
        Category::Data => of_data(&said),
        _ => {
            let fault = of_syntax(&said);
            format!("it is not valid JSON (line {line}, column {column}): {fault}")
        }
    }
}

/// What is wrong with text that is no JSON, or none that is read, from what `serde_json` says of
/// it. No other words of it pass.
fn of_syntax(said: &str) -> String {
    if let Some(part) = said.strip_prefix("EOF while parsing ") {
        let known = ["a list", "an object", "a string", "a value"];
        let part = known.iter().find(|known| **known == part);
        return format!("it ends in the middle of {}", part.unwrap_or(&"a value"));
    }
    let fault = match said {
        "expected value" => "a value is expected here",
        "expected ident" => "`true`, `false` or `null` is expected here",
        "expected `:`" => "a `:` is expected here",
        "expected `,` or `]`" => "a `,` or a `]` is expected here",
        "expected `,` or `}`" => "a `,` or a `}` is expected here",
        "expected `\"`" => "a `\"` is expected here",
        "key must be a string" => "a name in quotes is expected here",
        "trailing comma" => "the last `,` of a list or an object is one too many",
        "trailing characters" => "it goes on after its end",
        "invalid escape" => "there is no such escape in JSON",
        "invalid number" => "a number is not written like this",
        "number out of range" => "the number is beyond the range of a double",
        "invalid unicode code point" => "it is not UTF-8",
        "control character (\\u0000-\\u001F) found while parsing a string" => {
            "control characters in text must be escaped"
        }
        "lone leading surrogate in hex escape" | "unexpected end of hex escape" => {
            "a `\\u` escape is half of a surrogate pair"
        }
        "recursion limit exceeded" => {
            return format!("it is nested deeper than {MOST_LEVELS} levels");
        }
        _ => "it cannot be read here",
    };
    fault.to_owned()
}

/// What is wrong with valid JSON, from what `serde` says of it. Checks of our own come as they are.
fn of_data(said: &str) -> String {
    if let Some(name) = said.strip_prefix("missing field ") {
        return format!("{} is missing", quoted(name));
    }
    if let Some(name) = said.strip_prefix("duplicate field ") {
        return format!("{} is there twice", quoted(name));
    }
    for (prefix, fault, known_are, known_is) in [
        (
            "unknown field ",
            "is not a field here",
            "; the fields are ",
            "; the only one is ",
        ),
        ("unknown variant ", "is not one of the values", ": ", ": "),
    ] {
        if let Some(rest) = said.strip_prefix(prefix) {
            // What the client wrote may hold a comma, what is known does not.
            let known = ["`, expected ", "`, there are no "];
            let known = known.iter().filter_map(|known| rest.rfind(known)).max();
            let (name, known) = rest.split_at(known.map_or(rest.len(), |at| at + 1));
            return match known.strip_prefix(", expected ") {
                Some(known) => {
                    let known = known.strip_prefix("one of ").unwrap_or(known);
                    let known = known.replace(" or ", ", ").replace('`', "\"");
                    let before = match known.contains(", ") {
                        true => known_are,
                        false => known_is,
                    };
                    format!("{} {fault}{before}{known}", quoted(name))
                }
                None => format!("{} {fault}", quoted(name)),
            };
        }
    }
    if let Some(rest) = said.strip_prefix("invalid length ") {
        let expected = rest.rsplit_once(", expected ").map_or(rest, |both| both.1);
        return match kind(expected) {
            Some(kind) => format!("{kind} is expected"),
            None => format!("{expected} is expected"),
        };
    }
    if let Some(rest) = said.strip_prefix("invalid value: ")
        && let Some((_found, expected)) = rest.rsplit_once(", expected ")
    {
        return match kind(expected) {
            // Of the right kind, and too large, or less than nothing.
            Some(kind) => format!("{kind} in range is expected"),
            None => format!("{expected} is expected"),
        };
    }
    if let Some(rest) = said.strip_prefix("invalid type: ")
        && let Some((found, expected)) = rest.rsplit_once(", expected ")
    {
        let (expected, found) = (kind(expected).unwrap_or(expected), shown(found));
        return format!("{expected} is expected, and this is {found}");
    }
    match said.char_indices().nth(MOST_CHARS) {
        Some((end, _)) => format!("{}…", &said[..end]),
        None => said.to_owned(),
    }
}

/// A kind of value, from how `serde` calls what it wants; `None` where it is called by words of our
/// own.
fn kind(expected: &str) -> Option<&'static str> {
    const INTEGERS: &[&str] = &[
        "u8", "u16", "u32", "u64", "u128", "usize", "i8", "i16", "i32", "i64", "i128", "isize",
    ];
    Some(match expected {
        "f32" | "f64" => "a number",
        "a boolean" | "bool" => "true or false",
        "str" | "string" | "path string" | "a string" | "a borrowed string" | "string or map"
        | "variant identifier" | "field identifier" | "char" | "a character" => "text",
        "any valid JSON value" => "a value",
        "unit" | "null" => "null",
        "a sequence" | "an array" => "a list",
        "a map" => "an object",
        integer if INTEGERS.contains(&integer) => "a whole number",
        other => {
            let first = other.split(' ').next().unwrap_or_default();
            match first {
                "struct" | "internally" | "adjacently" | "externally" => "an object",
                "enum" => "text",
                "tuple" => "a list",
                "unit" | "newtype" | "option" => "another value",
                _ => return None,
            }
        }
    })
}

/// A kind of value that was found, from how `serde` calls it.
fn shown(found: &str) -> &'static str {
    let first = found.split(' ').next().unwrap_or_default();
    match first {
        "string" | "character" => "text",
        "integer" | "floating" => "a number",
        "boolean" if found.contains("true") => "true",
        "boolean" => "false",
        "null" | "unit" | "Option" => "null",
        "map" => "an object",
        "sequence" => "a list",
        _ => "something else",
    }
}

/// A name that `serde` quotes, as we do.
fn quoted(name: &str) -> String {
    format!("\"{}\"", excerpt(name.trim_matches('`')))
}

/// How deep `serde_json` follows what it builds.
const MOST_LEVELS: usize = 127;
/// Of a reason.
const MOST_CHARS: usize = 320;
const NO_OBJECT: &str = "it must be a JSON object";

#[cfg(test)]
mod tests;
