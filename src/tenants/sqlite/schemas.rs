//! The schemas of tables, and the indexes made from them, as SQL.
//!
//! ```sql
//! -- The schemas, as canonical JSON.
//! nimbus_schemas (number INTEGER PRIMARY KEY, definition TEXT NOT NULL) -- number: of the table, as in nimbus_tables
//! -- Their indexes; each is an SQL index `nimbus_index_<slot>`. Names of users never become part of SQL text.
//! nimbus_indexes (
//!     slot       INTEGER PRIMARY KEY,
//!     number     INTEGER NOT NULL, -- of the table
//!     name       TEXT NOT NULL,    -- as the schema calls it
//!     definition TEXT NOT NULL     -- the fields and whether it is unique, as JSON
//! )
//! ```

use rusqlite::{Connection, OptionalExtension as _, params};

use super::expressions::Ordered;
use super::indexes::{Definition, Violated, index, slots};
use super::reader::Reader;
use super::rows::{malformed, one_more, take_room};
use super::sorting;
use super::transaction::SqliteTransaction;
use crate::documents::TableName;
use crate::documents::schema::{IndexRule, TableSchema};
use crate::tenants::backend::{Conflict, SchemaRows, SchemaWrites, StoredIndex, TableNumber};
use crate::tenants::{Listed, StoreError};

/// What this module adds to a tenant's file.
pub(super) const TABLES: &str = "
    CREATE TABLE nimbus_schemas (number INTEGER PRIMARY KEY, definition TEXT NOT NULL) STRICT;
    CREATE TABLE nimbus_indexes (
        slot INTEGER PRIMARY KEY,
        number INTEGER NOT NULL,
        name TEXT NOT NULL,
        definition TEXT NOT NULL
    ) STRICT;
    CREATE INDEX nimbus_indexes_by_number ON nimbus_indexes (number);";

impl SchemaRows for Reader {
    fn schema(&mut self, table: TableNumber) -> Result<Option<TableSchema>, StoreError> {
        self.on(|connection| {
            connection
                .prepare_cached("SELECT definition FROM nimbus_schemas WHERE number = ?1")?
                .query_row([table], |row| stored_schema(&row.get::<_, String>(0)?))
                .optional()
        })
    }

    fn schemas(
        &mut self,
        after: Option<&TableName>,
        limit: usize,
    ) -> Result<Listed<TableSchema>, StoreError> {
        // No name is empty.
        let after = after.map_or("", TableName::as_str);
        self.on(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT definition FROM nimbus_schemas JOIN nimbus_tables USING (number)
                 WHERE name > ?1 ORDER BY name LIMIT ?2",
            )?;
            let rows = statement.query_map(params![after, one_more(limit)], |row| {
                let definition: String = row.get(0)?;
                take_room(definition.len())?;
                stored_schema(&definition)
            })?;
            Listed::take(rows, limit, |schema| schema.to_json().len())
        })
    }

    fn all_schemas(&mut self) -> Result<Vec<TableSchema>, StoreError> {
        self.on(|connection| {
            connection
                .prepare_cached(
                    "SELECT definition FROM nimbus_schemas JOIN nimbus_tables USING (number) ORDER BY name",
                )?
                .query_map([], |row| stored_schema(&row.get::<_, String>(0)?))?
                .collect()
        })
    }
}

impl SchemaWrites for SqliteTransaction {
    fn put_schema(&mut self, table: TableNumber, schema: &TableSchema) -> Result<(), StoreError> {
        let sql = "INSERT OR REPLACE INTO nimbus_schemas VALUES (?1, ?2)";
        self.change(sql, params![table, schema.to_json()]).map(drop)
    }

    fn delete_schema(&mut self, table: TableNumber) -> Result<bool, StoreError> {
        let sql = "DELETE FROM nimbus_schemas WHERE number = ?1";
        Ok(self.change(sql, [table])? > 0)
    }

    fn indexes(&mut self, table: TableNumber) -> Result<Vec<StoredIndex>, StoreError> {
        self.on(|connection| {
            let slots = slots(connection, table)?.into_iter();
            slots
                .map(|(slot, name, definition)| {
                    let Definition { fields, unique } = Definition::from_json(&definition, 2)?;
                    Ok(StoredIndex {
                        slot,
                        name,
                        fields,
                        unique,
                    })
                })
                .collect()
        })
    }

    fn create_index(
        &mut self,
        table: TableNumber,
        rule: &IndexRule,
    ) -> Result<Result<(), Conflict>, StoreError> {
        let made = sorting::alone(self.connection(), table, rule, || {
            make_index(self.connection(), table, rule)
        });
        self.stored(made.map(|()| 1))
    }

    fn rename_index(&mut self, slot: i64, name: &str) -> Result<(), StoreError> {
        let sql = "UPDATE nimbus_indexes SET name = ?2 WHERE slot = ?1";
        self.change(sql, params![slot, name]).map(drop)
    }

    fn drop_index(&mut self, slot: i64) -> Result<(), StoreError> {
        self.on(|connection| connection.execute_batch(&format!("DROP INDEX nimbus_index_{slot}")))?;
        let sql = "DELETE FROM nimbus_indexes WHERE slot = ?1";
        self.change(sql, [slot]).map(drop)
    }
}

impl SqliteTransaction {
    /// What the rule of uniqueness is to its users.
    pub(super) fn conflict(&self, violated: Violated) -> Result<Conflict, StoreError> {
        let slot = match violated {
            Violated::Id => return Ok(Conflict::Id),
            Violated::Index(slot) => slot,
        };
        let (name, definition) = self.on(|connection| index(connection, slot))?;
        let fields = definition.fields.iter();
        Ok(Conflict::Index {
            name,
            fields: fields.map(|names| names.join(".")).collect(),
        })
    }
}

fn make_index(
    connection: &Connection,
    table: TableNumber,
    rule: &IndexRule,
) -> rusqlite::Result<()> {
    let definition = Definition::of(rule).to_json();
    let slot: i64 = connection.query_row(
        "INSERT INTO nimbus_indexes (number, name, definition) VALUES (?1, ?2, ?3) RETURNING slot",
        params![table, rule.name, definition],
        |row| row.get(0),
    )?;
    let columns: Vec<String> = rule
        .fields
        .iter()
        .map(|path| {
            let Ordered { rank, key } = Ordered::indexed(path.names());
            format!("{rank}, {key}")
        })
        .collect();
    let unique = if rule.unique { "UNIQUE " } else { "" };
    connection.execute_batch(&format!(
        "CREATE {unique}INDEX nimbus_index_{slot} ON documents_{table} ({})",
        columns.join(", ")
    ))
}

fn stored_schema(text: &str) -> rusqlite::Result<TableSchema> {
    TableSchema::from_stored(text).ok_or_else(|| malformed(0, "definition"))
}
