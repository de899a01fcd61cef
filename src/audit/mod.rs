//! The audit log: `nimbus-audit.log` in the control data directory, one JSON line a key event, each
//! chained to the one before by its hash and under a MAC whose key comes from the control file's
//! data key. The head of the chain stands in the control file, so that lines that are cut off are
//! missed.
//!
//! One thread writes. A change waits until its line is durable; all changes that wait share one
//! flush. Openings are written within a second, and counted where they repeat (`openings`).

mod acceptance;
mod chain;
mod files;
mod line;
mod lost;
mod offline;
mod openings;
mod part;
mod reapply;
mod reported;
mod rolled_back;
mod verify;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{SendError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Instant;

use async_trait::async_trait;
use tokio::sync::oneshot;

use crate::control::{AuditHead, Control, ControlError};
use crate::envelope::{AuditError, AuditSink, Event, KeyedFile, Stage};
use crate::runtime::{self, Background, blocking};
use chain::{Chain, FULL, GONE};
use openings::Openings;
use writer::{Message, write};

pub use acceptance::Accepted;
pub use files::FILE_NAME;
pub use line::{Line, LineError};
pub use lost::ControlLost;
pub(crate) use lost::mark_deployed;
pub use offline::{OfflineLog, os_actor};
pub(crate) use part::LogPart;
pub use reported::Reported;
pub use rolled_back::RolledBack;
pub use verify::{Problem, Verified, lines};

/// Why the log cannot be opened or verified.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// Its file cannot be read or written.
    #[error("cannot use the audit log in {}", .dir.display())]
    Io {
        /// The control data directory.
        dir: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The control file, which holds its head, fails.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The control file is older than the log.
    #[error(
        "the control file in {} is older than the audit log beside it: an older copy was put back, which does not know what was revoked, locked or deleted \
         since. The log holds {found}. Put the newest control file and its manifest back; if there is none, `nimbus start \
         --accept-rolled-back-control` goes on with this one and does again what can be done again (docs/runbook.md)",
        .found.dir.display()
    )]
    RolledBack {
        /// What the log holds that the control file does not know.
        found: Box<RolledBack>,
    },
    /// The control file is gone, and the log's head with it.
    #[error("{0}")]
    ControlLost(ControlLost),
    /// There is no control file, which would hold the log's head.
    #[error("there is no control file at {}: no server has run here yet, or the directory is another", .path.display())]
    NoControlFile {
        /// Where it would be.
        path: PathBuf,
    },
    /// The key of the settings cannot be used.
    #[error("the audit log cannot be verified without the key of the settings")]
    NoKey,
    /// Encryption is off: there is no key to seal lines with, and no key events.
    #[error("encryption is off: there is no audit log")]
    EncryptionOff,
}

impl LogError {
    pub(crate) fn rolled_back(found: RolledBack) -> Self {
        let found = Box::new(found);
        Self::RolledBack { found }
    }
}

/// The log of an open control file.
#[derive(Debug)]
pub struct AuditLog {
    dir: PathBuf,
    control: Arc<Control>,
    queue: Sender<Message>,
    openings: Arc<Mutex<Openings>>,
    done_again: Vec<String>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl AuditLog {
    /// Opens the log in `dir`, mends what a crash left, and records that it was broken if it was.
    /// Beside the log of a control file that is gone, the new one learns what that says was locked.
    /// The tenants' files are in `data_dir`. Blocks.
    ///
    /// # Errors
    ///
    /// [`LogError`].
    pub fn open(control: Arc<Control>, dir: &Path, data_dir: &Path) -> Result<Self, LogError> {
        Self::open_with(control, dir, data_dir, FULL, false)
    }

    /// As [`AuditLog::open`], and goes on with a control file that is older than the log: what was
    /// revoked, locked and deleted since is so again, as far as the log proves it. Deletions are
    /// left to the start. Blocks.
    ///
    /// # Errors
    ///
    /// [`LogError`].
    pub fn open_accepting(
        control: Arc<Control>,
        dir: &Path,
        data_dir: &Path,
    ) -> Result<Self, LogError> {
        Self::open_with(control, dir, data_dir, FULL, true)
    }

    fn open_with(
        control: Arc<Control>,
        dir: &Path,
        data_dir: &Path,
        full: u64,
        accepting: bool,
    ) -> Result<Self, LogError> {
        let (chain, done_again) = Chain::open(control.clone(), dir, data_dir, full, accepting)?;
        let (queue, messages) = mpsc::channel();
        let openings = Arc::<Mutex<Openings>>::default();
        let counted = Arc::clone(&openings);
        let work = move || write(chain, &messages, &counted);
        let thread =
            runtime::thread(Background::AuditLog, work).map_err(|source| LogError::Io {
                dir: dir.to_owned(),
                source,
            })?;
        Ok(Self {
            dir: dir.to_owned(),
            control,
            queue,
            openings,
            done_again,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// What the acceptance of an older control file did again, a line each.
    pub(crate) fn done_again(&self) -> &[String] {
        &self.done_again
    }

    /// Proves the log, with all that was noted so far.
    ///
    /// # Errors
    ///
    /// [`LogError`] when it cannot be read; what is wrong with it is part of the answer.
    pub async fn verify(&self) -> Result<Verified, LogError> {
        let (done, flushed) = oneshot::channel();
        let _sent = self.queue.send(Message::Flush(done));
        // Where it cannot be flushed, what is there is verified all the same.
        drop(flushed.await);
        let (control, dir) = (self.control.clone(), self.dir.clone());
        blocking(move || verify_log(&control, &dir)).await
    }
}

/// Proves the log of `control` in `dir`. Blocks.
fn verify_log(control: &Control, dir: &Path) -> Result<Verified, LogError> {
    let io_error = |source| LogError::Io {
        dir: dir.to_owned(),
        source,
    };
    let (sealer, head, base, parts, beyond) = {
        // Of one moment: no line is written meanwhile, no part begun, and the key does not change.
        let _chaining = control.chaining();
        let sealer = control.audit_sealer().ok_or(LogError::EncryptionOff)?;
        let parts = files::Parts::open(dir).map_err(io_error)?;
        let (head, base) = (control.audit_head()?, control.audit_base()?);
        let by = line::Sealer {
            key: &sealer.0,
            id: sealer.1,
        };
        let beyond = rolled_back::look(dir, head, by).map_err(io_error)?;
        (sealer, head, base, parts, beyond)
    };
    let sealer = line::Sealer {
        key: &sealer.0,
        id: sealer.1,
    };
    let mut verified = verify::verify(parts, sealer, base, head).map_err(io_error)?;
    verified.rolled_back = beyond
        .rolled_back(dir, head)
        .map(|found| LogError::rolled_back(found).to_string());
    Ok(verified)
}

/// Whether the control file of `file` is older than the log beside it; nothing is changed. Blocks.
///
/// # Errors
///
/// [`LogError`]: one of the two cannot be read.
pub(crate) fn rolled_back(file: &KeyedFile, dir: &Path) -> Result<Option<RolledBack>, LogError> {
    if matches!(file.stage(), Stage::Rekeying { .. }) {
        // Which of its two keys it has is found out by who opens it, and that it is older as well.
        return Ok(None);
    }
    let head = AuditHead::of(file)?;
    let key = file.audit_key();
    let sealer = line::Sealer {
        key: &key,
        id: file.manifest().deks()[0].id,
    };
    let beyond = rolled_back::look(dir, head, sealer).map_err(|source| LogError::Io {
        dir: dir.to_owned(),
        source,
    })?;
    Ok(beyond.rolled_back(dir, head))
}

#[async_trait]
impl AuditSink for AuditLog {
    async fn record(&self, events: Vec<Event>) -> Result<(), AuditError> {
        let (answer, recorded) = oneshot::channel();
        let gone = || AuditError::new(GONE);
        self.queue
            .send(Message::Record(events, answer))
            .map_err(|_| gone())?;
        recorded.await.unwrap_or_else(|_| Err(gone()))
    }

    fn note(&self, event: Event) {
        // The thread is not woken for what is only counted.
        if !held(&self.openings).is_news(&event, Instant::now()) {
            return event.trace();
        }
        if let Err(SendError(Message::Note(event))) = self.queue.send(Message::Note(event)) {
            tracing::error!(target: "nimbus::audit", "{GONE}: an event is in this log alone");
            event.trace();
        }
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        let _sent = self.queue.send(Message::Close);
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            drop(thread.join());
        }
    }
}

fn held(openings: &Mutex<Openings>) -> MutexGuard<'_, Openings> {
    openings.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
