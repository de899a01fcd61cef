//! `nimbus encryption lock` and `unlock`, through the running server when there is one.

use std::path::Path;
use std::time::Duration;

use clap::Args;
use nimbus_manifests::TenantId;

use super::super::remote::Remote;
use super::super::{CliError, CommandOutcome, block_on, output, settings};
use super::audited::deployment;
use super::require_deployment;
use crate::config::Settings;
use crate::encryption::lock::{self, Request, TenantLock};
use crate::process::DataDirLock;
use crate::tenants::sqlite::SqliteOptions;

/// Close a tenant, wipe its key, and refuse to open it until it is unlocked
#[derive(Debug, Args)]
#[command(after_help = "\
Example: nimbus encryption lock --tenant-id demo

Its requests are answered 503 encryption.key_revoked, over restarts, too.
Nothing of the tenant is changed. With no server running, the lock is recorded
for the next start.")]
pub(super) struct Lock {
    #[command(flatten)]
    request: Request,
}

/// End a lock
#[derive(Debug, Args)]
#[command(after_help = "Example: nimbus encryption unlock --tenant-id demo")]
pub(super) struct Unlock {
    #[command(flatten)]
    request: Request,
}

impl Lock {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        let lock = set(config, &self.request, true)?;
        let tenant = lock.tenant_id;
        output::answer(&if lock.changed {
            format!(
                "Tenant {tenant} is locked. `nimbus encryption unlock --tenant-id {tenant}` ends that.\n"
            )
        } else {
            format!("Tenant {tenant} was locked already.\n")
        })?;
        Ok(CommandOutcome::Done)
    }
}

impl Unlock {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        let lock = set(config, &self.request, false)?;
        let tenant = lock.tenant_id;
        output::answer(&if lock.changed {
            format!("Tenant {tenant} is unlocked; the next request opens it.\n")
        } else {
            format!("Tenant {tenant} was not locked.\n")
        })?;
        Ok(CommandOutcome::Done)
    }
}

fn set(config: Option<&Path>, request: &Request, locked: bool) -> Result<TenantLock, CliError> {
    let settings = settings(config, None)?;
    require_deployment(&settings)?;
    match Remote::on(&settings.data_dir)? {
        Some(server) => {
            let verb = if locked { "lock" } else { "unlock" };
            let path = format!("/api/admin/encryption/{verb}");
            server.post(&path, request, PATIENCE)
        }
        None => {
            let _lock = DataDirLock::acquire(&settings.data_dir)?;
            block_on(here(&settings, &request.tenant_id, locked))
        }
    }
}

/// From this process: no server runs.
async fn here(
    settings: &Settings,
    tenant: &TenantId,
    locked: bool,
) -> Result<TenantLock, CliError> {
    let deployment = deployment(settings).await?;
    let home = deployment.home(&settings.tenants).await?;
    let tenants = deployment
        .tenants_in(&home, SqliteOptions::default())
        .await?;
    let (envelope, control) = (&deployment.envelope, &deployment.control);
    let lock = lock::set(envelope, control, &*tenants, tenant, locked).await?;
    tenants.close().await?;
    Ok(lock)
}

/// Closing a tenant waits for what it is doing.
const PATIENCE: Duration = Duration::from_secs(60);
