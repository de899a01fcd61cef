//! The part of a schema that is JSON Schema, draft 2020-12, for the crate `jsonschema`.
//!
//! A schema is from a client, and so is what it is applied to. Nothing is fetched: references lead
//! within the schema. Patterns are run by an engine that takes time in proportion to the text. How
//! much work and stack a document can cost is bounded before anything is compiled, see
//! [`cost`](super::cost).

use std::sync::Arc;

use jsonschema::{Draft, PatternOptions, ValidationError, Validator};
use serde::{Serialize, Serializer};
use serde_json::{Value, json, value::RawValue};

use super::Violation;
use super::compiled::{self, Compiled};
use super::cost::{self, Bounded};
use super::metered::{
    Counting, Metered, NAME_BYTES, PER_FRACTION, PER_NUMBER, Rates, Spent, TEXT_BYTES, within,
};
use crate::documents::{error::excerpt, json_object::reason};

/// A JSON Schema: its text, and the place of what it is compiled into once it is needed.
#[derive(Debug, Clone)]
pub(super) struct JsonSchema {
    text: Box<str>,
    place: Arc<compiled::Place>,
}

impl JsonSchema {
    /// Keeps compact JSON text.
    pub(super) fn new(text: &str) -> Self {
        Self {
            text: text.into(),
            place: Arc::default(),
        }
    }

    /// Compiles it, unless what it was compiled into is there; says why it cannot be.
    pub(super) fn compile(&self) -> Result<Arc<Compiled>, String> {
        self.place
            .get_or_compile(|| compile(&self.text))
            .map_err(|reason| format!("json_schema: {reason}"))
    }

    /// The same, without what it was compiled into.
    pub(super) fn uncompiled(self) -> Self {
        Self {
            text: self.text,
            place: Arc::default(),
        }
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

/// Checks a document.
pub(super) fn check(compiled: &Compiled, document: &Value) -> Result<(), Violation> {
    let violation = |at: String, reason: &str| Violation::JsonSchema {
        at: excerpt(&at),
        reason: excerpt(reason),
    };
    let Compiled {
        validator,
        rates,
        error_bytes,
        ..
    } = compiled;
    // Most documents are right, and this is the quicker way to know.
    let is_valid = within(MAX_STEPS, *rates, || validator.is_valid(Metered(document)));
    match is_valid {
        Ok(true) => return Ok(()),
        Ok(false) => {}
        Err(Spent) => return Err(Violation::TooCostly { steps: MAX_STEPS }),
    }
    let rates = rates.with_errors(document, *error_bytes);
    let found = within(STEPS_TO_SAY_WHERE, rates, || {
        validator.validate(Metered(document)).map_err(|error| {
            // Without the value: it is the user's, and errors are logged.
            violation(
                error.instance_path().to_string(),
                &error.masked().to_string(),
            )
        })
    });
    found.unwrap_or_else(|Spent| {
        let reason = "it would take too long to say where and why";
        Err(violation(String::new(), reason))
    })
}

pub(super) fn compile(text: &str) -> Result<Compiled, String> {
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
    let bounded = cost::bound(&schema)?;
    let validator = validator(&schema, PATTERN_BYTES).map_err(|error| {
        let at = error.instance_path().to_string();
        let reason = match pattern_at(&schema, &at) {
            Some(pattern) => fault(pattern),
            None => excerpt(&error.to_string()),
        };
        format!("at {:?}: {reason}", excerpt(&at))
    })?;
    Ok(weighed(validator, &bounded))
}

/// How much what was compiled weighs, and what a look at a document with it costs.
fn weighed(validator: Validator<Counting>, bounded: &Bounded<'_>) -> Compiled {
    let Bounded {
        in_place, patterns, ..
    } = bounded;
    let mut bytes = bounded.bytes;
    let mut per_unit = |pattern: &&str, unit: usize| {
        let size = pattern_size(pattern);
        bytes += size + 2 * (4 * size).min(PATTERN_BYTES);
        let steps = if size > COSTLY_PATTERN_BYTES { 8 } else { 4 };
        (size / 1024 * unit * steps) as u64
    };
    let texts = patterns.texts.iter();
    let text = texts.map(|pattern| per_unit(pattern, TEXT_BYTES)).max();
    let text = text.unwrap_or(0);
    let value = 1 + in_place / IN_PLACE_A_STEP;
    let names = patterns.names.iter().map(|patterns| {
        let patterns_of = patterns.iter();
        let matched: u64 = patterns_of
            .map(|pattern| per_unit(pattern, NAME_BYTES))
            .sum();
        matched + patterns.len() as u64 * value
    });
    let name = names.max().unwrap_or(0);
    Compiled {
        validator,
        rates: Rates {
            value,
            name: name + 1,
            text: text + 1,
            number: if bounded.divides_finely {
                PER_FRACTION
            } else {
                PER_NUMBER
            },
            error: None,
        },
        error_bytes: bounded.error_bytes,
        bytes,
    }
}

/// How large a pattern is, compiled: the smallest power of two under which it can be.
fn pattern_size(pattern: &str) -> usize {
    let sizes = std::iter::successors(Some(LEAST_PATTERN_BYTES), |size| Some(2 * size));
    let mut sizes = sizes.take_while(|size| *size < PATTERN_BYTES);
    let schema = json!({"pattern": pattern});
    sizes
        .find(|size| validator(&schema, *size).is_ok())
        .unwrap_or(PATTERN_BYTES)
}

fn validator(
    schema: &Value,
    pattern_bytes: usize,
) -> Result<Validator<Counting>, ValidationError<'static>> {
    let patterns = PatternOptions::regex()
        .size_limit(pattern_bytes)
        .dfa_size_limit(PATTERN_BYTES);
    jsonschema::options_for::<Counting>()
        .with_draft(Draft::Draft202012)
        .offline()
        .with_pattern_options(patterns)
        .build(schema)
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
    validator(&json!({"pattern": pattern}), PATTERN_BYTES).is_ok()
}

/// What is wrong with a pattern that cannot be used. The engine says it in several lines with a
/// drawing.
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
/// What a small pattern takes.
const LEAST_PATTERN_BYTES: usize = 1 << 10;
/// How many steps one check may take. Measured, a step takes 2 to 15 ns, and up to 45 ns in a
/// pattern that is made to be slow.
pub(super) const MAX_STEPS: u64 = 20_000_000;
/// How many more it may take to say where a document does not fit. Each error that is made takes a
/// step a byte, so that all of them take 10 MB at most.
const STEPS_TO_SAY_WHERE: u64 = MAX_STEPS / 2;
/// Parts that look at nothing and are passed in one step: 3 to 4 ns each.
const IN_PLACE_A_STEP: u64 = 2;
/// A byte of text takes up to 0.1 µs for each KiB of a pattern up to this size, and up to 0.2 µs
/// beyond.
const COSTLY_PATTERN_BYTES: usize = 8 << 10;
