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
    /// Before a connection writes or checkpoints. `changed`: the tables were just made or brought
    /// up to date, by who does not follow. What else stands in the WAL is handed in once more with
    /// the first commit. Blocks.
    pub(in crate::tenants::sqlite) fn begin(
        log: &Arc<CommitLog>,
        tenant: &TenantId,
        database: &Database,
        changed: bool,
    ) -> Self {
        let follower = Self {
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
        }
        follower
    }

    /// After a commit, before it is acknowledged: its WAL has so many frames now. Blocks.
    pub(in crate::tenants::sqlite) fn committed(&mut self, frames: u32) {
        if !self.log.is_on() {
            return;
        }
        match self.wal.advance(frames) {
            Ok(pieces) if pieces.is_empty() => {}
            Ok(pieces) => {
                if !self.log.keep(&self.tenant, pieces) {
                    // It was opened while the log began: what was committed is in the pages that
                    // are held now.
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
