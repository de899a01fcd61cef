//! `nimbus encryption shred`: crypto-erase of a tenant, through the running server when there is one.

use std::path::Path;
use std::sync::Arc;

use clap::Args;
use nimbus_manifests::TenantId;
use serde_json::json;

use super::super::remote::Remote;
use super::super::{CliError, CommandOutcome, block_on, output, settings};
use super::audited::deployment;
use super::require_deployment;
use crate::config::Settings;
use crate::encryption::shred::{Shredded, shred};
use crate::process::DataDirLock;
use crate::tenants::TenantProvider as _;
use crate::tenants::sqlite::SqliteOptions;

/// Erase a tenant: destroy its keys, then its files
#[derive(Debug, Args)]
#[command(after_help = "\
Example: nimbus encryption shred --tenant-id demo --yes

What copies of its files made elsewhere are still worth depends on the key that
wrapped them. The answer says so, and what is left for you to do.")]
pub(super) struct Shred {
    /// The tenant
    #[arg(long, value_name = "TENANT")]
    tenant_id: TenantId,

    /// Needed: nobody can undo it
    #[arg(long, required = true)]
    yes: bool,

    /// Disable the tenant's AWS KMS key, too, where it has one of its own (--encryption-aws-kms-key-map)
    #[arg(long)]
    disable_kms_key: bool,
}

impl Shred {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        let settings = settings(config, None)?;
        require_deployment(&settings)?;
        let shredded = match Remote::on(&settings.data_dir)? {
            Some(server) => server.operate(
                "/api/admin/encryption/shred",
                &json!({"tenant_id": self.tenant_id.as_str(), "disable_kms_key": self.disable_kms_key}),
                &(Arc::new(|_done, _total| true) as _),
            )?,
            None => {
                let _lock = DataDirLock::acquire(&settings.data_dir)?;
                block_on(here(&settings, &self.tenant_id, self.disable_kms_key))?
            }
        };
        let mut text = text(&shredded);
        if self.disable_kms_key && shredded.own_kms_key.is_none() {
            text.push_str("It had no KMS key of its own: none was disabled.\n");
        }
        output::answer(&text)?;
        Ok(CommandOutcome::Done)
    }
}

/// From this process: no server runs.
async fn here(
    settings: &Settings,
    tenant: &TenantId,
    disable_kms_key: bool,
) -> Result<Shredded, CliError> {
    let deployment = deployment(settings).await?;
    let tenants = deployment.tenants(SqliteOptions::default()).await?;
    let shredded = shred(
        &deployment.envelope,
        &tenants,
        &settings.data_dir,
        tenant,
        disable_kms_key,
    )
    .await?;
    tenants.close().await?;
    Ok(shredded)
}

fn text(shredded: &Shredded) -> String {
    let mut text = format!(
        "Tenant {} is shredded: its manifest, the copy of it, its data and every other file of its name are removed.\n",
        shredded.tenant
    );
    for key in &shredded.destroyed_keys {
        text.push_str(&format!(
            "Its key file {key} is destroyed: copies of its sidecar and data are dead, unless someone has a copy of that key.\n"
        ));
    }
    if !shredded.manifest_read {
        text.push_str(
            "Its manifest could not be read: which keys open copies of it is not known.\n",
        );
    }
    if let Some(key) = shredded.own_kms_key.as_ref().filter(|key| key.disabled) {
        let key = &key.key_id;
        text.push_str(&format!(
            "Its own KMS key {key} is disabled: copies of its sidecar and data are dead until it is enabled again. To end that for good: \
             `aws kms schedule-key-deletion --key-id {key}`.\n"
        ));
    }
    for key in &shredded.alive {
        let own = shredded.own_kms_key.as_ref();
        if own.is_some_and(|own| own.key_id == key.key_id) {
            text.push_str(&format!(
                "Copies of its sidecar and data made before still open with its own KMS key {key}. To end that: `aws kms disable-key --key-id {key}`, \
                 and for good `aws kms schedule-key-deletion --key-id {key}`.\n",
                key = key.key_id
            ));
            continue;
        }
        text.push_str(&match key.provider.as_str() {
            "age" => format!(
                "Copies of its sidecar and data made before still open with the identity of recovery recipient {}.\n",
                key.key_id
            ),
            provider => format!(
                "Copies of its sidecar and data made before still open with {provider} key {}. To end that: move all others to a \
                 new key (`nimbus encryption rotate-kek --path <data directory> --all --new-…`), then destroy this one.\n",
                key.key_id
            ),
        });
    }
    text
}
