//! Where the key events of a command go: into the log of the deployment, through the running server
//! when there is one.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ureq::http::Method;

use super::super::CliError;
use super::super::remote::Remote;
use crate::audit::{OfflineLog, Reported};
use crate::config::Settings;
use crate::config::keys::{self, Purpose};
use crate::control::Control;
use crate::data_dir::parent;
use crate::deployment::{Deployment, OlderControl};
use crate::envelope::{AuditError, AuditSink, Envelope, Event};
use crate::runtime::blocking;

/// The core of a command on `file` that does not have the control file open itself. A file
/// elsewhere does not belong to this deployment, and only the log of the process records it.
pub(super) fn audited(
    envelope: Envelope,
    settings: &Settings,
    file: &Path,
) -> Result<Envelope, CliError> {
    let dir = parent(file).canonicalize().ok();
    let ours = [&settings.data_dir, &settings.control_data_dir];
    let ours = dir.is_some() && ours.iter().any(|one| one.canonicalize().ok() == dir);
    if envelope.keys().is_none() || !ours {
        return Ok(envelope);
    }
    Ok(match Remote::on(&settings.data_dir)? {
        Some(server) => envelope.with_audit(Arc::new(RemoteLog(Arc::new(server)))),
        None => offline(envelope, settings),
    })
}

/// The core of a command that is about the deployment of the settings, where one is here, and not
/// about one file.
pub(in crate::cli) fn audited_deployment(
    envelope: Envelope,
    settings: &Settings,
) -> Result<Envelope, CliError> {
    let control = Control::path_in(&settings.control_data_dir);
    audited(envelope, settings, &control)
}

/// The core of a command while nobody has the control file open.
pub(super) fn offline(envelope: Envelope, settings: &Settings) -> Envelope {
    let (dir, data_dir) = (&settings.control_data_dir, &settings.data_dir);
    let log = OfflineLog::new(envelope.clone(), dir.clone(), data_dir.clone());
    envelope.with_audit(Arc::new(log))
}

/// A deployment that no server has, with the directory's lock held by the caller.
pub(in crate::cli) async fn deployment(settings: &Settings) -> Result<Deployment, CliError> {
    let keys = keys::connect(settings, Purpose::Inspect).await?;
    opened(keys.envelope, settings).await
}

/// The same with a core that is there.
pub(super) async fn opened(
    envelope: Envelope,
    settings: &Settings,
) -> Result<Deployment, CliError> {
    let (data_dir, control_dir) = (&settings.data_dir, &settings.control_data_dir);
    Ok(Deployment::open(envelope, data_dir, control_dir, OlderControl::Refuse).await?)
}

/// The log of a running server, which writes what is reported here.
struct RemoteLog(Arc<Remote>);

#[async_trait]
impl AuditSink for RemoteLog {
    async fn record(&self, events: Vec<Event>) -> Result<(), AuditError> {
        let server = self.0.clone();
        blocking(move || {
            for report in events.iter().filter_map(Reported::of) {
                let answer: Result<serde_json::Value, _> = server.send_json(
                    Method::POST,
                    "/api/admin/encryption/audit",
                    &report,
                    PATIENCE,
                );
                drop(answer.map_err(AuditError::new)?);
            }
            Ok(())
        })
        .await
    }

    fn note(&self, event: Event) {
        // The server notes what it opens itself; a command records what it was told to do.
        drop(event);
    }
}

impl fmt::Debug for RemoteLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RemoteLog")
    }
}

const PATIENCE: Duration = Duration::from_secs(30);
