//! The evaluator of queries: what a field has, and whether a condition holds of it. Stores judge by
//! it what no index answers, and tests hold every store's answers against it.

use std::{borrow::Cow, cmp::Ordering, fmt};

use serde::{
    Deserialize,
    de::{self, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{Condition, Field, Number, Query, Relation, TypeRank, Value};
use crate::documents::{Document, Fields};

/// What a document has in a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// Its type.
    pub(crate) rank: TypeRank,
    /// What is compared of it; nothing of lists, of objects, and where there is no such field.
    pub(crate) value: Option<Value>,
}

impl Found {
    const MISSING: Self = Self {
        rank: TypeRank::Missing,
        value: None,
    };

    /// A value.
    pub(crate) fn of(value: Value) -> Self {
        Self {
            rank: TypeRank::of(&value),
            value: Some(value),
        }
    }

    fn read(json: &str) -> Self {
        let rank = match json.as_bytes().first() {
            Some(b'[') => TypeRank::List,
            Some(b'{') => TypeRank::Object,
            // Stored JSON was checked when it came in.
            _ => return Value::from_json(json).map_or(Self::MISSING, Self::of),
        };
        Self { rank, value: None }
    }

    /// The order of documents by it, ties apart.
    #[cfg(test)]
    pub(crate) fn order(&self, other: &Self) -> Ordering {
        let values = self.value.as_ref().zip(other.value.as_ref());
        let by_value = || values.and_then(|(a, b)| compare(a, b));
        self.rank
            .cmp(&other.rank)
            .then_with(|| by_value().unwrap_or(Ordering::Equal))
    }

    /// Whether a condition holds of it.
    pub(crate) fn meets(&self, condition: &Condition) -> bool {
        let compared = |with: &Value| self.value.as_ref().and_then(|value| compare(value, with));
        let equals = |with: &Value| compared(with) == Some(Ordering::Equal);
        match condition {
            Condition::Equal(with) => equals(with),
            Condition::NotEqual(with) => !equals(with),
            Condition::In(values) => values.iter().any(equals),
            Condition::Exists(there) => (self.rank != TypeRank::Missing) == *there,
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
}

/// Whether a document is one that a query asks for.
pub(crate) fn matches(document: &Document, query: &Query) -> bool {
    let mut filters = query.filters.iter();
    filters.all(|filter| lookup(document, &filter.field).meets(&filter.condition))
}

/// What a document has in a field.
pub(crate) fn lookup(document: &Document, field: &Field) -> Found {
    let number = |number: i64| Found::of(Value::Number(Number::from(number)));
    match field {
        Field::Id => Found::of(Value::String(document.id.to_string())),
        Field::Created => number(document.created_ms),
        Field::Updated => number(document.updated_ms),
        Field::Version => number(document.version),
        Field::Path(names) => at_path(&document.fields, names),
    }
}

/// What lies at the end of a path.
pub(crate) fn at_path(fields: &Fields, names: &[String]) -> Found {
    let mut json = fields.as_json();
    for name in names {
        match member(json, name) {
            Some(value) => json = value,
            None => return Found::MISSING,
        }
    }
    Found::read(json)
}

/// How two values of one type stand to each other; `None` for two types.
fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::Null, Value::Null) => Some(Ordering::Equal),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        (Value::Number(a), Value::Number(b)) => a.partial_cmp(b),
        // The order of code points is that of UTF-8.
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        _ => None,
    }
}

/// The value of an object's member, if it is an object with that member.
fn member<'a>(json: &'a str, name: &str) -> Option<&'a str> {
    if !json.starts_with('{') {
        return None;
    }
    let mut json = serde_json::Deserializer::from_str(json);
    let found = de::Deserializer::deserialize_map(&mut json, Member(name));
    found.ok()?.map(RawValue::get)
}

struct Member<'n>(&'n str);

impl<'de> Visitor<'de> for Member<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(Name(name)) = map.next_key()? {
            if found.is_none() && name == self.0 {
                found = Some(map.next_value()?);
            } else {
                let IgnoredAny = map.next_value()?;
            }
        }
        Ok(found)
    }
}

/// A member's name, borrowed from the text unless it holds an escape.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_through_objects_alone() {
        let fields = Fields::from_json(
            r#"{"a":{"b":[{"c":1}],"\u0062b":2.50,"n":null},"s":"x","":{"":7},"o":{"t":true}}"#,
        )
        .unwrap();
        let at = |path: &[&str]| {
            let names: Vec<String> = path.iter().map(|name| (*name).to_owned()).collect();
            at_path(&fields, &names)
        };
        let value = |json: &str| Found::of(Value::from_json(json).unwrap());
        assert_eq!(at(&["a", "bb"]), value("2.50"));
        assert_eq!(at(&["a", "n"]), value("null"));
        assert_eq!(at(&["s"]), value(r#""x""#));
        assert_eq!(at(&["o", "t"]), value("true"));
        assert_eq!(at(&["a"]).rank, TypeRank::Object);
        assert_eq!(at(&["a", "b"]).rank, TypeRank::List);
        for path in [&["a", "b", "c"][..], &["s", "x"], &["z"], &["a", "n", "x"]] {
            assert_eq!(at(path), Found::MISSING, "{path:?}");
        }
    }
}
