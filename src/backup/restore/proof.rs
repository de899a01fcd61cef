//! Whether what was restored is what it must be.

use std::path::Path;

use nimbus_manifests::TenantId;
use tokio::sync::Semaphore;

use super::Dirs;
use crate::backup::BackupError;
use crate::config::ProviderChoice;
use crate::encryption::status::{FileReport, Health, StatusReader, Verify, cores};
use crate::envelope::Envelope;

/// Proves every page of files that were restored, as many at a time as there are cores.
pub(super) struct PageProver {
    reader: StatusReader,
    cores: Semaphore,
}

/// What a look at a tenant that was restored found.
pub(super) enum Proven {
    /// It is what it must be.
    Whole,
    /// Its key is not at hand; why.
    NoKey(String),
    /// It is not what it must be; why.
    Damaged(TenantId, String),
}

impl PageProver {
    /// Of what is restored into `dirs`.
    pub(super) fn new(dirs: &Dirs, envelope: &Envelope, provider: &ProviderChoice) -> Self {
        Self {
            reader: StatusReader {
                data_dir: dirs.data.clone(),
                control_dir: dirs.control.clone(),
                provider: provider.clone(),
                database: None,
                envelope: Ok(envelope.clone()),
                dek_max_age: None,
                holds_control: false,
                rolled_back: None,
            },
            cores: Semaphore::new(cores()),
        }
    }

    /// The control file.
    ///
    /// # Errors
    ///
    /// [`BackupError::Unproven`] where it is not what it must be.
    pub(super) async fn control(&self, path: &Path) -> Result<(), BackupError> {
        match self.look(path).await {
            Ok(()) => Ok(()),
            Err((health, said)) => Err(BackupError::Unproven(format!(
                "{}: {} {said}",
                name_of(path),
                health.as_str()
            ))),
        }
    }

    /// A tenant.
    pub(super) async fn tenant(&self, tenant: TenantId, path: &Path) -> Proven {
        match self.look(path).await {
            Ok(()) => Proven::Whole,
            Err((Health::KeyUnavailable, said)) => {
                Proven::NoKey(format!("{}: {said}", name_of(path)))
            }
            Err((health, said)) => Proven::Damaged(tenant, format!("{}: {said}", health.as_str())),
        }
    }

    async fn look(&self, path: &Path) -> Result<(), (Health, String)> {
        let core = self.cores.acquire().await;
        let found = self.reader.look(path, Verify::Pages).await;
        drop(core);
        match found {
            Some(FileReport {
                health: Health::Ok | Health::Rekeying,
                ..
            }) => Ok(()),
            Some(FileReport { health, detail, .. }) => Err((health, detail.unwrap_or_default())),
            None => Err((Health::DatabaseMissing, "it is not there".to_owned())),
        }
    }
}

fn name_of(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}
