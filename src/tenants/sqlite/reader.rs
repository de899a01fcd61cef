//! A connection to a tenant's file, and what it has met there.

use std::{
    collections::HashMap,
    ffi::c_int,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use nimbus_manifests::TenantId;
use rusqlite::Connection;

use super::{error::failure, plans::Plans, system_fields::Ascending, tables};
use crate::documents::TableName;
use crate::sqlcipher;
use crate::tenants::StoreError;
use crate::tenants::backend::{Rows, TableNumber};

/// A connection that reads, alone or within the writer's transaction.
#[derive(Debug)]
pub struct Reader {
    pub(super) tenant: TenantId,
    pub(super) connection: Connection,
    /// Numbers of tables that are known to exist. They never change, so a connection asks for each
    /// once.
    tables: HashMap<TableName, TableNumber>,
    pub(super) plans: Plans,
    /// What its tenant's readers found of tables.
    pub(super) ascending: Arc<Ascending>,
}

impl Reader {
    /// A connection whose file has the tables of this version.
    pub(super) fn new(
        tenant: &TenantId,
        connection: Connection,
        ascending: &Arc<Ascending>,
    ) -> Self {
        Self {
            tenant: tenant.clone(),
            connection,
            tables: HashMap::new(),
            plans: Plans::default(),
            ascending: Arc::clone(ascending),
        }
    }

    /// One of the pool's connections, with its share of memory.
    pub(super) fn pooled(
        tenant: &TenantId,
        connection: Connection,
        ascending: &Arc<Ascending>,
    ) -> Result<Self, StoreError> {
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        connection
            .pragma_update(None, "cache_size", CACHE_KIB)
            .map_err(|error| failure(tenant, error))?;
        Ok(Self::new(tenant, connection, ascending))
    }

    /// The tenant whose file it is.
    pub(super) fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// Does something on the connection; its failure is the tenant's.
    pub(super) fn on<T>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        work(&self.connection).map_err(|error| failure(&self.tenant, error))
    }

    /// Executes a statement without parameters.
    pub(super) fn execute(&self, sql: &'static str) -> Result<(), StoreError> {
        self.on(|connection| {
            let mut statement = connection.prepare_cached(sql)?;
            statement.execute([]).map(drop)
        })
    }

    /// The number of a table.
    pub(super) fn number(&mut self, table: &TableName) -> Result<Option<TableNumber>, StoreError> {
        if let Some(&number) = self.tables.get(table) {
            return Ok(Some(number));
        }
        let number = self.on(|connection| tables::table_number(connection, table))?;
        if let Some(number) = number {
            self.tables.insert(table.clone(), number);
        }
        Ok(number)
    }

    /// Forgets which tables there are: one of them may have been undone.
    pub(super) fn forget_tables(&mut self) {
        self.tables.clear();
    }
}

impl Rows for Reader {
    fn snapshot<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.execute("BEGIN")?;
        let result = read(self);
        // Nothing was changed. Where it cannot be ended, the next one cannot be begun.
        let ended = self.execute("COMMIT");
        result.and_then(|result| ended.map(|()| result))
    }

    fn confirm(&self) -> Result<(), StoreError> {
        self.on(sqlcipher::confirm)
    }

    fn stop_once(&mut self, stops: Option<[Arc<AtomicBool>; 2]>) -> Result<(), StoreError> {
        let look = stops.map(|stops| move || stops.iter().any(|stop| stop.load(Ordering::Relaxed)));
        self.connection
            .progress_handler(STEPS, look)
            .map_err(|error| failure(&self.tenant, error))
    }

    fn forget_plans(&mut self) {
        self.plans = Plans::default();
    }
}

/// Steps of SQLite's machine between two looks whether anybody waits: a fraction of a millisecond.
const STEPS: c_int = 10_000;
/// Prepared statements kept a connection.
const STATEMENTS: usize = 32;
/// Page cache of each, in KiB (negative: the unit is KiB and not pages).
const CACHE_KIB: i32 = -4096;
