//! Changes to documents, as data.

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::SerializeMap as _};
use serde_json::value::RawValue;

use super::{DocumentId, Fields, InputError, TableName, integer::WrittenNumber, json_object};

/// The most mutations in one batch.
pub const MAX_BATCH: usize = 10_000;

/// One change to one document.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mutation {
    /// Adds a document. Its table comes into being with its first document.
    Insert {
        /// Where it goes.
        table: TableName,
        /// What it holds.
        fields: Fields,
        /// The id a client chose; the store draws one otherwise.
        id: Option<DocumentId>,
    },
    /// Merges fields into a document, see [`Fields::merged_with`].
    Update {
        /// Where the document is.
        table: TableName,
        /// Which document.
        id: DocumentId,
        /// The fields to set.
        patch: Fields,
        /// The version that it must have.
        if_version: Option<i64>,
    },
    /// Removes a document.
    Delete {
        /// Where the document is.
        table: TableName,
        /// Which document.
        id: DocumentId,
        /// The version that it must have.
        if_version: Option<i64>,
    },
    /// Changes nothing, and is refused unless a document is as it is expected.
    Check {
        /// Where the document would be.
        table: TableName,
        /// Which document.
        id: DocumentId,
        /// How it must be.
        expected: Expected,
    },
}

/// How a document must be for what is asked to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// There is none.
    Absent,
    /// There is one, of whatever version.
    Present,
    /// It has one of these versions.
    OneOf(Vec<i64>),
}

impl Expected {
    /// Whether it holds of a document of this version, or of none.
    #[must_use]
    pub fn holds(&self, version: Option<i64>) -> bool {
        match (self, version) {
            (Self::Absent, version) => version.is_none(),
            (Self::Present, version) => version.is_some(),
            (Self::OneOf(versions), Some(version)) => versions.contains(&version),
            (Self::OneOf(_), None) => false,
        }
    }
}

impl Mutation {
    /// Reads a mutation as clients write it:
    ///
    /// ```json
    /// {"type": "insert", "table": "places", "fields": {}, "id": "…"}
    /// {"type": "update", "table": "places", "id": "…", "patch": {}, "if_version": 7}
    /// {"type": "delete", "table": "places", "id": "…", "if_version": 7}
    /// {"type": "check", "table": "places", "id": "…", "version": 7}
    /// ```
    ///
    /// The `id` of an insert and `if_version` may be left out. The `version` of a check is null
    /// where there must be no document. Anything else that is missing, or does not belong there, is
    /// refused.
    pub fn from_json(text: &str) -> Result<Self, InputError> {
        let written: Written<'_> =
            json_object::object(text).map_err(|reason| InputError::Mutation { reason })?;
        written.mutation()
    }

    /// The table that it is about.
    #[must_use]
    pub fn table(&self) -> &TableName {
        match self {
            Self::Insert { table, .. }
            | Self::Update { table, .. }
            | Self::Delete { table, .. }
            | Self::Check { table, .. } => table,
        }
    }

    /// Whether it depends on the version of a document.
    #[must_use]
    pub fn is_conditional(&self) -> bool {
        match self {
            Self::Insert { .. } => false,
            Self::Update { if_version, .. } | Self::Delete { if_version, .. } => {
                if_version.is_some()
            }
            Self::Check { .. } => true,
        }
    }

    /// It as JSON text, which [`from_json`](Self::from_json) reads.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("names, ids and fields are JSON")
    }

    /// About how many bytes it occupies while it waits to be applied.
    #[must_use]
    pub fn weight(&self) -> usize {
        let fields = match self {
            Self::Insert { fields, .. } => fields.as_json().len(),
            Self::Update { patch, .. } => patch.as_json().len(),
            Self::Delete { .. } => 0,
            Self::Check { expected, .. } => match expected {
                Expected::OneOf(versions) => size_of_val(&**versions),
                Expected::Absent | Expected::Present => 0,
            },
        };
        size_of::<Self>() + fields
    }
}

impl Serialize for Mutation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let kind = match self {
            Self::Insert { .. } => "insert",
            Self::Update { .. } => "update",
            Self::Delete { .. } => "delete",
            Self::Check { .. } => "check",
        };
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("type", kind)?;
        map.serialize_entry("table", self.table())?;
        match self {
            Self::Insert { fields, id, .. } => {
                if let Some(id) = id {
                    map.serialize_entry("id", id)?;
                }
                map.serialize_entry("fields", fields)?;
            }
            Self::Update {
                id,
                patch,
                if_version,
                ..
            } => {
                map.serialize_entry("id", id)?;
                map.serialize_entry("patch", patch)?;
                if let Some(version) = if_version {
                    map.serialize_entry("if_version", version)?;
                }
            }
            Self::Delete { id, if_version, .. } => {
                map.serialize_entry("id", id)?;
                if let Some(version) = if_version {
                    map.serialize_entry("if_version", version)?;
                }
            }
            Self::Check { id, expected, .. } => {
                map.serialize_entry("id", id)?;
                match expected {
                    Expected::Absent => map.serialize_entry("version", &())?,
                    Expected::OneOf(versions) if versions.len() == 1 => {
                        map.serialize_entry("version", &versions[0])?;
                    }
                    // Only made of request headers, and never written down.
                    Expected::OneOf(versions) => map.serialize_entry("version", versions)?,
                    Expected::Present => map.serialize_entry("version", "*")?,
                }
            }
        }
        map.end()
    }
}

/// What a mutation that was applied came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MutationOutcome {
    id: DocumentId,
    version: Option<i64>,
}

impl MutationOutcome {
    /// What came of the document `id`: its version, or none where it is not there.
    #[must_use]
    pub fn new(id: DocumentId, version: Option<i64>) -> Self {
        Self { id, version }
    }

    /// The document that was added, changed, removed or looked at.
    #[must_use]
    pub fn id(&self) -> DocumentId {
        self.id
    }

    /// The number of the write, which is the document's version; of a check the version that is
    /// there.
    #[must_use]
    pub fn version(&self) -> Option<i64> {
        self.version
    }
}

/// A mutation as it is written, before it is known that its members fit its type.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<'a> {
    #[serde(rename = "type")]
    kind: Kind,
    table: String,
    id: Option<String>,
    #[serde(borrow)]
    fields: Option<&'a RawValue>,
    #[serde(borrow)]
    patch: Option<&'a RawValue>,
    #[serde(default, deserialize_with = "given")]
    if_version: Option<WrittenNumber>,
    #[serde(default, deserialize_with = "given")]
    version: Option<WrittenNumber>,
}

/// A member that is there, also where it is null.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<WrittenNumber>, D::Error> {
    WrittenNumber::deserialize(deserializer).map(Some)
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Insert,
    Update,
    Delete,
    Check,
}

impl Kind {
    fn takes(self) -> &'static str {
        match self {
            Self::Insert => "an insert takes \"table\", \"fields\" and, if you choose it, \"id\"",
            Self::Update => {
                "an update takes \"table\", \"id\", \"patch\" and, if it depends on it, \"if_version\""
            }
            Self::Delete => {
                "a delete takes \"table\", \"id\" and, if it depends on it, \"if_version\""
            }
            Self::Check => {
                "a check takes \"table\", \"id\" and \"version\", which is null where there must be no document"
            }
        }
    }
}

impl Written<'_> {
    fn mutation(self) -> Result<Mutation, InputError> {
        let Self {
            kind,
            table,
            id,
            fields,
            patch,
            if_version,
            version,
        } = self;
        let table = table.parse()?;
        let id = id.map(|id| id.parse()).transpose()?;
        let json = |raw: &RawValue| Fields::from_json(raw.get());
        let conditions = (if_version, version);
        Ok(match (kind, id, fields, patch, conditions) {
            (Kind::Insert, id, Some(fields), None, (None, None)) => Mutation::Insert {
                table,
                fields: json(fields)?,
                id,
            },
            (Kind::Update, Some(id), None, Some(patch), (if_version, None)) => Mutation::Update {
                table,
                id,
                patch: json(patch)?,
                if_version: if_version.map(number).transpose()?,
            },
            (Kind::Delete, Some(id), None, None, (if_version, None)) => Mutation::Delete {
                table,
                id,
                if_version: if_version.map(number).transpose()?,
            },
            (Kind::Check, Some(id), None, None, (None, Some(version))) => Mutation::Check {
                table,
                id,
                expected: match version {
                    WrittenNumber::Null => Expected::Absent,
                    written => Expected::OneOf(vec![number(written)?]),
                },
            },
            (kind, ..) => {
                return Err(InputError::Mutation {
                    reason: kind.takes().to_owned(),
                });
            }
        })
    }
}

/// A version as clients write it. Null is none: it may stand for a version that the client does not
/// have.
fn number(written: WrittenNumber) -> Result<i64, InputError> {
    written
        .to_integer()
        .filter(|version| *version >= 1)
        .ok_or_else(|| InputError::Mutation {
            reason: "a version is a whole number of 1 or more, as \"_version\" says it".to_owned(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f";

    fn read(json: &str) -> Result<Mutation, InputError> {
        Mutation::from_json(&json.replace("ID", ID))
    }

    #[test]
    fn reads_each_type() {
        let (table, id): (TableName, DocumentId) = ("t".parse().unwrap(), ID.parse().unwrap());
        let fields = Fields::from_json(r#"{"a":1.10}"#).unwrap();
        let insert = |id| Mutation::Insert {
            table: table.clone(),
            fields: fields.clone(),
            id,
        };
        assert_eq!(
            read(r#"{"type":"insert","table":"t","fields":{"a": 1.10}}"#),
            Ok(insert(None))
        );
        assert_eq!(
            read(r#" {"type":"insert","table":"t","fields":{"a":1.10},"id":"ID"}"#),
            Ok(insert(Some(id)))
        );
        assert_eq!(
            read(r#"{"type":"update","table":"t","patch":{"a":1.10},"id":"ID"}"#),
            Ok(Mutation::Update {
                table: table.clone(),
                id,
                patch: fields.clone(),
                if_version: None,
            })
        );
        assert_eq!(
            read(r#"{"type":"delete","table":"t","id":"ID","if_version":7.0}"#),
            Ok(Mutation::Delete {
                table: table.clone(),
                id,
                if_version: Some(7)
            })
        );
        for (version, expected) in [("null", Expected::Absent), ("7", Expected::OneOf(vec![7]))] {
            let json = format!(r#"{{"type":"check","table":"t","id":"ID","version":{version}}}"#);
            assert_eq!(
                read(&json),
                Ok(Mutation::Check {
                    table: table.clone(),
                    id,
                    expected
                })
            );
        }
    }

    #[test]
    fn what_is_expected_holds_of_what_is_there() {
        for (expected, absent, seven) in [
            (Expected::Absent, true, false),
            (Expected::Present, false, true),
            (Expected::OneOf(vec![6, 7]), false, true),
            (Expected::OneOf(vec![8]), false, false),
            (Expected::OneOf(vec![]), false, false),
        ] {
            let found = (expected.holds(None), expected.holds(Some(7)));
            assert_eq!(found, (absent, seven), "{expected:?}");
        }
    }

    #[test]
    fn what_it_writes_it_reads() {
        for json in [
            r#"{"type":"insert","table":"t","fields":{"a":1.10,"b":9007199254740993}}"#,
            r#"{"type":"insert","table":"t","id":"ID","fields":{}}"#,
            r#"{"type":"update","table":"t","id":"ID","patch":{"é":null}}"#,
            r#"{"type":"delete","table":"t","id":"ID"}"#,
            r#"{"type":"update","table":"t","id":"ID","patch":{},"if_version":7}"#,
            r#"{"type":"delete","table":"t","id":"ID","if_version":7}"#,
            r#"{"type":"check","table":"t","id":"ID","version":7}"#,
            r#"{"type":"check","table":"t","id":"ID","version":null}"#,
        ] {
            let mutation = read(json).unwrap();
            assert_eq!(mutation.to_json(), json.replace("ID", ID));
            assert_eq!(Mutation::from_json(&mutation.to_json()), Ok(mutation));
        }
    }

    #[test]
    fn rejects_members_that_are_missing_or_do_not_belong_there() {
        for json in [
            "{}",
            "[]",
            r#"["insert","t",null,{},null]"#,
            "null",
            r#"{"table":"t","fields":{}}"#,
            r#"{"type":"upsert","table":"t","fields":{}}"#,
            r#"{"type":"insert","fields":{}}"#,
            r#"{"type":"insert","table":"t"}"#,
            r#"{"type":"insert","table":"t","fields":{},"patch":{}}"#,
            r#"{"type":"insert","table":"t","fields":{},"more":1}"#,
            r#"{"type":"insert","type":"delete","table":"t","fields":{}}"#,
            r#"{"type":"update","table":"t","patch":{}}"#,
            r#"{"type":"update","table":"t","id":"ID"}"#,
            r#"{"type":"update","table":"t","id":"ID","fields":{}}"#,
            r#"{"type":"delete","table":"t"}"#,
            r#"{"type":"delete","table":"t","id":"ID","patch":{}}"#,
            // A condition that is not understood must not be passed over.
            r#"{"type":"insert","table":"t","fields":{},"if_version":1}"#,
            r#"{"type":"update","table":"t","id":"ID","patch":{},"if_version":null}"#,
            r#"{"type":"update","table":"t","id":"ID","patch":{},"if_version":"7"}"#,
            r#"{"type":"update","table":"t","id":"ID","patch":{},"if_version":0}"#,
            r#"{"type":"update","table":"t","id":"ID","patch":{},"if_version":-1}"#,
            r#"{"type":"update","table":"t","id":"ID","patch":{},"if_version":1.5}"#,
            r#"{"type":"update","table":"t","id":"ID","patch":{},"version":1}"#,
            r#"{"type":"delete","table":"t","id":"ID","if_version":[7]}"#,
            r#"{"type":"delete","table":"t","id":"ID","if_version":7,"if_version":8}"#,
            r#"{"type":"check","table":"t","id":"ID"}"#,
            r#"{"type":"check","table":"t","version":1}"#,
            r#"{"type":"check","table":"t","id":"ID","if_version":1}"#,
            r#"{"type":"check","table":"t","id":"ID","version":"*"}"#,
            r#"{"type":"check","table":"t","id":"ID","version":[1]}"#,
            r#"{"type":"check","table":"t","id":"ID","version":1,"fields":{}}"#,
        ] {
            assert!(
                matches!(read(json), Err(InputError::Mutation { .. })),
                "{json}"
            );
        }
    }

    #[test]
    fn rejects_names_ids_and_fields_as_anywhere_else() {
        assert!(matches!(
            read(r#"{"type":"insert","table":"_t","fields":{}}"#),
            Err(InputError::TableName { .. })
        ));
        assert!(matches!(
            read(r#"{"type":"insert","table":"t","fields":{},"id":"x"}"#),
            Err(InputError::DocumentId { .. })
        ));
        assert!(matches!(
            read(r#"{"type":"insert","table":"t","fields":{"_id":1}}"#),
            Err(InputError::ReservedField { .. })
        ));
        assert_eq!(
            read(r#"{"type":"update","table":"t","id":"ID","patch":[]}"#),
            Err(InputError::NotAnObject)
        );
    }
}
