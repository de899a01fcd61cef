//! Events of a command while no server runs: each opens the control file for as long as its line
//! takes.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use super::acceptance::{Accepted, accept};
use super::{AuditLog, ControlLost, LogError, Verified, verify_log};
use crate::control::Control;
use crate::envelope::{AuditError, AuditSink, Envelope, Event, manifest_path};
use crate::runtime::blocking;

/// The log of a control file that nobody has open.
#[derive(Debug, Clone)]
pub struct OfflineLog {
    envelope: Envelope,
    dir: PathBuf,
    data_dir: PathBuf,
}

impl OfflineLog {
    /// The log in `dir`, whose control file `envelope` opens; the tenants are in `data_dir`.
    #[must_use]
    pub fn new(envelope: Envelope, dir: PathBuf, data_dir: PathBuf) -> Self {
        Self {
            envelope,
            dir,
            data_dir,
        }
    }

    /// Proves the log.
    ///
    /// # Errors
    ///
    /// [`LogError`] when it cannot be read; what is wrong with it is part of the answer.
    pub async fn verify(&self) -> Result<Verified, LogError> {
        self.require_control()?;
        let control = Control::open(&self.envelope, &self.dir).await?;
        let dir = self.dir.clone();
        blocking(move || verify_log(&control, &dir)).await
    }

    /// Accepts that the log is not whole: it counts from behind its last fault, and says who
    /// accepted that. `None` when nothing is wrong.
    ///
    /// # Errors
    ///
    /// [`LogError`].
    pub async fn accept(&self) -> Result<Option<Accepted>, LogError> {
        self.require_control()?;
        let log = self.open().await?;
        let dir = self.dir.clone();
        let accepted = accept(log.control.clone(), &log, dir).await;
        // Its thread has the control file, too.
        blocking(move || drop(log)).await;
        accepted
    }

    /// Refuses where there is no control file: opening it would make one.
    fn require_control(&self) -> Result<(), LogError> {
        let path = Control::path_in(&self.dir);
        if path.exists() || manifest_path(&path).exists() {
            return Ok(());
        }
        Err(match ControlLost::look(&self.dir, &self.data_dir) {
            Some(lost) => LogError::ControlLost(lost),
            None => LogError::NoControlFile { path },
        })
    }

    async fn open(&self) -> Result<AuditLog, LogError> {
        let control = Arc::new(Control::open(&self.envelope, &self.dir).await?);
        let (dir, data_dir) = (self.dir.clone(), self.data_dir.clone());
        blocking(move || AuditLog::open(control, &dir, &data_dir)).await
    }
}

#[async_trait]
impl AuditSink for OfflineLog {
    async fn record(&self, events: Vec<Event>) -> Result<(), AuditError> {
        if !manifest_path(&Control::path_in(&self.dir)).exists() {
            let (dir, data_dir) = (self.dir.clone(), self.data_dir.clone());
            let lost = blocking(move || ControlLost::look(&dir, &data_dir)).await;
            if let Some(lost) = lost {
                return Err(AuditError::new(LogError::ControlLost(lost)));
            }
            // No deployment is here, or none that is encrypted: nothing could hold the head of a
            // log.
            events.iter().for_each(Event::trace);
            return Ok(());
        }
        let log = self.open().await.map_err(AuditError::new)?;
        let recorded = log.record(events).await;
        // Its thread has the control file, too.
        blocking(move || drop(log)).await;
        recorded
    }

    fn note(&self, event: Event) {
        // A command opens what it was told to, and records that itself.
        event.trace();
    }
}

/// The user of this process, as the log names them: `os:ana`, or `os:root (sudo by ana)`.
#[must_use]
pub fn os_actor() -> String {
    let id = rustix::process::getuid().as_raw();
    let user = uzers::get_user_by_uid(id).map(|user| user.name().to_string_lossy().into_owned());
    let user = user.unwrap_or_else(|| format!("uid {id}"));
    match std::env::var("SUDO_USER") {
        // Only root could have been made root by sudo; anybody else may have set the variable.
        Ok(by) if id == 0 && !by.is_empty() => format!("os:{user} (sudo by {by})"),
        _ => format!("os:{user}"),
    }
}
