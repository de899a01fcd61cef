//! `nimbus encryption rotate-kek`: data keys under another key, through the running server when
//! there is one.

use std::path::Path;
use std::sync::Arc;

use clap::Args;
use nimbus_keyproviders::KeyProvider;

use super::super::remote::Remote;
use super::super::{CliError, CommandOutcome, block_on, output, settings};
use super::audited::{self, opened};
use super::{counting_bar, stop_on_signals};
use crate::config::keys::{self, Purpose};
use crate::config::{Settings, TenantsIn};
use crate::control::Control;
use crate::encryption::rotate_kek::{Request, RotateKekError, Rotated};
use crate::envelope::{Event, EventKind, EventOutcome, manifest_path};
use crate::process::DataDirLock;
use crate::runtime::{Progress, blocking};

/// Wrap data keys under another key; no page of the data is touched
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nimbus encryption rotate-kek --path data --all --new-master-key-file new.key
  nimbus encryption rotate-kek --path data --all \\
      --new-aws-kms-key-id alias/nimbus --new-aws-region eu-central-1
  nimbus encryption rotate-kek --path data/demo.sqlite3 --add-recipient age1…

The settings name the keys that open the files now. Without a new key, files
move to the key of the settings. A rotation that was interrupted is run again.
The new key is tried before anything is changed. Tenants that the key map names
stay under their own keys.
Afterwards the new key must be in the settings; the old one is needed no more
but for backups that were made before.")]
pub(super) struct RotateKek {
    #[command(flatten)]
    request: Request,
}

impl RotateKek {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        let settings = settings(config, None)?;
        let request = self.request.absolute();
        let moved = request.names_a_key();
        let rotate = request.clone().check()?;
        rotate.check_path()?;
        let outcome = match Remote::on(rotate.dir())? {
            None => offline(&settings, rotate, None)?,
            Some(server) => {
                let (bar, progress) = counting_bar("rewrapping");
                let path = "/api/admin/encryption/rotate-kek";
                let rotated = server.operate(path, &request, &progress)?;
                bar.finish_and_clear();
                say(&rotated)?
            }
        };
        if moved && outcome != CommandOutcome::Failed {
            output::note(MOVED);
        }
        Ok(outcome)
    }
}

/// From this process: no server may run. `identity` opens what the settings' keys do not.
pub(super) fn offline(
    settings: &Settings,
    rotate: crate::encryption::rotate_kek::RotateKek,
    identity: Option<Arc<dyn KeyProvider>>,
) -> Result<CommandOutcome, CliError> {
    let _lock = DataDirLock::acquire(rotate.dir())?;
    let (bar, progress) = counting_bar("rewrapping");
    let recovering = identity.is_some();
    let rotated = block_on(here(settings, rotate, identity, progress))?;
    bar.finish_and_clear();
    let outcome = say(&rotated)?;
    if recovering && rotated.rewrapped == 0 && rotated.failed.is_empty() {
        output::note(
            "Nothing had to be recovered: the key of the settings opens all of it, and the identity was not needed.",
        );
    }
    Ok(outcome)
}

async fn here(
    settings: &Settings,
    rotate: crate::encryption::rotate_kek::RotateKek,
    identity: Option<Arc<dyn KeyProvider>>,
    progress: Progress,
) -> Result<Rotated, CliError> {
    stop_on_signals()?;
    let mut envelope = keys::connect(settings, Purpose::Inspect).await?.envelope;
    let recovering = identity.is_some();
    if let (Some(identity), Some(keys)) = (identity, envelope.keys()) {
        envelope.use_keys(keys.also_accepting(identity));
    }
    rotate.accept_target(&envelope).await;
    let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    let (mut control_dir, mut manifests) = (None, None);
    if same(rotate.dir(), &settings.data_dir) {
        let control = Control::path_in(&settings.control_data_dir);
        envelope = match manifest_path(&control).exists() {
            true => opened(envelope, settings).await?.envelope,
            false => audited::offline(envelope, settings),
        };
        control_dir = Some(settings.control_data_dir.canonicalize()?);
        if let TenantsIn::Database { options, .. } = &settings.tenants {
            let options = options.clone();
            manifests = Some(blocking(move || options.manifests()).await?);
        }
    }
    if recovering {
        let event = Event::new(EventKind::Recover, EventOutcome::Begun);
        let event = event.saying(format!(
            "by a recovery identity: {}",
            rotate.dir().display()
        ));
        envelope.record(event).await.map_err(RotateKekError::from)?;
    }
    Ok(rotate
        .run(&envelope, control_dir.as_deref(), manifests, progress)
        .await?)
}

fn say(rotated: &Rotated) -> std::io::Result<CommandOutcome> {
    output::answer(&format!(
        "{} rewrapped, {} had it already, {} failed: {}",
        rotated.rewrapped,
        rotated.unchanged,
        rotated.failed.len(),
        rotated.key
    ))?;
    if rotated.kept > 0 {
        output::note(&format!(
            "{} of them stay under the keys that the key map names for their tenants, whose holders can still take them back; \
             --move-mapped moves them, too.",
            rotated.kept
        ));
    }
    for recipient in &rotated.not_wrapped_to {
        output::note(&format!(
            "No data key here is wrapped to {recipient}: there was nothing to drop. Compare it with what `nimbus encryption status` names."
        ));
    }
    for failure in &rotated.failed {
        output::note(&format!("{}: {}", failure.path, failure.error));
    }
    if !rotated.failed.is_empty() {
        output::note(
            "Keep both keys: the files above need the old one, the others the new. Mend them, and run the command again.",
        );
        return Ok(CommandOutcome::Failed);
    }
    Ok(match rotated.not_wrapped_to.is_empty() {
        true => CommandOutcome::Done,
        false => CommandOutcome::Problems,
    })
}

const MOVED: &str = "\
Now put the new key into the settings, before the next start. The old key opens these files no more;
backups and copies made before still need it, and whoever has them and the old key still opens them.";
