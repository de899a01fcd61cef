//! Full lists, part by part: for tests.

use super::{StoreError, TenantStore};
use crate::documents::query::{MAX_PAGE, Query};
use crate::documents::schedule::{CronState, Job, JobPlace};
use crate::documents::schema::TableSchema;
use crate::documents::{Document, TableName};

/// Lists of a store from their first item to their last.
pub(crate) trait FullList {
    /// The first documents of a table.
    async fn list(&self, table: &TableName, limit: usize) -> Result<Vec<Document>, StoreError>;
    /// All jobs that wait.
    async fn jobs(&self) -> Result<Vec<Job>, StoreError>;
    /// All crons.
    async fn crons(&self) -> Result<Vec<CronState>, StoreError>;
    /// All schemas.
    async fn schemas(&self) -> Result<Vec<TableSchema>, StoreError>;
}

impl FullList for dyn TenantStore {
    async fn list(&self, table: &TableName, limit: usize) -> Result<Vec<Document>, StoreError> {
        let query = Query::all(table.clone());
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let size = (limit - all.len()).min(MAX_PAGE);
            let page = self.query_page(query.clone(), after, size).await?;
            all.extend(page.documents);
            after = page.next;
            if after.is_none() || all.len() == limit {
                return Ok(all);
            }
        }
    }

    async fn jobs(&self) -> Result<Vec<Job>, StoreError> {
        let mut all: Vec<Job> = Vec::new();
        loop {
            let after = all.last().map(JobPlace::of);
            let part = self.list_jobs(after, FEW).await?;
            all.extend(part.items);
            if !part.more {
                return Ok(all);
            }
        }
    }

    async fn crons(&self) -> Result<Vec<CronState>, StoreError> {
        let mut all: Vec<CronState> = Vec::new();
        loop {
            let after = all.last().map(|last| last.cron.name.clone());
            let part = self.list_crons(after, FEW).await?;
            all.extend(part.items);
            if !part.more {
                return Ok(all);
            }
        }
    }

    async fn schemas(&self) -> Result<Vec<TableSchema>, StoreError> {
        let mut all: Vec<TableSchema> = Vec::new();
        loop {
            let after = all.last().map(|last| last.table().clone());
            let part = self.list_schemas(after, FEW).await?;
            all.extend(part.items);
            if !part.more {
                return Ok(all);
            }
        }
    }
}

/// So few that lists of tests have several parts.
const FEW: usize = 7;
