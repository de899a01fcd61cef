//! Changes to documents, as data.

use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap as _};
use serde_json::value::RawValue;

use super::{Change, DocumentId, Fields, InputError, TableName, written};

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
    },
    /// Removes a document.
    Delete {
        /// Where the document is.
        table: TableName,
        /// Which document.
        id: DocumentId,
    },
}

impl Mutation {
    /// Reads a mutation as clients write it:
    ///
    /// ```json
    /// {"type": "insert", "table": "places", "fields": {}, "id": "…"}
    /// {"type": "update", "table": "places", "id": "…", "patch": {}}
    /// {"type": "delete", "table": "places", "id": "…"}
    /// ```
    ///
    /// The `id` of an insert may be left out. Anything else that is missing, or does not belong there, is refused.
    pub fn from_json(text: &str) -> Result<Self, InputError> {
        let written: Written<'_> =
            written::object(text).map_err(|reason| InputError::Mutation { reason })?;
        written.mutation()
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
        };
        size_of::<Self>() + fields
    }
}

impl Serialize for Mutation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (kind, table) = match self {
            Self::Insert { table, .. } => ("insert", table),
            Self::Update { table, .. } => ("update", table),
            Self::Delete { table, .. } => ("delete", table),
        };
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("type", kind)?;
        map.serialize_entry("table", table)?;
        match self {
            Self::Insert { fields, id, .. } => {
                if let Some(id) = id {
                    map.serialize_entry("id", id)?;
                }
                map.serialize_entry("fields", fields)?;
            }
            Self::Update { id, patch, .. } => {
                map.serialize_entry("id", id)?;
                map.serialize_entry("patch", patch)?;
            }
            Self::Delete { id, .. } => map.serialize_entry("id", id)?,
        }
        map.end()
    }
}

/// What a mutation that was applied did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MutationOutcome {
    /// A document was added.
    Inserted {
        /// Its id.
        id: DocumentId,
    },
    /// A document was changed.
    Updated {
        /// Its id.
        id: DocumentId,
    },
    /// A document was removed.
    Deleted {
        /// Its id.
        id: DocumentId,
    },
}

impl MutationOutcome {
    /// What was done to the document, as the journal has it.
    #[must_use]
    pub fn change(&self) -> Change {
        match self {
            Self::Inserted { .. } => Change::Inserted,
            Self::Updated { .. } => Change::Updated,
            Self::Deleted { .. } => Change::Deleted,
        }
    }

    /// The document that was added, changed or removed.
    #[must_use]
    pub fn id(&self) -> DocumentId {
        match *self {
            Self::Inserted { id } | Self::Updated { id } | Self::Deleted { id } => id,
        }
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
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Insert,
    Update,
    Delete,
}

impl Written<'_> {
    fn mutation(self) -> Result<Mutation, InputError> {
        let Self {
            kind,
            table,
            id,
            fields,
            patch,
        } = self;
        let table = table.parse()?;
        let id = id.map(|id| id.parse()).transpose()?;
        let json = |raw: &RawValue| Fields::from_json(raw.get());
        Ok(match (kind, id, fields, patch) {
            (Kind::Insert, id, Some(fields), None) => Mutation::Insert {
                table,
                fields: json(fields)?,
                id,
            },
            (Kind::Update, Some(id), None, Some(patch)) => Mutation::Update {
                table,
                id,
                patch: json(patch)?,
            },
            (Kind::Delete, Some(id), None, None) => Mutation::Delete { table, id },
            (kind, ..) => {
                let takes = match kind {
                    Kind::Insert => {
                        "an insert takes \"table\", \"fields\" and, if you choose it, \"id\""
                    }
                    Kind::Update => "an update takes \"table\", \"id\" and \"patch\"",
                    Kind::Delete => "a delete takes \"table\" and \"id\"",
                };
                return Err(InputError::Mutation {
                    reason: takes.to_owned(),
                });
            }
        })
    }
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
                patch: fields.clone()
            })
        );
        assert_eq!(
            read(r#"{"type":"delete","table":"t","id":"ID"}"#),
            Ok(Mutation::Delete { table, id })
        );
    }

    #[test]
    fn what_it_writes_it_reads() {
        for json in [
            r#"{"type":"insert","table":"t","fields":{"a":1.10,"b":9007199254740993}}"#,
            r#"{"type":"insert","table":"t","id":"ID","fields":{}}"#,
            r#"{"type":"update","table":"t","id":"ID","patch":{"é":null}}"#,
            r#"{"type":"delete","table":"t","id":"ID"}"#,
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
