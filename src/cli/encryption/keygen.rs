//! `nimbus encryption keygen`: a new key file, never over an old one.

use std::path::PathBuf;

use clap::Args;
use nimbus_keyproviders::{OsRandom, key_dir, keyfile};
use nimbus_manifests::{Subject, TenantId};

use super::super::{CliError, CommandOutcome, output};
use super::EncryptionError;
use crate::data_dir;

/// Make a new key file of 32 random bytes, mode 0400, never over an old one
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  nimbus encryption keygen --master-key-file /etc/nimbus/master.key
  nimbus encryption keygen --key-dir /etc/nimbus/keys --tenant-id demo
  nimbus encryption keygen --key-dir /etc/nimbus/keys \\
      --subject db:redb:control:nimbus-control.db"
)]
pub(super) struct Keygen {
    /// Where to write a master key
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "key_dir",
        conflicts_with = "key_dir"
    )]
    master_key_file: Option<PathBuf>,

    /// Directory of one key file a subject
    #[arg(long, value_name = "DIR", requires = "whose")]
    key_dir: Option<PathBuf>,

    /// Whose key it is, as a subject
    #[arg(
        long,
        value_name = "SUBJECT",
        group = "whose",
        conflicts_with = "master_key_file"
    )]
    subject: Option<Subject>,

    /// Whose key it is: a tenant, for <tenant>.sqlite3
    #[arg(
        long,
        value_name = "TENANT",
        group = "whose",
        conflicts_with = "master_key_file"
    )]
    tenant_id: Option<TenantId>,
}

impl Keygen {
    pub(super) fn run(self) -> Result<CommandOutcome, CliError> {
        let path = match (
            self.master_key_file,
            self.key_dir,
            self.subject,
            self.tenant_id,
        ) {
            (Some(path), ..) => path,
            (None, Some(dir), Some(subject), _) => key_dir::path_for(&dir, &subject),
            (None, Some(dir), None, Some(tenant)) => {
                key_dir::path_for(&dir, &data_dir::subject(&tenant))
            }
            _ => unreachable!("clap asks for one of the two, and for whose key it is"),
        };
        let key = keyfile::generate_new(&path, &OsRandom).map_err(EncryptionError::from)?;
        output::answer(&format!("{}  {}", key.id(), path.display()))?;
        output::note(
            "Back this key up, apart from the data: without it nothing it wraps can be read again.",
        );
        Ok(CommandOutcome::Done)
    }
}
