//! `nimbus encryption shred`: crypto-erase of a tenant, through the running server when there is
//! one.

use std::path::Path;
use std::sync::Arc;

use clap::Args;
use nimbus_manifests::TenantId;

use super::super::remote::Remote;
use super::super::{CliError, CommandOutcome, block_on, output, settings};
use super::audited::deployment;
use super::require_deployment;
use crate::backup::Location;
use crate::config::Settings;
use crate::control::ControlError;
use crate::data_dir;
use crate::deployment::Deployment;
use crate::encryption::shred::{
    Remains, Request, Shredded, Shredding, shred_everywhere, shred_row,
};
use crate::process::DataDirLock;
use crate::runtime::blocking;
use crate::tenants::TenantProvider as _;
use crate::tenants::sqlite::SqliteOptions;

/// Erase a tenant: destroy its keys, then its files
#[derive(Debug, Args)]
#[command(after_help = "\
Example: nimbus encryption shred --tenant-id demo --yes

What copies of its files made elsewhere are still worth depends on the key that
wrapped them. The answer says so, and what is left for you to do. The tenant goes
from the repository of --backup-to, too. With --from it goes from that repository,
also when it is shredded here.")]
pub(super) struct Shred {
    #[command(flatten)]
    request: Request,
}

impl Shred {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        let settings = settings(config, None)?;
        if !self.request.from.is_empty() {
            settings
                .tenants
                .require_files("`nimbus encryption shred --from`", NO_REPOSITORIES)?;
        }
        require_deployment(&settings)?;
        let mut request = self.request;
        let from = request.from.into_iter().map(Location::absolute);
        request.from = from.collect::<Result<_, _>>()?;
        let shredded: Shredded = match Remote::on(&settings.data_dir)? {
            Some(server) => server.operate(
                "/api/admin/encryption/shred",
                &request,
                &(Arc::new(|_done, _total| true) as _),
            )?,
            None => {
                let _lock = DataDirLock::acquire(&settings.data_dir)?;
                block_on(here(&settings, &request))?
            }
        };
        let mut text = text(&shredded);
        if request.disable_kms_key && shredded.own_kms_key.is_none() {
            text.push_str("It had no KMS key of its own: none was disabled.\n");
        }
        output::answer(&text)?;
        let kept = shredded.repositories.iter().any(|one| !one.kept.is_empty());
        Ok(match kept || !shredded.left.is_empty() {
            true => CommandOutcome::Problems,
            false => CommandOutcome::Done,
        })
    }
}

/// From this process: no server runs.
async fn here(settings: &Settings, request: &Request) -> Result<Shredded, CliError> {
    let deployment = deployment(settings).await?;
    if settings.tenants.database().is_some() {
        return in_database(settings, &deployment, request).await;
    }
    // Opening the tenants ends a deletion that was begun.
    let begun = begun(&deployment, settings, &request.tenant_id).await?;
    let tenants = deployment.tenants(SqliteOptions::default()).await?;
    let ships_to = settings.shipping.as_ref();
    let ships_to = ships_to.map(|shipping| shipping.to.clone().absolute());
    let ships_to = ships_to.transpose()?;
    let shredding = Shredding {
        envelope: &deployment.envelope,
        tenants: &tenants,
        dir: &settings.data_dir,
        disable_kms_key: request.disable_kms_key,
        from: &request.from,
        ships_to: ships_to.as_ref(),
        s3: &settings.backup_s3,
    };
    let shredded = shred_everywhere(shredding, &request.tenant_id, begun).await?;
    tenants.close().await?;
    Ok(shredded)
}

/// The same of a tenant in a database.
async fn in_database(
    settings: &Settings,
    deployment: &Deployment,
    request: &Request,
) -> Result<Shredded, CliError> {
    let home = deployment.home(&settings.tenants).await?;
    let tenants = deployment.tenants_in(&home, SqliteOptions::default());
    let tenants = tenants.await?;
    let Some(rows) = deployment.manifests(&home) else {
        unreachable!("tenants in a database have rows")
    };
    let (envelope, tenant) = (&deployment.envelope, &request.tenant_id);
    let shredded = shred_row(envelope, &*tenants, &rows, tenant, request.disable_kms_key).await?;
    tenants.close().await?;
    Ok(shredded)
}

/// What is there of a tenant whose deletion was begun.
async fn begun(
    deployment: &Deployment,
    settings: &Settings,
    tenant: &TenantId,
) -> Result<Option<Remains>, CliError> {
    let (control, envelope) = (deployment.control.clone(), deployment.envelope.clone());
    let (dir, tenant) = (settings.data_dir.clone(), tenant.clone());
    let begun = blocking(move || {
        let begun = control.pending_deletes()?.contains(&tenant);
        let remains = || Remains::of(&envelope, &dir, &data_dir::subject(&tenant));
        Ok::<_, ControlError>(begun.then(remains))
    });
    Ok(begun.await?)
}

fn text(shredded: &Shredded) -> String {
    let removed = match shredded.plaintext {
        true => "its data and every other file of its name are removed",
        false => {
            "its manifest, the copy of it, its data and every other file of its name are removed"
        }
    };
    let tenant = &shredded.tenant;
    let mut text = match shredded.was_here {
        true => format!("Tenant {tenant} is shredded: {removed}.\n"),
        false => format!("There is nothing of tenant {tenant} here.\n"),
    };
    for said in shredded.worth() {
        text.push_str(&said);
        text.push('\n');
    }
    text
}

/// What is done about copies where tenants are in a database.
const NO_REPOSITORIES: &str = "no repository has tenants of a database; leave --from out, and remove copies in dumps, WAL and replicas with the database's own means";
