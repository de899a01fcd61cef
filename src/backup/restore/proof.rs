//! Whether what was restored is what it must be.

use super::Dirs;
use crate::backup::BackupError;
use crate::config::ProviderChoice;
use crate::encryption::status::{Health, StatusReader, Verify};
use crate::envelope::Envelope;

/// Proves every page of what stands in `dirs`. Answers the tenants whose keys are not at hand.
pub(super) async fn prove(
    dirs: &Dirs,
    envelope: &Envelope,
    provider: &ProviderChoice,
) -> Result<Vec<String>, BackupError> {
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
    let mut unproven = Vec::new();
    for file in status.files {
        let said = file.detail.unwrap_or_default();
        match file.health {
            Health::Ok | Health::Rekeying => {}
            Health::KeyUnavailable => unproven.push(format!("{}: {said}", file.path)),
            health => {
                return Err(BackupError::Unproven(format!(
                    "{}: {} {said}",
                    file.path,
                    health.as_str()
                )));
            }
        }
    }
    Ok(unproven)
}
