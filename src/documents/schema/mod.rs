//! The schema of a table: which fields its documents have, and which indexes it is searched by.
//! What it means is defined in `docs/schemas.md`.

mod compiled;
mod cost;
mod field_type;
mod json_schema;
mod metered;
mod pattern;
mod rules;
#[cfg(test)]
mod tests;
mod tree;
mod violation;
mod weight;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Bounded, Fields, InputError, TableName, json_object, json_object::reason};
use json_schema::JsonSchema;

pub use field_type::FieldType;
pub use rules::{FieldPath, FieldRule, IndexRule};
pub use violation::Violation;

/// The largest schema: bytes as compact JSON (256 KiB).
pub const MAX_SCHEMA_BYTES: usize = 256 << 10;

/// The most fields that a schema names.
pub const MAX_SCHEMA_FIELDS: usize = 1000;

/// The most indexes of a table.
pub const MAX_INDEXES: usize = 32;

/// The most fields of an index.
pub const MAX_INDEX_FIELDS: usize = 8;

/// What every document of a table must be like, and how the table is indexed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableSchema {
    table: TableName,
    fields: Vec<FieldRule>,
    indexes: Vec<IndexRule>,
    #[serde(skip_serializing_if = "Option::is_none")]
    json_schema: Option<JsonSchema>,
}

impl TableSchema {
    /// Reads a schema as clients write it:
    ///
    /// ```json
    /// {"table": "places",
    ///  "fields": [{"name": "address.zip", "field_type": "number", "required": true}],
    ///  "indexes": [{"name": "by_zip", "fields": ["address.zip", "name"], "unique": false}],
    ///  "json_schema": {"properties": {"name": {"minLength": 1}}}}
    /// ```
    ///
    /// All but the table may be left out.
    pub fn from_json(text: &str) -> Result<Self, InputError> {
        let schema = Self::read(text)?;
        if let Some(json_schema) = &schema.json_schema {
            let _compiled = json_schema.compile().map_err(refused)?;
        }
        Ok(schema)
    }

    /// The same, without what its JSON Schema was compiled into, which may take megabytes: for one
    /// of many.
    pub(super) fn uncompiled(self) -> Self {
        Self {
            json_schema: self.json_schema.map(JsonSchema::uncompiled),
            ..self
        }
    }

    /// A schema that a store gives back: it passed [`TableSchema::from_json`] when it came in.
    /// Compiles nothing yet.
    ///
    /// `None` when it is none, which only damage brings about.
    #[must_use]
    pub fn from_stored(text: &str) -> Option<Self> {
        Self::read(text).ok()
    }

    fn read(text: &str) -> Result<Self, InputError> {
        // The rules for documents hold here too: no name twice, bounded nesting, numbers in range.
        let compact = Fields::from_json(text).map_err(|error| refused(as_schema(error)))?;
        if compact.as_json().len() > MAX_SCHEMA_BYTES {
            return Err(refused(format!(
                "it has {} bytes, over the limit of {MAX_SCHEMA_BYTES}",
                compact.as_json().len()
            )));
        }
        let written: Written<'_> = json_object::object(compact.as_json()).map_err(refused)?;
        let table = written.table.parse()?;
        let fields = written.fields.map(|list| list.0).unwrap_or_default();
        let fields = rules::each("fields", &fields, FieldRule::from_json).map_err(refused)?;
        rules::distinct("fields", fields.iter().map(|rule| rule.path.to_string()))
            .map_err(refused)?;
        let indexes = written.indexes.map(|list| list.0).unwrap_or_default();
        let indexes = rules::each("indexes", &indexes, IndexRule::from_json).map_err(refused)?;
        rules::distinct("indexes", indexes.iter().map(|rule| rule.name.clone()))
            .map_err(refused)?;
        rules::no_two_alike(&indexes).map_err(refused)?;
        let json_schema = written.json_schema.map(|text| JsonSchema::new(text.get()));
        Ok(Self {
            table,
            fields,
            indexes,
            json_schema,
        })
    }

    /// The schema as canonical JSON: [`TableSchema::from_json`] reads it back, and equal schemas
    /// have equal text.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a schema is plain data")
    }

    /// The table it is for.
    #[must_use]
    pub fn table(&self) -> &TableName {
        &self.table
    }

    /// The fields that it names.
    #[must_use]
    pub fn fields(&self) -> &[FieldRule] {
        &self.fields
    }

    /// The indexes of the table.
    #[must_use]
    pub fn indexes(&self) -> &[IndexRule] {
        &self.indexes
    }

    /// Whether there are documents that it refuses, but for what unique indexes do.
    #[must_use]
    pub fn constrains(&self) -> bool {
        !self.fields.is_empty() || self.json_schema.is_some()
    }

    /// Whether it refuses the same documents as another, but for what unique indexes do.
    #[must_use]
    pub fn constrains_like(&self, other: &Self) -> bool {
        self.fields == other.fields && self.json_schema == other.json_schema
    }

    /// Checks a document of a tenant, in a bounded number of steps. What is compiled for it is kept
    /// while there is room. A tenant has one large document checked at a time.
    ///
    /// # Errors
    ///
    /// The first violation that is found; that the schema is one that this version does not
    /// compile.
    pub fn check(&self, tenant: &str, document: &Fields) -> Result<(), Violation> {
        if !self.constrains() {
            return Ok(());
        }
        // Before room is taken: who waits for it does not wait for this.
        let compiled = self.json_schema.as_ref().map(JsonSchema::compile);
        let compiled = compiled
            .transpose()
            .map_err(|reason| Violation::Unusable { reason })?;
        let checked = tree::with_tree(tenant, document.as_json(), |document| {
            for rule in &self.fields {
                rule.check(document)?;
            }
            compiled.map_or(Ok(()), |compiled| json_schema::check(&compiled, document))
        });
        checked.unwrap_or_else(|error| {
            Err(Violation::Unreadable {
                reason: reason(&error),
            })
        })
    }
}

fn refused(reason: String) -> InputError {
    InputError::Schema { reason }
}

/// What the checks for documents say, said of a schema.
fn as_schema(error: InputError) -> String {
    match error {
        InputError::NotAnObject => "it must be a JSON object".to_owned(),
        InputError::TooDeep => "it is nested too deep: flatten it".to_owned(),
        InputError::TooLarge { size } => {
            format!("it has {size} bytes, over the limit of {MAX_SCHEMA_BYTES}")
        }
        error => error.to_string(),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<'a> {
    table: String,
    #[serde(borrow)]
    fields: Option<Bounded<&'a RawValue, MAX_SCHEMA_FIELDS>>,
    #[serde(borrow)]
    indexes: Option<Bounded<&'a RawValue, MAX_INDEXES>>,
    #[serde(borrow)]
    json_schema: Option<&'a RawValue>,
}
