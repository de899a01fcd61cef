//! What operations are, and end with.

use utoipa::ToSchema;

use crate::backup::create::Created;
use crate::backup::restore::RestoredTenant;
use crate::backup::verify::Verified;
use crate::encryption::{rotate_dek, rotate_kek, shred};

#[derive(ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(in crate::server) enum OperationKind {
    RotateKek,
    RotateDek,
    Shred,
    Backup,
    Restore,
    VerifyBackups,
}

/// By the operation's kind.
#[derive(ToSchema)]
#[serde(untagged)]
pub(in crate::server) enum OperationResult {
    RotateKek(rotate_kek::Rotated),
    RotateDek(rotate_dek::Rotated),
    Shred(shred::Shredded),
    Backup(Created),
    Restore(RestoredTenant),
    VerifyBackups(Verified),
}
