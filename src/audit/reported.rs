//! What a command beside a running server did with keys, as it reports to the server, which alone
//! writes the log.

use nimbus_manifests::{DekId, Subject};
use serde::{Deserialize, Serialize};

use crate::envelope::{Event, EventKind, EventOutcome};

/// A key event of another process. All others than these go through the server, or need it stopped.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = KeyEvent)]
pub struct Reported {
    event: Kind,
    outcome: ReportedOutcome,
    subject: Option<String>,
    deks: Vec<String>,
    keys: Vec<String>,
    actor: String,
    detail: Option<String>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
#[schema(as = KeyEventKind)]
enum Kind {
    Export,
    Migrate,
    Rewrap,
    Backup,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
#[schema(as = KeyEventOutcome)]
enum ReportedOutcome {
    Begun,
    Done,
    Failed,
}

impl Reported {
    /// What is reported of an event; `None` for one that no other process can cause.
    #[must_use]
    pub fn of(event: &Event) -> Option<Self> {
        let kind = match event.kind {
            EventKind::Export => Kind::Export,
            EventKind::Migrate => Kind::Migrate,
            // Of a backup repository.
            EventKind::Rewrap => Kind::Rewrap,
            EventKind::Backup => Kind::Backup,
            // It leads up to an export or a migration, whose own event follows.
            _ => return None,
        };
        Some(Self {
            event: kind,
            outcome: match event.outcome {
                EventOutcome::Begun => ReportedOutcome::Begun,
                EventOutcome::Done => ReportedOutcome::Done,
                EventOutcome::Failed => ReportedOutcome::Failed,
            },
            subject: event.subject.as_ref().map(ToString::to_string),
            deks: event.deks.iter().map(ToString::to_string).collect(),
            keys: event.keys.clone(),
            actor: event.actor.to_string(),
            detail: event.detail.clone(),
        })
    }

    /// The event, by `caller` on behalf of the user that the command names. `None` when it names
    /// what is no subject or key id, or says too much.
    #[must_use]
    pub fn event(self, caller: &str) -> Option<Event> {
        let kind = match self.event {
            Kind::Export => EventKind::Export,
            Kind::Migrate => EventKind::Migrate,
            Kind::Rewrap => EventKind::Rewrap,
            Kind::Backup => EventKind::Backup,
        };
        let outcome = match self.outcome {
            ReportedOutcome::Begun => EventOutcome::Begun,
            ReportedOutcome::Done => EventOutcome::Done,
            ReportedOutcome::Failed => EventOutcome::Failed,
        };
        let texts = self.keys.iter().chain(&self.detail).chain([&self.actor]);
        if texts.map(String::len).sum::<usize>() > MAX_BYTES || self.keys.len() > MAX_KEYS {
            return None;
        }
        let mut event = Event::new(kind, outcome);
        event.subject = self
            .subject
            .map(|text| text.parse::<Subject>())
            .transpose()
            .ok()?;
        let deks = self
            .deks
            .iter()
            .take(MAX_KEYS)
            .map(|text| text.parse::<DekId>());
        event.deks = deks.collect::<Result<_, _>>().ok()?;
        event.keys = self.keys;
        event.actor = format!("{caller} for {}", self.actor).into();
        event.detail = self.detail;
        Some(event)
    }
}

const MAX_BYTES: usize = 16 << 10;
const MAX_KEYS: usize = 16;
