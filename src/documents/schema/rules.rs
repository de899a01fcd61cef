//! What a schema says of one field, and of one index.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value, value::RawValue};

use super::field_type::FieldType;
use super::{MAX_INDEX_FIELDS, Violation};
use crate::documents::{Bounded, error::excerpt, json_object, query::Field};

/// The way to one of the user's fields, as in queries: names with dots between them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FieldPath(Vec<String>);

impl FieldPath {
    /// The names on the way, at least one.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// The value that it leads to; a path goes through objects alone.
    fn find<'a>(&self, document: &'a Value) -> Option<&'a Value> {
        self.0
            .iter()
            .try_fold(document, |at, name| at.as_object()?.get(name))
    }
}

impl FromStr for FieldPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse()? {
            Field::Path(names) => Ok(Self(names)),
            Field::Id => {
                Err("field \"_id\" is the server's own, and is indexed already".to_owned())
            }
            Field::Created | Field::Updated | Field::Version => Err(format!(
                "field {text:?} is the server's own: a schema names fields of the user"
            )),
        }
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

impl Serialize for FieldPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a schema says of one field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldRule {
    /// The way to the field.
    #[serde(rename = "name")]
    pub path: FieldPath,
    /// What it holds.
    pub field_type: FieldType,
    /// Whether it must be there and, unless anything goes, not be null. A field that is not
    /// required may be missing or null: null is how a patch takes a value away.
    pub required: bool,
}

impl FieldRule {
    pub(super) fn from_json(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Written {
            name: String,
            field_type: FieldType,
            #[serde(default)]
            required: bool,
        }

        let written: Written = json_object::object(text)?;
        Ok(Self {
            path: written.name.parse()?,
            field_type: written.field_type,
            required: written.required,
        })
    }

    pub(super) fn check(&self, document: &Value) -> Result<(), Violation> {
        let field = || self.path.to_string();
        let Some(value) = self.path.find(document) else {
            return if self.required {
                Err(Violation::Missing { field: field() })
            } else {
                Ok(())
            };
        };
        match FieldType::of(value) {
            _ if self.field_type == FieldType::Any => Ok(()),
            Some(found) if found == self.field_type => Ok(()),
            Some(found) => Err(Violation::Type {
                field: field(),
                expected: self.field_type,
                found,
            }),
            None if self.required => Err(Violation::Null {
                field: field(),
                expected: self.field_type,
            }),
            None => Ok(()),
        }
    }
}

/// What a schema says of one index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IndexRule {
    /// What its users call it; no two of a table have one name.
    pub name: String,
    /// The fields, the first first.
    pub fields: Vec<FieldPath>,
    /// Whether no two documents may have the same values in all of them.
    pub unique: bool,
}

impl IndexRule {
    pub(super) fn from_json(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Written {
            name: String,
            fields: Bounded<String, MAX_INDEX_FIELDS>,
            #[serde(default)]
            unique: bool,
        }

        let Written {
            name,
            fields,
            unique,
        } = json_object::object(text)?;
        let valid = name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.len() <= MAX_INDEX_NAME_BYTES
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if !valid {
            return Err(format!(
                "index name {:?} is not valid: use a letter, then letters, digits, '_' and '-', at most {MAX_INDEX_NAME_BYTES} in all",
                excerpt(&name)
            ));
        }
        if fields.0.is_empty() {
            return Err(format!("index {name:?} names no field"));
        }
        let fields = fields
            .0
            .iter()
            .map(|field| field.parse())
            .collect::<Result<Vec<FieldPath>, _>>()?;
        distinct("its fields", fields.iter().map(ToString::to_string))?;
        Ok(Self {
            name,
            fields,
            unique,
        })
    }
}

/// Reads each item of a list; an error says which one it is about.
pub(super) fn each<T>(
    list: &str,
    items: &[&RawValue],
    read: fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    let items = items.iter().enumerate();
    items
        .map(|(place, item)| {
            read(item.get()).map_err(|reason| format!("{list}[{place}]: {reason}"))
        })
        .collect()
}

/// Refuses a name that occurs twice.
pub(super) fn distinct(list: &str, names: impl Iterator<Item = String>) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for name in names {
        if seen.contains(&name) {
            return Err(format!("{list}: {:?} occurs twice", excerpt(&name)));
        }
        seen.insert(name);
    }
    Ok(())
}

/// Refuses two indexes that differ in nothing but their names.
pub(super) fn no_two_alike(indexes: &[IndexRule]) -> Result<(), String> {
    for (place, index) in indexes.iter().enumerate() {
        let alike =
            |other: &&IndexRule| other.fields == index.fields && other.unique == index.unique;
        if let Some(other) = indexes[..place].iter().find(alike) {
            return Err(format!(
                "indexes: {:?} and {:?} are the same index: leave one out",
                other.name, index.name
            ));
        }
    }
    Ok(())
}

/// The longest name of an index.
const MAX_INDEX_NAME_BYTES: usize = 64;
