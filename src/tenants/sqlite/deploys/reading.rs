//! What readers see of deploys.

use std::ops::Range;

use nimbus_manifests::TenantId;
use rusqlite::{Connection, Row};

use super::{active, contents};
use crate::{
    documents::deploy::{AppFile, AppPath, ContentHash, Generation, Generations},
    tenants::{
        StoreError,
        sqlite::{apply::Reader, failure},
    },
};

impl Reader {
    /// The generations that are kept.
    pub(in crate::tenants::sqlite) fn generations(
        &mut self,
        tenant: &TenantId,
    ) -> Result<Generations, StoreError> {
        self.snapshot()
            .and_then(|snapshot| {
                Ok(Generations {
                    active: active(&snapshot)?,
                    generations: generations(&snapshot)?,
                })
            })
            .map_err(|error| failure(tenant, error))
    }

    /// A file of the active generation.
    pub(in crate::tenants::sqlite) fn app_file(
        &mut self,
        tenant: &TenantId,
        path: &AppPath,
    ) -> Result<AppFile, StoreError> {
        self.snapshot()
            .and_then(|snapshot| contents::find(&snapshot, path))
            .map_err(|error| failure(tenant, error))?
            .ok_or_else(|| StoreError::FileNotFound { path: path.clone() })
    }

    /// Part of a file's content.
    pub(in crate::tenants::sqlite) fn app_content(
        &mut self,
        tenant: &TenantId,
        hash: ContentHash,
        range: Range<u64>,
    ) -> Result<Vec<u8>, StoreError> {
        let length = range.end.saturating_sub(range.start);
        let bytes = self
            .snapshot()
            .and_then(|snapshot| contents::read(&snapshot, hash, range))
            .map_err(|error| failure(tenant, error))?;
        if bytes.len() as u64 == length {
            Ok(bytes)
        } else {
            Err(StoreError::ContentGone { hash })
        }
    }
}

fn generations(connection: &Connection) -> rusqlite::Result<Vec<Generation>> {
    connection
        .prepare_cached(
            "SELECT generation, name, created, schemas, crons, files, bytes
             FROM nimbus_generations ORDER BY generation DESC",
        )?
        .query_map([], stored_generation)?
        .collect()
}

fn stored_generation(row: &Row<'_>) -> rusqlite::Result<Generation> {
    Ok(Generation {
        generation: row.get(0)?,
        name: row.get(1)?,
        created_at: row.get(2)?,
        schemas: row.get(3)?,
        crons: row.get(4)?,
        files: row.get(5)?,
        bytes: row.get(6)?,
    })
}
