//! Where the key events of a command go: into the log of the deployment, through the running server when there is one.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use nimbus_manifests::Cipher;
use ureq::http::Method;

use super::super::CliError;
use super::super::remote::Remote;
use crate::audit::{self, AuditLog, LogError, OfflineLog, Reported, RolledBack};
use crate::config::Settings;
use crate::config::keys::{self, Purpose};
use crate::control::{self, Control, MirrorSeen};
use crate::envelope::{AuditError, AuditSink, Envelope, Event, Intent, Prepared, blocking, parent};
use crate::tenants::sqlite::{SqliteOptions, SqliteTenants};

/// The core of a command on `file` that does not have the control file open itself. A file elsewhere is none of this deployment's, and only the
/// log of the process tells of it.
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

/// The core of a command while nobody has the control file open.
pub(super) fn offline(envelope: Envelope, settings: &Settings) -> Envelope {
    let (dir, data_dir) = (&settings.control_data_dir, &settings.data_dir);
    let log = OfflineLog::new(envelope.clone(), dir.clone(), data_dir.clone());
    envelope.with_audit(Arc::new(log))
}

/// The core of a command that has the control file open.
pub(super) async fn with_log(
    envelope: Envelope,
    control: Arc<Control>,
    settings: &Settings,
) -> Result<Envelope, LogError> {
    if envelope.keys().is_none() {
        return Ok(envelope);
    }
    let (dir, data_dir) = (settings.control_data_dir.clone(), settings.data_dir.clone());
    let log = blocking(move || AuditLog::open(control, &dir, &data_dir)).await?;
    Ok(envelope.with_audit(Arc::new(log)))
}

/// The same core, which also goes by what the control file knows of the tenants, where that can be read: it is only looked at. And what is wrong
/// when that file is older than its audit log.
pub(in crate::cli) async fn knowing(
    envelope: Envelope,
    settings: &Settings,
) -> (Envelope, Option<RolledBack>) {
    let path = Control::path_in(&settings.control_data_dir);
    let prepared = envelope
        .prepare(&path, &control::subject(), Cipher::Blocks1, Intent::Open)
        .await;
    let Ok(Prepared::Keyed(file)) = prepared else {
        return (envelope, None);
    };
    let dir = settings.control_data_dir.clone();
    let (seen, rolled_back) = blocking(move || {
        let rolled_back = audit::rolled_back(&file, &dir).ok().flatten();
        (MirrorSeen::of(&file), rolled_back)
    })
    .await;
    match seen {
        Ok(seen) => {
            let envelope = envelope.with_mirror(Arc::new(seen), &settings.data_dir);
            (envelope, rolled_back)
        }
        Err(_told_by_its_own_line) => (envelope, rolled_back),
    }
}

/// A deployment that no server has, with the directory's lock held by the caller.
pub(super) struct Opened {
    pub(super) envelope: Envelope,
    pub(super) control: Arc<Control>,
    pub(super) tenants: SqliteTenants,
}

impl Opened {
    pub(super) async fn of(settings: &Settings) -> Result<Self, CliError> {
        let envelope = keys::connect(settings, Purpose::Inspect).await?.envelope;
        let dir = &settings.control_data_dir;
        let control = Arc::new(Control::open(&envelope, dir).await?);
        let envelope = envelope.with_mirror(control.clone(), &settings.data_dir);
        let envelope = with_log(envelope, control.clone(), settings).await?;
        let tenants = SqliteTenants::open(
            envelope.clone(),
            control.clone(),
            settings.data_dir.clone(),
            SqliteOptions::default(),
        )
        .await?;
        Ok(Self {
            envelope,
            control,
            tenants,
        })
    }
}

/// The log of a running server, which writes what it is told here.
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
