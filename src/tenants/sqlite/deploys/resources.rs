//! Schemas and crons of a generation, put where those of the tenant are.

use std::collections::BTreeMap;

use nimbus_manifests::TenantId;
use rusqlite::{Connection, OptionalExtension as _};

use crate::{
    documents::{
        TableName,
        deploy::{Changes, Plan, Resources},
        schedule::{Cron, CronName, Origin},
        schema::TableSchema,
    },
    tenants::{
        StoreError,
        sqlite::{
            apply::{Reader, Writing, malformed, now_ms},
            failure, schedule,
            schemas::{self, Scanned},
        },
    },
};

/// What is known of tables whose documents were looked at before the writer's turn.
pub(in crate::tenants::sqlite) type Scans = BTreeMap<TableName, Scanned>;

impl Writing<'_> {
    /// Makes the schemas and crons those of a deploy that takes the place of the generation `previous`; what is different then.
    pub(super) fn establish(
        &mut self,
        previous: Option<i64>,
        wanted: &Resources,
        scans: &Scans,
    ) -> Result<(Changes, Changes), StoreError> {
        let last = match previous {
            Some(previous) => self.on_file(|connection| of(connection, previous))?,
            None => None,
        };
        let last = last.unwrap_or_default();
        let schemas = self.establish_schemas(&last.schemas, &wanted.schemas, scans)?;
        let crons = self.establish_crons(&wanted.crons)?;
        Ok((schemas, crons))
    }

    fn establish_schemas(
        &mut self,
        last: &BTreeMap<TableName, TableSchema>,
        wanted: &BTreeMap<TableName, TableSchema>,
        scans: &Scans,
    ) -> Result<Changes, StoreError> {
        let standing = self.on_file(schemas::all)?;
        let standing = standing
            .into_iter()
            .map(|schema| (schema.table().clone(), schema))
            .collect();
        let plan = Plan::new(&standing, last, wanted);
        for table in &plan.delete {
            self.delete_schema(table)?;
        }
        for schema in &plan.put {
            self.put_scanned(schema, scans.get(schema.table()).copied())?;
        }
        Ok(plan.changes)
    }

    /// Crons know themselves whether they are of a deploy.
    fn establish_crons(
        &mut self,
        wanted: &BTreeMap<CronName, Cron>,
    ) -> Result<Changes, StoreError> {
        let standing = self.on_file(schedule::crons)?;
        let ours = standing
            .into_iter()
            .filter(|state| state.origin == Origin::Deploy)
            .map(|state| (state.cron.name.clone(), state.cron));
        let changes = Changes::between(&ours.collect(), wanted);
        let crons: Vec<Cron> = wanted.values().cloned().collect();
        self.replace_crons(&crons, now_ms())?;
        Ok(changes)
    }
}

impl Reader {
    /// Looks through the tables of schemas for documents that do not fit: the writer has only those left to look at that were
    /// written meanwhile.
    pub(in crate::tenants::sqlite) fn scan_all(
        &mut self,
        tenant: &TenantId,
        resources: &Resources,
    ) -> Result<Scans, StoreError> {
        let schemas = resources.schemas.values();
        schemas
            .map(|schema| Ok((schema.table().clone(), self.scan(tenant, schema)?)))
            .collect()
    }

    /// The schemas and crons of a generation that is kept.
    pub(in crate::tenants::sqlite) fn resources(
        &mut self,
        tenant: &TenantId,
        generation: i64,
    ) -> Result<Resources, StoreError> {
        self.snapshot()
            .and_then(|snapshot| of(&snapshot, generation))
            .map_err(|error| failure(tenant, error))?
            .ok_or(StoreError::GenerationNotFound { generation })
    }
}

/// The schemas and crons of a generation that is kept.
pub(super) fn of(connection: &Connection, generation: i64) -> rusqlite::Result<Option<Resources>> {
    connection
        .prepare_cached(
            "SELECT schema_list, cron_list FROM nimbus_generations WHERE generation = ?1",
        )?
        .query_row([generation], |row| {
            let (schemas, crons): (String, String) = (row.get(0)?, row.get(1)?);
            Resources::from_stored(&schemas, &crons).ok_or_else(|| malformed(0, "schema_list"))
        })
        .optional()
}
