//! A document as a store returns it.

use std::fmt::Write as _;

use super::{DocumentId, Fields};

/// A stored document: the user's fields and what the server keeps beside them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its identity (`_id`).
    pub id: DocumentId,
    /// When it was inserted (`_creationTime`), in milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// When it was last changed (`_updateTime`), in milliseconds since the Unix epoch; never
    /// before `created_ms`.
    pub updated_ms: i64,
    /// The number of the write that wrote it last (`_version`), as the journal counts.
    pub version: i64,
    /// The user's fields.
    pub fields: Fields,
}

impl Document {
    /// Appends the document as one JSON object: `_id`, `_creationTime`, `_updateTime` and
    /// `_version`, then the user's fields.
    ///
    /// The stored text is spliced in as it is; nothing is parsed.
    pub fn write_json(&self, out: &mut String) {
        let Self {
            id,
            created_ms,
            updated_ms,
            version,
            fields,
        } = self;
        let members = &fields.as_json()[1..];
        out.reserve(HEAD_BYTES + members.len());
        write!(
            out,
            r#"{{"_id":"{id}","_creationTime":{created_ms},"_updateTime":{updated_ms},"_version":{version}"#
        )
        .expect("a String takes every write");
        if members != "}" {
            out.push(',');
        }
        out.push_str(members);
    }

    /// About how many bytes it occupies, and will as JSON.
    #[must_use]
    pub fn weight(&self) -> usize {
        HEAD_BYTES + self.fields.as_json().len()
    }

    /// The document as one JSON object, see [`Document::write_json`].
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut out = String::new();
        self.write_json(&mut out);
        out
    }
}

/// Room for the server's own members.
const HEAD_BYTES: usize = 160;

#[cfg(test)]
mod tests {
    use super::*;

    fn document(fields: &str) -> Document {
        Document {
            id: "017f22e2-79b0-7cc3-98c4-dc0c0c07398f".parse().unwrap(),
            created_ms: 1,
            updated_ms: 2,
            version: 3,
            fields: Fields::from_json(fields).unwrap(),
        }
    }

    #[test]
    fn splices_the_stored_text() {
        assert_eq!(
            document(r#"{"a":1.10,"ü":{"_x":[]}}"#).to_json(),
            r#"{"_id":"017f22e2-79b0-7cc3-98c4-dc0c0c07398f","_creationTime":1,"_updateTime":2,"_version":3,"a":1.10,"ü":{"_x":[]}}"#
        );
    }

    #[test]
    fn an_empty_document_is_an_object_too() {
        assert_eq!(
            document("{ }").to_json(),
            r#"{"_id":"017f22e2-79b0-7cc3-98c4-dc0c0c07398f","_creationTime":1,"_updateTime":2,"_version":3}"#
        );
    }
}
