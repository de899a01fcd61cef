//! One file a resource; each handler parses, calls the library, and answers.

pub(super) mod admin;
pub(super) mod apps;
pub(super) mod audit;
pub(super) mod backups;
pub(super) mod batch;
pub(super) mod crons;
pub(super) mod deploy;
pub(super) mod documents;
pub(super) mod health;
pub(super) mod journal;
pub(super) mod keys;
pub(super) mod lock;
pub(super) mod metrics;
pub(super) mod openapi;
pub(super) mod query;
pub(super) mod schedule;
pub(super) mod schema;
pub(super) mod tenants;
pub(super) mod usage;

use serde::Serialize;

use super::body::RawJson;
use super::error::{ApiError, Code};

/// `{"<name>": …}`, whose numbers are not read and written again.
fn named(name: &str, value: &impl Serialize) -> Result<RawJson, ApiError> {
    let value = json_text(value)?;
    Ok(RawJson(format!(r#"{{"{name}":{value}}}"#)))
}

fn json_text(value: &impl Serialize) -> Result<String, ApiError> {
    serde_json::to_string(value).map_err(|error| ApiError::new(Code::Internal, error.to_string()))
}

/// Part of a list, `items` being JSON: `{"<name>": …, "next_cursor", "has_more"}`. There is more
/// where there is a `next`, which needs no escape.
fn part_of(name: &str, items: &str, next: Option<String>) -> RawJson {
    let end = whether_more(next);
    RawJson(format!(r#"{{"{name}":{items},{end}"#))
}

/// The last members of a part of a list, and the end of its object.
fn whether_more(next: Option<String>) -> String {
    match next {
        Some(next) => format!(r#""next_cursor":"{next}","has_more":true}}"#),
        None => r#""next_cursor":null,"has_more":false}"#.to_owned(),
    }
}
