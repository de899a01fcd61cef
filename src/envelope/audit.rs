//! Key events: what happened to which key, and who did it. The core and what operators run say
//! them; where they go is an [`AuditSink`]'s matter.

use std::fmt;
use std::sync::Arc;

use crate::runtime::actor;
use async_trait::async_trait;
use nimbus_manifests::{DekId, KeyId, Manifest, Subject};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventKind {
    /// A protected file got its first data key.
    Create,
    /// A protected file was opened.
    Open,
    /// A data key could not be unwrapped.
    UnwrapFailed,
    /// A data key was wrapped by another key, or to other recipients.
    Rewrap,
    /// A file got a new data key.
    Rekey,
    /// A database left in plaintext.
    Export,
    /// A plaintext database was encrypted.
    Migrate,
    /// A file was opened by a recovery identity.
    Recover,
    /// A manifest was put back from its copy.
    Repair,
    /// A tenant was erased with its keys.
    Shred,
    /// A tenant was deleted.
    Delete,
    /// A key provider denied a key, or gave it back.
    Revocation,
    /// An operator closed a tenant and had its key wiped.
    Lock,
    /// An operator let a tenant be opened again.
    Unlock,
    /// A snapshot was made in a backup repository.
    Backup,
    /// A file was put back from a backup.
    Restore,
    /// A tenant got an access key.
    AccessKeyCreated,
    /// An access key of a tenant counts no more.
    AccessKeyRevoked,
    /// The log begins.
    LogBegun,
    /// The log did not go on where it had ended.
    LogBroken,
    /// An operator accepted that the log is not whole.
    LogAccepted,
    /// Events that could not be written when they happened.
    LogGap,
}

impl EventKind {
    /// Its name in the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Open => "open",
            Self::UnwrapFailed => "unwrap-failed",
            Self::Rewrap => "rewrap",
            Self::Rekey => "rekey",
            Self::Export => "export",
            Self::Migrate => "migrate",
            Self::Recover => "recover",
            Self::Repair => "repair",
            Self::Shred => "shred",
            Self::Delete => "delete",
            Self::Revocation => "revocation",
            Self::Lock => "lock",
            Self::Unlock => "unlock",
            Self::Backup => "backup",
            Self::Restore => "restore",
            Self::AccessKeyCreated => "access-key-created",
            Self::AccessKeyRevoked => "access-key-revoked",
            Self::LogBegun => "log-begun",
            Self::LogBroken => "log-broken",
            Self::LogAccepted => "log-accepted",
            Self::LogGap => "log-gap",
        }
    }
}

/// How far it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventOutcome {
    /// It is about to be done.
    Begun,
    /// It is done.
    Done,
    /// It was not done, or not to the end.
    Failed,
}

impl EventOutcome {
    /// Its name in the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// One key event. It holds ids of keys and never a key.
#[derive(Debug, Clone)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// How far it came.
    pub outcome: EventOutcome,
    /// Whose file it is about.
    pub subject: Option<Subject>,
    /// The data keys of that file.
    pub deks: Vec<DekId>,
    /// `<provider> <key id>` of the keys that wrap them.
    pub keys: Vec<String>,
    /// Who did it.
    pub actor: Arc<str>,
    /// What else there is to say.
    pub detail: Option<String>,
}

impl Event {
    /// An event of now, by who acts now.
    #[must_use]
    pub fn new(kind: EventKind, outcome: EventOutcome) -> Self {
        Self {
            kind,
            outcome,
            subject: None,
            deks: Vec::new(),
            keys: Vec::new(),
            actor: actor(),
            detail: None,
        }
    }

    /// The same about a file of `subject`.
    #[must_use]
    pub fn about(mut self, subject: &Subject) -> Self {
        self.subject = Some(subject.clone());
        self
    }

    /// The same about the file of `manifest`, with the ids of its keys.
    #[must_use]
    pub fn of(mut self, manifest: &Manifest) -> Self {
        self = self.about(manifest.subject());
        for dek in manifest.deks() {
            self.deks.push(dek.id);
            self.keys.extend(
                dek.wraps
                    .iter()
                    .map(|wrap| format!("{} {}", wrap.provider, wrap.key_id)),
            );
        }
        self.keys.sort_unstable();
        self.keys.dedup();
        self
    }

    /// The same about one key that wraps.
    #[must_use]
    pub fn under(mut self, key: &KeyId) -> Self {
        self.keys.push(key.to_string());
        self
    }

    /// The same with more to say.
    #[must_use]
    pub fn saying(mut self, detail: impl fmt::Display) -> Self {
        self.detail = Some(detail.to_string());
        self
    }

    /// The same with the outcome of what was begun.
    #[must_use]
    pub fn ended<T, E: std::error::Error>(mut self, result: &Result<T, E>) -> Self {
        self.outcome = match result {
            Ok(_) => EventOutcome::Done,
            Err(error) => {
                self.detail = Some(crate::error_chain::error_chain(error));
                EventOutcome::Failed
            }
        };
        self
    }

    /// Writes to the log of the process, from which a SIEM may take it. An opening is logged at
    /// level `debug`: there are many.
    pub(crate) fn trace(&self) {
        let is_opening = (self.kind, self.outcome) == (EventKind::Open, EventOutcome::Done);
        if is_opening && !tracing::enabled!(target: "nimbus::audit", tracing::Level::DEBUG) {
            return;
        }
        let subject = self.subject.as_ref().map(tracing::field::display);
        let (event, outcome) = (self.kind.as_str(), self.outcome.as_str());
        let (actor, keys) = (&*self.actor, self.keys.join(", "));
        let detail = self.detail.as_deref();
        match (self.kind, self.outcome) {
            (EventKind::Open, EventOutcome::Done) => tracing::debug!(
                target: "nimbus::audit", event, outcome, subject, keys, actor, detail, "key event"
            ),
            (EventKind::LogBroken | EventKind::LogGap, _) | (_, EventOutcome::Failed) => {
                tracing::warn!(
                    target: "nimbus::audit", event, outcome, subject, keys, actor, detail, "key event"
                );
            }
            _ => tracing::info!(
                target: "nimbus::audit", event, outcome, subject, keys, actor, detail, "key event"
            ),
        }
    }
}

/// Why an event was not recorded.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "the audit log cannot be written, and nothing is done with keys that is not in it; see to the disk and the permissions of \
     the control data directory"
)]
pub struct AuditError(#[source] Arc<dyn std::error::Error + Send + Sync>);

impl AuditError {
    /// Wraps what kept it from being recorded.
    pub fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(Arc::from(source.into()))
    }
}

/// Where key events go.
#[async_trait]
pub trait AuditSink: fmt::Debug + Send + Sync {
    /// Records events, in their order; they are durable when this returns.
    ///
    /// # Errors
    ///
    /// [`AuditError`]: what they are about must not be done then.
    async fn record(&self, events: Vec<Event>) -> Result<(), AuditError>;

    /// Records an event soon, for what changes nothing. Where that fails, the log says later that
    /// events are missing.
    fn note(&self, event: Event);
}

/// Only the log of the process: where there is no control file that could hold the head of a chain.
#[derive(Debug, Clone, Copy)]
pub(super) struct TraceAlone;

#[async_trait]
impl AuditSink for TraceAlone {
    async fn record(&self, events: Vec<Event>) -> Result<(), AuditError> {
        events.iter().for_each(Event::trace);
        Ok(())
    }

    fn note(&self, event: Event) {
        event.trace();
    }
}
