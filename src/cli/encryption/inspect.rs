//! `nimbus encryption inspect`: one manifest, read without any key.

use std::path::{Path, PathBuf};

use clap::Args;
use nimbus_manifests::{Manifest, SUFFIX, SealedManifest};
use serde_json::{Value, json};

use super::super::output::{self, Format};
use super::super::{CliError, CommandOutcome};
use super::EncryptionError;
use crate::envelope::{ReadError, manifest_path, read_manifest};

/// Read one manifest, without any key
#[derive(Debug, Args)]
#[command(after_help = "\
Example: nimbus encryption inspect data/demo.sqlite3.nimbus-enc
Nothing is verified: `nimbus encryption status --verify unwrap` does that, with the keys.")]
pub(super) struct Inspect {
    /// The manifest, or the file that it stands beside
    file: PathBuf,

    /// Form of the answer
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// Why a manifest was not shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    /// There is none.
    #[error("there is no manifest at {}; put it back with `nimbus encryption repair`, or from a backup", .path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// Neither a file nor a manifest of one.
    #[error("{} is neither a protected file nor a manifest; `nimbus encryption status` lists those that there are", .path.display())]
    NotThere {
        /// What was named.
        path: PathBuf,
    },
    /// It is not canonical, or cannot be read.
    #[error("the manifest {} cannot be read; put it back with `nimbus encryption repair`, or from a backup", .path.display())]
    Unreadable {
        /// The manifest.
        path: PathBuf,
        /// The line and the rule it breaks.
        source: ReadError,
    },
}

impl Inspect {
    pub(super) fn run(self) -> Result<CommandOutcome, CliError> {
        let sealed = read(&self.file).map_err(EncryptionError::from)?;
        let manifest = sealed.claims();
        match self.format {
            Format::Text => output::answer(&text(manifest))?,
            Format::Json => output::answer(&format!("{:#}", as_json(manifest)))?,
        }
        Ok(CommandOutcome::Done)
    }
}

fn read(file: &Path) -> Result<SealedManifest, InspectError> {
    let named = file.to_str().is_some_and(|name| name.ends_with(SUFFIX));
    let path = if named {
        file.to_owned()
    } else {
        manifest_path(file)
    };
    match read_manifest(&path) {
        Ok(Some(sealed)) => Ok(sealed),
        Ok(None) if file.is_file() => Err(InspectError::Missing { path }),
        Ok(None) => Err(InspectError::NotThere {
            path: file.to_owned(),
        }),
        Err(source) => Err(InspectError::Unreadable { path, source }),
    }
}

fn text(manifest: &Manifest) -> String {
    let mut text = format!(
        "subject    {}\nfile id    {}\ncipher     {}\nstate      {}\nrevision   {}\ncreated    {}\n",
        manifest.subject(),
        manifest.file_id(),
        manifest.cipher(),
        manifest.state(),
        manifest.revision(),
        manifest.created(),
    );
    for dek in manifest.deks() {
        text.push_str(&format!("data key   {}  drawn {}\n", dek.id, dek.created));
        for wrap in &dek.wraps {
            text.push_str(&format!(
                "  wrapped by {:<15}  {}\n    {}, {}\n",
                wrap.provider, wrap.key_id, wrap.algorithm, wrap.at
            ));
        }
    }
    text.push_str("\nNothing of this is verified; `nimbus encryption status --verify unwrap` does that, with the keys.\n");
    text
}

fn as_json(manifest: &Manifest) -> Value {
    let deks: Vec<Value> = manifest
        .deks()
        .iter()
        .map(|dek| {
            let wraps: Vec<Value> = dek
                .wraps
                .iter()
                .map(|wrap| {
                    json!({
                        "provider": wrap.provider.as_str(),
                        "key_id": wrap.key_id.as_str(),
                        "algorithm": wrap.algorithm.as_str(),
                        "at": wrap.at.to_string(),
                    })
                })
                .collect();
            json!({"id": dek.id.to_string(), "created": dek.created.to_string(), "wraps": wraps})
        })
        .collect();
    json!({
        "subject": manifest.subject().as_str(),
        "file_id": manifest.file_id().to_string(),
        "cipher": manifest.cipher().as_str(),
        "state": manifest.state().as_str(),
        "revision": manifest.revision(),
        "created": manifest.created().to_string(),
        "deks": deks,
        "verified": false,
    })
}
