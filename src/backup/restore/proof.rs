//! Whether what was restored is what it must be.

use nimbus_manifests::TenantId;

use super::Dirs;
use crate::backup::BackupError;
use crate::config::ProviderChoice;
use crate::data_dir;
use crate::encryption::status::{Health, StatusReader, Verify};
use crate::envelope::Envelope;

/// What a look at what was restored found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Files whose keys are not at hand, and why.
    pub(super) unproven: Vec<String>,
    /// Tenants that are not what they must be, and why.
    pub(super) damaged: Vec<(TenantId, String)>,
}

/// Proves every page of what stands in `dirs`.
///
/// # Errors
///
/// [`BackupError::Unproven`] where the control file is not what it must be.
pub(super) async fn prove(
    dirs: &Dirs,
    envelope: &Envelope,
    provider: &ProviderChoice,
) -> Result<Found, BackupError> {
    let reader = StatusReader {
        data_dir: dirs.data.clone(),
        control_dir: dirs.control.clone(),
        provider: provider.clone(),
        database: None,
        envelope: Ok(envelope.clone()),
        dek_max_age: None,
        holds_control: false,
        rolled_back: None,
    };
    let status = reader.run(Some(Verify::Pages)).await?;
    let mut found = Found::default();
    for file in status.files {
        let said = file.detail.unwrap_or_default();
        match (file.health, data_dir::tenant_of_database(&file.path)) {
            (Health::Ok | Health::Rekeying, _) => {}
            (Health::KeyUnavailable, _) => found.unproven.push(format!("{}: {said}", file.path)),
            (health, Some(tenant)) => found
                .damaged
                .push((tenant, format!("{}: {said}", health.as_str()))),
            (health, None) => {
                return Err(BackupError::Unproven(format!(
                    "{}: {} {said}",
                    file.path,
                    health.as_str()
                )));
            }
        }
    }
    Ok(found)
}
