//! `nimbus encryption`: one file a verb.

mod audit;
mod audited;
mod export;
mod inspect;
mod keygen;
mod lock;
mod migrate;
mod recover;
mod repair;
mod rotate_dek;
mod rotate_kek;
mod shred;
mod status;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use super::output::{self, Format};
use super::{CliError, CommandOutcome};
pub(super) use audited::{audited_deployment, deployment};

use crate::audit::ControlLost;
use crate::config::Settings;
use crate::control::Control;
use crate::envelope::manifest_path;
use crate::runtime::{Progress, short_task};

/// Look at, make, move and check what is encrypted.
#[derive(Debug, Args)]
#[command(after_help = "\
Example: nimbus encryption status

The keys are those of the settings: environment and --config, as for `nimbus
start`; the directory is NIMBUS_DATA_DIR, or ./data.")]
pub(super) struct Encryption {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Look at every protected file
    Status(status::Status),
    /// Read one manifest, without any key
    Inspect(inspect::Inspect),
    /// Make a new key file
    Keygen(keygen::Keygen),
    /// Encrypt a plaintext database
    Migrate(migrate::MigrateCommand),
    /// Write an encrypted database out in plaintext
    Export(export::ExportCommand),
    /// Put lost manifests back from the control file
    Repair(repair::Repair),
    /// Open files with a recovery identity, when every other key is lost
    Recover(recover::Recover),
    /// Wrap data keys under another key
    RotateKek(Box<rotate_kek::RotateKek>),
    /// Give files new data keys
    RotateDek(rotate_dek::RotateDek),
    /// Erase a tenant by destroying its keys
    Shred(shred::Shred),
    /// Read the log of key events, or prove it
    Audit(audit::Audit),
    /// Close a tenant until it is unlocked
    Lock(lock::Lock),
    /// End a lock
    Unlock(lock::Unlock),
}

/// What only these commands meet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncryptionError {
    /// A manifest cannot be read.
    #[error(transparent)]
    Inspect(#[from] inspect::InspectError),
    /// A recovery identity cannot be used.
    #[error(transparent)]
    Identity(#[from] nimbus_keyproviders::identity::IdentityError),
    /// A command that was run in the wrong place.
    #[error(
        "no deployment is here: {} does not exist; run this where the server runs, or name its data directory in NIMBUS_DATA_DIR",
        .control.display()
    )]
    NoDeployment {
        /// Where its control file would be.
        control: PathBuf,
    },
    /// A deployment whose control file is gone.
    #[error("{0}")]
    ControlLost(ControlLost),
    /// A key file cannot be made.
    #[error(transparent)]
    KeyFile(#[from] nimbus_keyproviders::KeyFileError),
}

impl Encryption {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        output::init_log(Format::Text, output::COMMAND_LOG);
        match self.verb {
            Verb::Inspect(verb) => verb.run(),
            Verb::Keygen(verb) => verb.run(),
            Verb::Status(verb) => verb.run(config),
            Verb::Migrate(verb) => verb.run(config),
            Verb::Export(verb) => verb.run(config),
            Verb::Repair(verb) => verb.run(config),
            Verb::Recover(verb) => verb.run(config),
            Verb::RotateKek(verb) => verb.run(config),
            Verb::RotateDek(verb) => verb.run(config),
            Verb::Shred(verb) => verb.run(config),
            Verb::Audit(verb) => verb.run(config),
            Verb::Lock(verb) => verb.run(config),
            Verb::Unlock(verb) => verb.run(config),
        }
    }
}

/// Refuses a place where no server ever ran, or whose control file is gone: there is nothing to be
/// read there, and nothing to be made.
pub(super) fn require_deployment(settings: &Settings) -> Result<(), EncryptionError> {
    let control = Control::path_in(&settings.control_data_dir);
    if control.exists() || manifest_path(&control).exists() {
        return Ok(());
    }
    if let Some(lost) = ControlLost::look(&settings.control_data_dir, &settings.data_dir) {
        return Err(EncryptionError::ControlLost(lost));
    }
    let control = std::path::absolute(&control).unwrap_or(control);
    Err(EncryptionError::NoDeployment { control })
}

/// A bar of bytes on standard error, where that is a terminal. A copy under way stops, and what
/// there is of it is removed, once [`stop_on_signals`] has seen one: the beginning of an export is
/// plaintext that nobody would look for.
pub(super) fn progress_bar(what: &'static str) -> (ProgressBar, Progress) {
    bar(
        what,
        "{msg} {bar:30} {bytes}/{total_bytes}  {bytes_per_sec}, {eta} left",
    )
}

/// A count of documents on standard error, where that is a terminal.
pub(super) fn documents_bar(what: &'static str) -> (ProgressBar, Progress) {
    bar(what, "{msg} {pos} documents")
}

/// A bar of files on standard error, where that is a terminal.
pub(super) fn counting_bar(what: &'static str) -> (ProgressBar, Progress) {
    bar(what, "{msg} {bar:30} {pos}/{len} files  {eta} left")
}

fn bar(what: &'static str, template: &str) -> (ProgressBar, Progress) {
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(0).with_style(style).with_message(what);
    let told = bar.clone();
    let progress = Arc::new(move |done, total| {
        told.set_length(total);
        told.set_position(done);
        !STOPPED.load(Ordering::Relaxed)
    });
    (bar, progress)
}

/// From here on Ctrl-C, SIGTERM and a lost terminal stop a copy that shows its progress, instead of
/// killing the process.
pub(super) fn stop_on_signals() -> std::io::Result<()> {
    for kind in [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ] {
        let mut signals = signal(kind)?;
        drop(short_task(async move {
            while signals.recv().await.is_some() {
                STOPPED.store(true, Ordering::Relaxed);
            }
        }));
    }
    Ok(())
}

static STOPPED: AtomicBool = AtomicBool::new(false);
