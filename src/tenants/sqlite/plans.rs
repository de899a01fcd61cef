//! The plan cache of a connection that reads. A stale entry costs speed, never correctness: the
//! writer's changes of tables and indexes clear it.

use std::{collections::HashMap, sync::Arc};

use rusqlite::{Connection, params_from_iter};

use super::indexes::{self, Indexes};
use super::statement::Statement;

/// The indexes of tables, and how SQLite goes about statements.
#[derive(Debug, Default)]
pub(super) struct Plans {
    indexes: HashMap<i64, Arc<Indexes>>,
    /// With the texts for the documents. Few, so that comparing is quicker than hashing texts as
    /// long as these.
    plans: Vec<(Box<str>, Plan)>,
}

/// How SQLite goes about a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// It sorts what it finds.
    pub(super) sorts: bool,
    /// It may look at every document of the table, and not only at those that it returns.
    pub(super) scans: bool,
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
        let indexes = Arc::new(indexes::indexes(connection, number)?);
        self.indexes.insert(number, Arc::clone(&indexes));
        Ok(indexes)
    }

    /// How SQLite goes about a statement. It is asked once for each text.
    pub(super) fn plan(
        &mut self,
        connection: &Connection,
        statement: &Statement,
    ) -> rusqlite::Result<Plan> {
        let text = statement.documents();
        if let Some((_, plan)) = self.plans.iter().find(|(known, _)| **known == *text) {
            return Ok(*plan);
        }
        let mut explain =
            connection.prepare(&format!("EXPLAIN QUERY PLAN {}", statement.places()))?;
        let mut steps = explain.query(params_from_iter(&statement.parameters))?;
        let (mut sorts, mut walks) = (false, false);
        while let Some(step) = steps.next()? {
            let step = step.get_ref(3)?.as_str()?;
            sorts |= step.contains("TEMP B-TREE");
            walks |= step.starts_with("SCAN documents_");
        }
        // What is neither filtered nor sorted is returned as it is met.
        let scans = walks && (sorts || statement.is_filtered);
        let plan = Plan { sorts, scans };
        if self.plans.len() >= REMEMBERED {
            self.plans.clear();
        }
        self.plans.push((text.into(), plan));
        Ok(plan)
    }
}

/// As many texts as a reader keeps statements, about.
const REMEMBERED: usize = 32;
