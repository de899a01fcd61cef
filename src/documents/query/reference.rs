//! The plainest evaluator of queries, in memory: what every store's answers are compared with.

use std::cmp::Ordering;

use serde_json::Value as Json;

use super::{Condition, Field, Query, Relation, TypeRank, Value};
use crate::documents::Document;

/// The documents that a query finds among those of its table, which come in the order of their insertion.
pub(crate) fn find<'a>(documents: &'a [Document], query: &Query) -> Vec<&'a Document> {
    let mut found: Vec<_> = documents
        .iter()
        .filter(|document| {
            query
                .filters
                .iter()
                .all(|filter| holds(lookup(document, &filter.field).as_ref(), &filter.condition))
        })
        .collect();
    if let Some(order) = &query.order {
        found.sort_by(|a, b| {
            let (a, b) = (lookup(a, &order.field), lookup(b, &order.field));
            rank(a.as_ref()).cmp(&rank(b.as_ref())).then_with(|| {
                let (a, b) = (a.as_ref().and_then(value), b.as_ref().and_then(value));
                a.zip(b)
                    .and_then(|(a, b)| compare(&a, &b))
                    .unwrap_or(Ordering::Equal)
            })
        });
        if order.descending {
            found.reverse();
        }
    }
    found
}

fn lookup(document: &Document, field: &Field) -> Option<Json> {
    match field {
        Field::Id => Some(document.id.to_string().into()),
        Field::Created => Some(document.created_ms.into()),
        Field::Updated => Some(document.updated_ms.into()),
        Field::Version => Some(document.version.into()),
        Field::Path(names) => {
            let mut at: Json =
                serde_json::from_str(document.fields.as_json()).expect("stored JSON");
            for name in names {
                at = at.as_object_mut()?.remove(name)?;
            }
            Some(at)
        }
    }
}

fn holds(field: Option<&Json>, condition: &Condition) -> bool {
    let compared = |with: &Value| {
        field
            .and_then(value)
            .and_then(|field| compare(&field, with))
    };
    let equals = |with: &Value| compared(with) == Some(Ordering::Equal);
    match condition {
        Condition::Equal(with) => equals(with),
        Condition::NotEqual(with) => !equals(with),
        Condition::In(values) => values.iter().any(equals),
        Condition::Exists(there) => field.is_some() == *there,
        Condition::Compared(relation, with) => {
            compared(with).is_some_and(|ordering| match relation {
                Relation::Greater => ordering.is_gt(),
                Relation::GreaterOrEqual => ordering.is_ge(),
                Relation::Less => ordering.is_lt(),
                Relation::LessOrEqual => ordering.is_le(),
            })
        }
    }
}

/// How two values of one type stand to each other; `None` for two types.
fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::Null, Value::Null) => Some(Ordering::Equal),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        (Value::Number(a), Value::Number(b)) => a.partial_cmp(b),
        (Value::String(a), Value::String(b)) => Some(a.chars().cmp(b.chars())),
        _ => None,
    }
}

/// What is compared of a field; nothing of lists and objects.
fn value(json: &Json) -> Option<Value> {
    Value::from_json(&json.to_string()).ok()
}

fn rank(json: Option<&Json>) -> TypeRank {
    match json {
        None => TypeRank::Missing,
        Some(Json::Null) => TypeRank::Null,
        Some(Json::Bool(_)) => TypeRank::Boolean,
        Some(Json::Number(_)) => TypeRank::Number,
        Some(Json::String(_)) => TypeRank::String,
        Some(Json::Array(_)) => TypeRank::List,
        Some(Json::Object(_)) => TypeRank::Object,
    }
}
