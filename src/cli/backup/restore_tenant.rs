//! `nimbus backup restore --tenant-id`: one tenant, beside those that are there, through the
//! running server when there is one.

use std::sync::Arc;

use super::super::encryption::{deployment, require_deployment, stop_on_signals};
use super::super::output::{self, Format};
use super::super::remote::Remote;
use super::super::{CliError, CommandOutcome, block_on};
use super::shown;
use crate::backup::requests::RestoreRequest;
use crate::backup::restore::{Beside, RestoreTenant, RestoredTenant, instant};
use crate::backup::{BackupError, Location, Places, Repository};
use crate::clock;
use crate::config::{ProviderChoice, Settings};
use crate::deployment::Home;
use crate::pluralize::pluralize;
use crate::process::DataDirLock;
use crate::runtime::{Progress, blocking};
use crate::scheduler::DueIndex;
use crate::tenants::TenantProvider as _;
use crate::tenants::sqlite::SqliteOptions;

pub(super) fn run(
    settings: &Settings,
    from: Location,
    restore: RestoreTenant,
    progress: Progress,
) -> Result<RestoredTenant, CliError> {
    if settings.provider == ProviderChoice::Off {
        return Err(BackupError::Plaintext.into());
    }
    require_deployment(settings)?;
    let from = from.absolute()?;
    from.check_place(&Places::of(settings))?;
    match Remote::on(&settings.data_dir)? {
        Some(server) => {
            let request = RestoreRequest {
                from: Some(from),
                tenant_id: restore.tenant,
                new_id: restore.new_id,
                snapshot: restore.snapshot,
                at: restore.at_ms.map(clock::stamp_of),
                as_it_was: restore.as_it_was,
                dry_run: restore.dry_run,
            };
            server.operate("/api/admin/backups/restore", &request, &progress)
        }
        None => {
            let _lock = DataDirLock::acquire(&settings.data_dir)?;
            block_on(here(settings, &from, restore, progress))
        }
    }
}

/// From this process: no server runs.
async fn here(
    settings: &Settings,
    from: &Location,
    restore: RestoreTenant,
    progress: Progress,
) -> Result<RestoredTenant, CliError> {
    stop_on_signals()?;
    let deployment = deployment(settings).await?;
    let _locked = deployment.keep_locked().await?;
    // The next start opens no tenant to learn what it has due.
    let (record, clock) = deployment.due_record(&Home::Files);
    let due = blocking(move || DueIndex::load(record, clock)).await?;
    let options = SqliteOptions {
        due: Arc::new(due),
        ..SqliteOptions::default()
    };
    let tenants = Arc::new(deployment.tenants(options).await?);
    let beside = Beside {
        envelope: deployment.envelope.clone(),
        tenants: tenants.clone(),
        data_dir: settings.data_dir.clone(),
        control_dir: settings.control_data_dir.clone(),
    };
    let restored = match Repository::open(from, &settings.backup_s3).await {
        Ok(repository) => restore.run(&repository, &beside, progress).await,
        Err(error) => Err(error),
    };
    tenants.close().await?;
    Ok(restored?)
}

/// Prints what was done, or would be.
pub(super) fn answer(
    restored: &RestoredTenant,
    dry_run: bool,
    format: Format,
) -> Result<CommandOutcome, CliError> {
    let text = match format {
        Format::Json => serde_json::to_string_pretty(restored).map_err(std::io::Error::from)?,
        Format::Text => text(restored, dry_run),
    };
    output::answer(&text)?;
    Ok(match restored.faults.is_empty() {
        true => CommandOutcome::Done,
        false => CommandOutcome::Problems,
    })
}

fn text(restored: &RestoredTenant, dry_run: bool) -> String {
    let mut text = format!(
        "{} tenant {} of {} from {} as {}: {}, from {} of {}.\n",
        if dry_run { "Would restore" } else { "Restored" },
        restored.tenant,
        instant(restored.snapshot, &restored.taken, restored.packs),
        restored.repository,
        restored.restored_as,
        shown(restored.bytes),
        pluralize(restored.objects, "object"),
        shown(restored.read_bytes),
    );
    if !restored.later.is_empty() {
        text.push_str("Since then, by the audit log:\n");
        for line in &restored.later {
            text.push_str(&format!("  {line}\n"));
        }
    }
    for fault in &restored.faults {
        text.push_str(&format!("NOT AS IT WAS WRITTEN, or not proven: {fault}\n"));
    }
    if !dry_run {
        text.push_str(AFTERWARDS);
    }
    text
}

const AFTERWARDS: &str = "\
Every page of it was proven, and it has a data key of its own. Access keys are not part of a tenant's file: make new ones.
";
