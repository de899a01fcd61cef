//! `nimbus backup create`: a snapshot, through the running server when there is one.

use std::path::Path;
use std::sync::Arc;

use clap::Args;

use super::super::encryption::{deployment, progress_bar, require_deployment, stop_on_signals};
use super::super::remote::Remote;
use super::super::{CliError, CommandOutcome, block_on, output, settings};
use super::shown;
use crate::backup::create::{Created, Deployment};
use crate::backup::requests::CreateBackup;
use crate::backup::{BackupError, Places};
use crate::config::{ProviderChoice, Settings};
use crate::pluralize::pluralize;
use crate::process::DataDirLock;
use crate::runtime::Progress;
use crate::tenants::TenantProvider as _;
use crate::tenants::sqlite::SqliteOptions;

/// Make a snapshot of everything at one instant: all tenants, the control file and the audit log
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nimbus backup create --to /mnt/backup/nimbus
  nimbus backup create --to s3://bucket/nimbus --tenant-id demo

The first snapshot makes the repository; each later one adds what changed. While
a server runs it makes the snapshot, and needs the credentials of the bucket.")]
pub(super) struct Create {
    #[command(flatten)]
    request: CreateBackup,
}

impl Create {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        let settings = settings(config, None)?;
        settings.tenants.require_files(
            "`nimbus backup create`",
            "pg_dump or mariadb-dump saves them, see docs/postgres.md and docs/mysql.md",
        )?;
        if settings.provider == ProviderChoice::Off {
            return Err(BackupError::Plaintext.into());
        }
        require_deployment(&settings)?;
        let request = CreateBackup {
            to: self.request.to.absolute()?,
            ..self.request
        };
        request.to.check_place(&Places::of(&settings))?;
        let (bar, progress) = progress_bar("saving");
        let created = match Remote::on(&settings.data_dir)? {
            Some(server) => server.operate("/api/admin/backups", &request, &progress),
            None => {
                let _lock = DataDirLock::acquire(&settings.data_dir)?;
                block_on(here(&settings, request, progress))
            }
        };
        bar.finish_and_clear();
        let created: Created = created?;
        output::answer(&format!(
            "Snapshot {} of {}: {}, {}; {} were added to {}.",
            created.snapshot,
            created.taken,
            pluralize(created.tenants, "tenant"),
            shown(created.bytes),
            shown(created.added),
            created.repository,
        ))?;
        for missing in &created.missing {
            output::note(&format!(
                "NOT in the snapshot: {}: {}",
                missing.tenant, missing.why
            ));
        }
        for finding in &created.findings {
            output::note(&format!("note: {finding}"));
        }
        Ok(
            match created.missing.is_empty() && created.findings.is_empty() {
                true => CommandOutcome::Done,
                false => CommandOutcome::Problems,
            },
        )
    }
}

/// From this process: no server runs.
async fn here(
    settings: &Settings,
    request: CreateBackup,
    progress: Progress,
) -> Result<Created, CliError> {
    stop_on_signals()?;
    let deployment = deployment(settings).await?;
    let tenants = Arc::new(deployment.tenants(SqliteOptions::default()).await?);
    let saved = Deployment {
        envelope: deployment.envelope.clone(),
        control: Arc::clone(&deployment.control),
        tenants: tenants.clone(),
        turn: Arc::default(),
    };
    let (to, what) = request.split();
    let created = saved.create(&to, &settings.backup_s3, what, progress).await;
    tenants.close().await?;
    Ok(created?)
}
