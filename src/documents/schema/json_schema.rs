//! The part of a schema that is JSON Schema, draft 2020-12, for the crate `jsonschema`.
//!
//! A schema is from a client, and so is what it is applied to. Nothing is fetched: references lead within the schema.
//! Patterns are run by an engine that takes time in proportion to the text. How much work and stack a document can
//! cost is bounded before anything is compiled, see [`cost`](super::cost).

use std::sync::{Arc, OnceLock};

use jsonschema::{Draft, PatternOptions, ValidationOptions, Validator};
use serde::{Serialize, Serializer};
use serde_json::{Value, json, value::RawValue};

use super::{Violation, cost};
use crate::documents::{error::excerpt, json_object::reason};

/// A JSON Schema: its text, and what it was compiled into once it is needed.
#[derive(Debug, Clone)]
pub(super) struct JsonSchema {
    text: Box<str>,
    compiled: Arc<OnceLock<Result<Validator, String>>>,
}

impl JsonSchema {
    /// Keeps compact JSON text.
    pub(super) fn new(text: &str) -> Self {
        Self {
            text: text.into(),
            compiled: Arc::default(),
        }
    }

    /// Compiles it, unless that was done before; says why it cannot be.
    pub(super) fn compile(&self) -> Result<&Validator, String> {
        self.compiled
            .get_or_init(|| compile(&self.text).map_err(|reason| format!("json_schema: {reason}")))
            .as_ref()
            .map_err(String::clone)
    }

    /// The same, without what it was compiled into.
    pub(super) fn uncompiled(self) -> Self {
        Self {
            text: self.text,
            compiled: Arc::default(),
        }
    }

    pub(super) fn check(&self, document: &Value) -> Result<(), Violation> {
        let violation = |at: String, reason: &str| Violation::JsonSchema {
            at: excerpt(&at),
            reason: excerpt(reason),
        };
        let validator = self
            .compile()
            .map_err(|reason| violation(String::new(), &reason))?;
        // Most documents are right, and this is the quicker way to know.
        if validator.is_valid(document) {
            return Ok(());
        }
        validator.validate(document).map_err(|error| {
            // Without the value: it is the user's, and errors are logged.
            violation(
                error.instance_path().to_string(),
                &error.masked().to_string(),
            )
        })
    }
}

impl PartialEq for JsonSchema {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for JsonSchema {}

impl Serialize for JsonSchema {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_json::from_str::<&RawValue>(&self.text)
            .map_err(serde::ser::Error::custom)?
            .serialize(serializer)
    }
}

fn compile(text: &str) -> Result<Validator, String> {
    if text.len() > MAX_JSON_SCHEMA_BYTES {
        return Err(format!(
            "it has {} bytes, over the limit of {MAX_JSON_SCHEMA_BYTES}",
            text.len()
        ));
    }
    let schema: Value = serde_json::from_str(text).map_err(|error| reason(&error))?;
    let object = schema
        .as_object()
        .ok_or_else(|| "it must be an object".to_owned())?;
    if let Some(dialect) = object.get("$schema")
        && !DIALECT.iter().any(|known| dialect == known)
    {
        return Err(format!("\"$schema\" is {:?} or is left out", DIALECT[0]));
    }
    cost::bound(&schema)?;
    options().build(&schema).map_err(|error| {
        let at = error.instance_path().to_string();
        let reason = match pattern_at(&schema, &at) {
            Some(pattern) => fault(pattern),
            None => excerpt(&error.to_string()),
        };
        format!("at {:?}: {reason}", excerpt(&at))
    })
}

fn options() -> ValidationOptions<'static> {
    let patterns = PatternOptions::regex()
        .size_limit(PATTERN_BYTES)
        .dfa_size_limit(PATTERN_BYTES);
    jsonschema::options()
        .with_draft(Draft::Draft202012)
        .offline()
        .with_pattern_options(patterns)
}

/// The pattern that stands at a place of a schema, or among the names there.
fn pattern_at<'a>(schema: &'a Value, at: &str) -> Option<&'a str> {
    let (above, name) = at.rsplit_once('/')?;
    let named = |place: &str| schema.pointer(place)?.as_object();
    if name == "pattern" {
        return schema.pointer(at)?.as_str();
    }
    let mut patterns = match name {
        PATTERNS => named(at)?.keys(),
        _ if above.rsplit('/').next() == Some(PATTERNS) => named(above)?.keys(),
        _ => return None,
    };
    patterns
        .find(|pattern| !is_usable(pattern))
        .map(|pattern| &**pattern)
}

fn is_usable(pattern: &str) -> bool {
    options().build(&json!({"pattern": pattern})).is_ok()
}

/// What is wrong with a pattern that cannot be used. The engine says it in several lines with a drawing.
fn fault(pattern: &str) -> String {
    let has = |marks: &[&str]| marks.iter().any(|mark| pattern.contains(mark));
    let reason = if has(&["(?=", "(?!", "(?<=", "(?<!"]) {
        "it looks around (`(?=`, `(?!`, `(?<=`, `(?<!`), which is not supported"
    } else if has(&["\\1", "\\2", "\\3", "\\k"]) {
        "it refers back to a group, which is not supported"
    } else {
        "it is no regular expression, or one that takes more than 256 KiB once compiled"
    };
    format!(
        "the pattern {:?} cannot be used: {reason}",
        excerpt(pattern)
    )
}

const PATTERNS: &str = "patternProperties";
/// The largest, in bytes as compact JSON.
const MAX_JSON_SCHEMA_BYTES: usize = 64 << 10;
/// What it may name as its dialect.
const DIALECT: [&str; 2] = [
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2020-12/schema#",
];
/// What one pattern may be compiled into, in bytes.
const PATTERN_BYTES: usize = 256 << 10;
