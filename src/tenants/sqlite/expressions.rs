//! A field of a document in SQL, as an index holds it and a query asks for it: SQLite uses an
//! expression index where both are the same text. So the path stands in it as a literal.
//!
//! A field is two columns of an index: the rank of its type, and its key, the value where types
//! have several. Types are kept apart by the rank (`json_extract` gives 1 for `true` too), and
//! within one SQLite compares keys as `docs/queries.md` says. Both together are its order.

use crate::documents::query::TypeRank;

/// A field in SQL, for order and for indexes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ordered {
    /// The rank of its type.
    pub(super) rank: String,
    /// Its value; NULL where there is but one of its type. A unique index does not compare NULLs.
    pub(super) key: String,
}

impl Ordered {
    /// The field that this path leads to, as an index has it.
    pub(super) fn indexed(names: &[String]) -> Self {
        let path = literal(&path(names));
        Self::of(
            &format!("json_type(fields, {path})"),
            &format!("fields ->> {path}"),
        )
    }

    /// A field whose type, as `json_type` names it, and whose value are given by these expressions.
    pub(super) fn of(kind: &str, value: &str) -> Self {
        let missing = TypeRank::Missing.number();
        let null = TypeRank::Null.number();
        let boolean = TypeRank::Boolean.number();
        let number = TypeRank::Number.number();
        let string = TypeRank::String.number();
        let list = TypeRank::List.number();
        let object = TypeRank::Object.number();
        Self {
            rank: format!(
                "CASE {kind} WHEN 'null' THEN {null} WHEN 'true' THEN {boolean} WHEN 'false' THEN {boolean} \
                 WHEN 'integer' THEN {number} WHEN 'real' THEN {number} WHEN 'text' THEN {string} \
                 WHEN 'array' THEN {list} WHEN 'object' THEN {object} ELSE {missing} END"
            ),
            key: format!(
                "CASE WHEN {kind} IN ('true', 'false', 'integer', 'real', 'text') THEN {value} END"
            ),
        }
    }
}

/// A path as SQLite's functions take it: every name in quotes, escaped as in JSON.
pub(super) fn path(names: &[String]) -> String {
    let mut path = String::from("$");
    for name in names {
        path.push('.');
        path.push_str(&serde_json::Value::from(name.as_str()).to_string());
    }
    path
}

/// Text as a literal of SQL. A path has no U+0000 in it, which would end the statement.
fn literal(text: &str) -> String {
    debug_assert!(!text.contains('\0'), "{text:?}");
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rusqlite::{Connection, config::DbConfig};

    use super::*;

    proptest! {
        #[test]
        fn any_path_is_the_literal_that_it_is_as_a_parameter(
            names in prop::collection::vec("[^\0]{1,12}|['\"\\\\$.;%\u{1}-\u{1f}\u{7f}-]{1,6}", 1..4)
        ) {
            let path = path(&names);
            let connection = in_memory();
            let (given, taken): (String, String) = connection
                .query_row(&format!("SELECT ?1, {}", literal(&path)), [&path], |row| Ok((row.get(0)?, row.get(1)?)))
                .unwrap();
            prop_assert_eq!(&given, &path);
            prop_assert_eq!(&taken, &path);
        }

        #[test]
        fn any_path_makes_an_index_and_the_index_finds_what_is_there(
            names in prop::collection::vec("[^\0.]{1,8}|['\"\\\\$;\u{1}-\u{1f}-]{1,6}", 1..4)
        ) {
            let mut document = serde_json::Value::from(7);
            for name in names.iter().rev() {
                document = serde_json::json!({ name: document });
            }
            let connection = in_memory();
            let Ordered { rank, key } = Ordered::indexed(&names);
            connection
                .execute_batch(&format!(
                    "CREATE TABLE t (seq INTEGER PRIMARY KEY, fields BLOB) STRICT; CREATE INDEX i ON t ({rank}, {key})"
                ))
                .unwrap();
            connection
                .execute("INSERT INTO t VALUES (1, jsonb(?1))", [document.to_string()])
                .unwrap();
            let sql = format!("SELECT {rank}, {key} FROM t INDEXED BY i WHERE {rank} = 3 AND {key} = 7");
            let found: (i64, i64) = connection
                .query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?)))
                .unwrap();
            prop_assert_eq!(found, (TypeRank::Number.number(), 7));
        }
    }

    /// As strict as the tenants' connections are.
    fn in_memory() -> Connection {
        #[expect(clippy::disallowed_methods, reason = "no file is opened")]
        let connection = Connection::open_in_memory().unwrap();
        connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)
            .unwrap();
        connection
    }
}
