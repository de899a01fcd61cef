//! The plan cache of a connection that reads. A stale entry costs speed, never correctness: the
//! writer's changes of tables and indexes clear it.

use std::{collections::HashMap, sync::Arc};

use rusqlite::{Connection, params_from_iter};

use super::{
    schemas::{self, Indexes},
    statement::Statement,
};

/// The indexes of tables, and which statements sort.
#[derive(Debug, Default)]
pub(super) struct Plans {
    indexes: HashMap<i64, Arc<Indexes>>,
    /// With the texts for the documents. Few, so that comparing is quicker than hashing texts as
    /// long as these.
    sorts: Vec<(Box<str>, bool)>,
}

impl Plans {
    /// The indexes of a table, as they are now.
    pub(super) fn indexes(
        &mut self,
        connection: &Connection,
        number: i64,
    ) -> rusqlite::Result<Arc<Indexes>> {
        if let Some(known) = self.indexes.get(&number) {
            return Ok(Arc::clone(known));
        }
        let indexes = Arc::new(schemas::indexes(connection, number)?);
        let _none = self.indexes.insert(number, Arc::clone(&indexes));
        Ok(indexes)
    }

    /// Whether SQLite sorts what a statement finds. It is asked once for each text.
    pub(super) fn sorts(
        &mut self,
        connection: &Connection,
        statement: &Statement,
    ) -> rusqlite::Result<bool> {
        let text = statement.documents();
        if let Some((_, sorts)) = self.sorts.iter().find(|(known, _)| **known == *text) {
            return Ok(*sorts);
        }
        let mut explain =
            connection.prepare(&format!("EXPLAIN QUERY PLAN {}", statement.places()))?;
        let mut steps = explain.query(params_from_iter(&statement.parameters))?;
        let mut sorts = false;
        while let Some(step) = steps.next()? {
            sorts |= step.get_ref(3)?.as_str()?.contains("TEMP B-TREE");
        }
        if self.sorts.len() >= REMEMBERED {
            self.sorts.clear();
        }
        self.sorts.push((text.into(), sorts));
        Ok(sorts)
    }
}

/// As many texts as a reader keeps statements, about.
const REMEMBERED: usize = 32;
