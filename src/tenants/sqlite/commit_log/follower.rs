//! The connection that writes to one tenant, as the log sees it.

use std::{io, sync::Arc};

use nimbus_manifests::TenantId;

use super::CommitLog;
use crate::sqlcipher::{Database, WalReader};

/// Follows the WAL of one connection that writes, alone.
#[derive(Debug)]
pub(in crate::tenants::sqlite) struct Follower {
    log: Arc<CommitLog>,
    tenant: TenantId,
    /// The data key that the database is under.
    dek_id: Option<String>,
    wal: WalReader,
}

impl Follower {
    /// Before a connection writes or checkpoints. `frames` are in its WAL; all of them were handed in by those that committed them, or are in a
    /// snapshot. `changed`: some were not, because the tables were made or brought up to date. Blocks.
    pub(in crate::tenants::sqlite) fn begin(
        log: &Arc<CommitLog>,
        tenant: &TenantId,
        database: &Database,
        frames: u32,
        changed: bool,
    ) -> Self {
        let mut follower = Self {
            log: Arc::clone(log),
            tenant: tenant.clone(),
            dek_id: database
                .manifest()
                .map(|manifest| manifest.deks()[0].id.to_string()),
            wal: WalReader::new(database.path()),
        };
        if log.is_on() {
            log.hold(tenant);
            if changed || !log.has(tenant) {
                log.begin(tenant, follower.dek_id.clone());
            }
            // Where it fails, all of the WAL is handed in with the next commit.
            let _from_the_beginning = follower.wal.skip(frames);
        }
        follower
    }

    /// After a commit, and before anybody is told: its WAL has so many frames now. Blocks.
    pub(in crate::tenants::sqlite) fn committed(&mut self, frames: u32) {
        if !self.log.is_on() {
            return;
        }
        match self.wal.advance(frames) {
            Ok(pieces) if pieces.is_empty() => {}
            Ok(pieces) => {
                if !self.log.keep(&self.tenant, pieces) {
                    // It was opened while the log began: what was committed is in the pages that are held now.
                    self.log.begin(&self.tenant, self.dek_id.clone());
                }
            }
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&self, error: &io::Error) {
        let tenant = &self.tenant;
        tracing::warn!(%tenant, %error, "the WAL of a tenant cannot be read for its backup");
        self.log.break_off(&format!(
            "the WAL of {tenant} could not be read for its backup: {error}"
        ));
    }
}
