//! What the log says was done since a control file was copied, done to that copy again.
//!
//! The deeds are done before the head moves, and each can be done again: a crash leaves a control file that is still older than its log.
//! Lines that are not proven may have been written by anybody: they only take rights away, and destroy nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use nimbus_manifests::{SealedManifest, Subject, TenantId};

use super::rolled_back::{BeyondLine, RolledBack};
use crate::control::{self, Control, ControlError, KeyId};
use crate::data_dir;
use crate::envelope::{Event, EventKind, EventOutcome, manifest_path, read_manifest};
use crate::failpoints::crash_point;

/// What is to be done again.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Deeds {
    revoked: BTreeSet<(TenantId, KeyId)>,
    /// Whether each was locked at the end.
    locked: BTreeMap<TenantId, bool>,
    /// Deleted or shredded, and the data keys that files of the same name had later.
    gone: BTreeMap<TenantId, BTreeSet<String>>,
    /// Those of them that came to be again.
    again: BTreeSet<TenantId>,
    /// Said to be deleted or shredded by a line that proves nothing.
    doubtful: BTreeSet<TenantId>,
}

impl Deeds {
    /// What these lines tell.
    pub(super) fn of(lines: &[BeyondLine]) -> Self {
        let mut deeds = Self::default();
        for beyond in lines {
            deeds.take(beyond);
        }
        deeds
    }

    fn take(&mut self, beyond: &BeyondLine) {
        let (line, proven) = (&beyond.line, beyond.proven);
        let subject = line.subject.as_ref();
        let Some(subject) = subject.and_then(|text| text.parse::<Subject>().ok()) else {
            return;
        };
        let Some(tenant) = subject.tenant().cloned() else {
            return;
        };
        match (line.event.as_str(), line.outcome.as_str()) {
            ("access-key-revoked", outcome) => {
                let key = line.detail.as_deref().and_then(named_key);
                let Some(key) = key.map(|key| (tenant, key)) else {
                    return;
                };
                match outcome {
                    // Begun is enough: whoever asked for it wanted the key to count no more.
                    "begun" | "done" => drop(self.revoked.insert(key)),
                    _ if proven => drop(self.revoked.remove(&key)),
                    _ => {}
                }
            }
            ("lock", "done") => drop(self.locked.insert(tenant, true)),
            ("unlock", "done") if proven => drop(self.locked.insert(tenant, false)),
            ("delete" | "shred", "done") if proven => {
                self.revoked.retain(|(of, _)| *of != tenant);
                let _was = self.locked.remove(&tenant);
                let _was = self.again.remove(&tenant);
                drop(self.gone.insert(tenant, BTreeSet::new()));
            }
            ("delete" | "shred", "done") => drop(self.doubtful.insert(tenant)),
            (event, _) if proven => {
                if let Some(keys) = self.gone.get_mut(&tenant) {
                    keys.extend(line.deks.iter().cloned());
                    if event == "create" {
                        let _new = self.again.insert(tenant);
                    }
                }
            }
            // Nothing is deleted that may be a later one's.
            ("create", _) if self.gone.contains_key(&tenant) => drop(self.again.insert(tenant)),
            _ => {}
        }
    }

    /// The same without what destroys or gives rights back: for lines that a crash left beyond the head.
    pub(super) fn restrictive(mut self) -> Self {
        self.locked.retain(|_, locked| *locked);
        Self {
            revoked: self.revoked,
            locked: self.locked,
            ..Self::default()
        }
    }

    /// Does them; answers the events that tell what was changed. Blocks.
    pub(super) fn apply(
        self,
        control: &Control,
        data_dir: &Path,
    ) -> Result<Vec<Event>, ControlError> {
        let mut events = Vec::new();
        let mut tell = |kind, outcome, tenant: &TenantId, what: &str| {
            let event = Event::new(kind, outcome).about(&data_dir::subject(tenant));
            events.push(event.saying(what));
        };
        let mut locked = self.locked;
        for (tenant, later_keys) in &self.gone {
            let files = Files::of(control, data_dir, tenant)?;
            let again = self.again.contains(tenant);
            match &files {
                Files::Nothing | Files::Known if !again => {
                    // The start carries it out.
                    control.begin_delete(tenant)?;
                    tell(EventKind::Delete, EventOutcome::Begun, tenant, AGAIN);
                }
                // What the control file knows is of the one that was deleted.
                _ => control.finish_delete(tenant)?,
            }
            crash_point!("audit::reapplied-one");
            let lock = match files {
                Files::Nothing => false,
                // They came back in the place of a later one's.
                Files::Known => again,
                // Of a later one, if the log names their key.
                Files::Other(keys) => keys.is_disjoint(later_keys),
            };
            if lock {
                let _later = locked.entry(tenant.clone()).or_insert(true);
            }
        }
        for tenant in self.doubtful {
            if !is_there(data_dir, &tenant) {
                continue;
            }
            let _later = locked.entry(tenant).or_insert(true);
        }
        let before = control.locked_tenants()?;
        for (tenant, locked) in locked {
            match (before.contains(&tenant), locked) {
                (false, true) => {
                    control.lock_tenant(&tenant)?;
                    tell(EventKind::Lock, EventOutcome::Done, &tenant, AGAIN);
                }
                (true, false) => {
                    control.unlock_tenant(&tenant)?;
                    tell(EventKind::Unlock, EventOutcome::Done, &tenant, AGAIN);
                }
                _ => continue,
            }
            crash_point!("audit::reapplied-one");
        }
        for (tenant, key) in self.revoked {
            if control.revoke_key(&tenant, key)? {
                let said = format!("key {key}; {AGAIN}");
                tell(
                    EventKind::AccessKeyRevoked,
                    EventOutcome::Done,
                    &tenant,
                    &said,
                );
                crash_point!("audit::reapplied-one");
            }
        }
        crash_point!("audit::reapplied");
        Ok(events)
    }
}

/// The event that ends the acceptance of an older control file.
pub(super) fn accepted(found: &RolledBack, deeds: usize) -> Event {
    Event::new(EventKind::Restore, EventOutcome::Done)
        .about(&control::subject())
        .saying(format!(
            "an older control file was accepted; the log held {found}. Done again: {deeds}. Not known any more: access keys made since, usage \
             and due times counted since, and copies of manifests until each tenant is opened"
        ))
}

/// The key that a line about access keys names.
fn named_key(detail: &str) -> Option<KeyId> {
    let named = detail.strip_prefix("key ")?;
    let end = named.find([';', ',']).unwrap_or(named.len());
    named[..end].parse().ok()
}

fn is_there(data_dir: &Path, tenant: &TenantId) -> bool {
    let files = data_dir::of_tenant(data_dir, tenant);
    files.map_or(true, |files| !files.is_empty())
}

/// What stands on the disk under the name of a tenant that was deleted.
enum Files {
    /// Neither a database nor a manifest.
    Nothing,
    /// The very file that the control file knows.
    Known,
    /// Another, with these data keys; none of one whose manifest is lost or unreadable.
    Other(BTreeSet<String>),
}

impl Files {
    fn of(control: &Control, data_dir: &Path, tenant: &TenantId) -> Result<Self, ControlError> {
        let subject = data_dir::subject(tenant);
        let path = data_dir.join(subject.file_name());
        let sealed = match read_manifest(&manifest_path(&path)) {
            Ok(Some(sealed)) => sealed,
            Ok(None) if std::fs::symlink_metadata(&path).is_err() => return Ok(Self::Nothing),
            Ok(None) | Err(_) => return Ok(Self::Other(BTreeSet::new())),
        };
        let copies = control.copies(&subject)?;
        let known = copies
            .all()
            .filter_map(|copy| SealedManifest::parse(copy).ok())
            .any(|copy| copy.claims().file_id() == sealed.claims().file_id());
        if known {
            return Ok(Self::Known);
        }
        let deks = sealed.claims().deks().iter();
        Ok(Self::Other(deks.map(|dek| dek.id.to_string()).collect()))
    }
}

const AGAIN: &str = "done again: the log was ahead of the control file";
