//! The schemas and crons of a deploy.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;

use super::DeployError;
use crate::documents::{
    TableName,
    schedule::{Cron, CronName},
    schema::TableSchema,
};

/// What a deploy has that stands in the tenant beside its documents: at most one schema a table,
/// and one cron a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// The schemas, by table.
    pub schemas: BTreeMap<TableName, TableSchema>,
    /// The crons, by name.
    pub crons: BTreeMap<CronName, Cron>,
}

impl Resources {
    pub(super) fn read(
        schemas: &[&RawValue],
        crons: &[&RawValue],
        awaited: &dyn Fn() -> bool,
    ) -> Result<Self, DeployError> {
        let mut resources = Self::default();
        for (index, json) in schemas.iter().enumerate() {
            // Each may take a second to compile, and there may be a thousand.
            if !awaited() {
                return Err(DeployError::Abandoned);
            }
            let schema =
                TableSchema::from_json(json.get()).map_err(|error| DeployError::Schema {
                    index,
                    source: Box::new(error),
                })?;
            let table = schema.table().clone();
            // Of all schemas of a deploy, one is compiled at a time.
            let schema = schema.uncompiled();
            if resources.schemas.insert(table.clone(), schema).is_some() {
                return Err(DeployError::SameSchema { table });
            }
        }
        for (index, json) in crons.iter().enumerate() {
            let cron = Cron::from_json(json.get()).map_err(|error| DeployError::Cron {
                index,
                source: Box::new(error),
            })?;
            let name = cron.name.clone();
            if resources.crons.insert(name.clone(), cron).is_some() {
                return Err(DeployError::SameCron { name });
            }
        }
        Ok(resources)
    }

    /// The schemas as JSON text: a list, in the order of their tables.
    #[must_use]
    pub fn schemas_json(&self) -> String {
        list(self.schemas.values())
    }

    /// The crons as JSON text: a list, in the order of their names.
    #[must_use]
    pub fn crons_json(&self) -> String {
        list(self.crons.values())
    }

    /// Resources that a store gives back, of the two lists that it was given.
    ///
    /// `None` when they are none, which only damage brings about.
    #[must_use]
    pub fn from_stored(schemas: &str, crons: &str) -> Option<Self> {
        let read = |text| serde_json::from_str::<Vec<&RawValue>>(text).ok();
        let schemas = read(schemas)?.into_iter().map(|json| {
            let schema = TableSchema::from_stored(json.get())?;
            Some((schema.table().clone(), schema))
        });
        let crons = read(crons)?.into_iter().map(|json| {
            let cron = Cron::from_json(json.get()).ok()?;
            Some((cron.name.clone(), cron))
        });
        Some(Self {
            schemas: schemas.collect::<Option<_>>()?,
            crons: crons.collect::<Option<_>>()?,
        })
    }

    /// About how many bytes they occupy.
    pub(super) fn weight(&self) -> usize {
        self.schemas_json().len() + self.crons_json().len()
    }
}

fn list<'a, T: Serialize + 'a>(values: impl Iterator<Item = &'a T>) -> String {
    let values: Vec<&T> = values.collect();
    serde_json::to_string(&values).expect("schemas and crons are plain data")
}
