//! How much memory a JSON Schema takes once it is compiled, known before it is.
//!
//! Each compiled part and keyword holds the JSON pointer to itself as text, several times, so that
//! a long name is as many times in memory as there are parts below it. Some keywords hold a copy of
//! what they say. What is said here is meant as an upper bound, measured with the version of
//! `jsonschema` that is in use.

use serde_json::{Map, Value};

/// A part at the end of a pointer of this length, without its keywords.
pub(super) fn part(pointer: u64) -> u64 {
    PER_PART + 2 * pointer
}

/// A keyword at the end of a pointer of this length, without the parts and the copies that it
/// holds.
pub(super) fn keyword(name: &str, pointer: u64) -> u64 {
    if name == "$ref" {
        PER_REFERENCE + 6 * pointer
    } else {
        PER_KEYWORD + 3 * pointer
    }
}

/// The names that stand for parts.
pub(super) fn names(value: &Value) -> u64 {
    let names = value.as_object().into_iter().flat_map(Map::keys);
    names.map(|name| PER_NAME + 4 * name.len() as u64).sum()
}

/// A copy of a value.
pub(super) fn copy(value: &Value) -> u64 {
    PER_VALUE
        + match value {
            Value::String(text) => text.len() as u64,
            Value::Array(items) => items.iter().map(copy).sum(),
            Value::Object(members) if !members.is_empty() => {
                let members = members.iter();
                let each =
                    members.map(|(name, value)| 2 * PER_VALUE + name.len() as u64 + copy(value));
                MAP_NODE + each.sum::<u64>()
            }
            _ => 0,
        }
}

/// How much a name makes a pointer longer.
pub(super) fn segment(name: &str) -> u64 {
    let escapes = name.bytes().filter(|byte| matches!(byte, b'~' | b'/'));
    1 + (name.len() + escapes.count()) as u64
}

/// The longest text in a value that is one, or a list or a map of such.
pub(super) fn longest_text(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.len() as u64,
        Value::Array(items) => items.iter().map(longest_text).max().unwrap_or(0),
        Value::Object(members) => members.values().map(longest_text).max().unwrap_or(0),
        _ => 0,
    }
}

/// How much the place in a list makes a pointer longer.
pub(super) const INDEX: u64 = 8;
/// What the smallest takes.
pub(super) const LEAST: u64 = 4096;
/// The first node of a map.
pub(super) const MAP_NODE: u64 = 656;
/// What a schema may take, its patterns apart: each of them has a bound of its own.
pub(super) const MAX_BYTES: u64 = 16 << 20;

const PER_PART: u64 = 320;
const PER_KEYWORD: u64 = 384;
const PER_REFERENCE: u64 = 1024;
const PER_NAME: u64 = 256;
const PER_VALUE: u64 = 56;
