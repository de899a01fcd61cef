//! Repeats on an older control file what the log says was done since it was copied.
//!
//! The actions run before the head moves, and each can be repeated: a crash leaves a control file
//! that is still older than its log. Lines that cannot be verified may be forged: they only take
//! rights away, and never delete anything.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use nimbus_manifests::{Subject, TenantId};

use super::line::Line;

use crate::control::{self, AccessKeyId, Control, ControlError};
use crate::data_dir;
use crate::envelope::{Event, EventKind, EventOutcome, manifest_path, read_manifest};
use crate::failpoints::crash_point;
use crate::pluralize::pluralize;

/// A line beyond the head.
#[derive(Debug)]
pub(super) struct BeyondLine {
    pub(super) line: Line,
    /// Whether it goes on from the head, line by line, and its MAC is right.
    pub(super) proven: bool,
}

/// Actions to repeat.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Deeds {
    revoked: BTreeSet<(TenantId, AccessKeyId)>,
    /// Whether each was locked at the end.
    locked: BTreeMap<TenantId, bool>,
    /// What an older control file knows of these is of a tenant that has ended; and the data keys
    /// that files of the name had later.
    gone: BTreeMap<TenantId, BTreeSet<String>>,
    /// Said to be deleted or shredded by a line that proves nothing, or by one that does not say
    /// that it was done.
    doubtful: BTreeSet<TenantId>,
    /// The control file was made anew: there is nothing in it that could be forgotten or revoked.
    blank: bool,
}

impl Deeds {
    /// What these lines say.
    pub(super) fn of(lines: &[BeyondLine]) -> Self {
        let mut deeds = Self::default();
        for beyond in lines {
            deeds.take(beyond);
        }
        deeds
    }

    /// What the log of a lost control file says to the one that was made in its place,
    /// which has locked nobody and knows no key: nothing of it is proven, and all of it can only
    /// take rights away.
    pub(super) fn of_lost(lines: Vec<Line>) -> Self {
        let mut deeds = Self {
            blank: true,
            ..Self::default()
        };
        for line in lines {
            deeds.take(&BeyondLine { line, proven: true });
        }
        deeds.revoked.clear();
        deeds
    }

    /// The tenants that lines beyond the head say were deleted or shredded, and nothing was created
    /// under their names since.
    pub(super) fn deleted(lines: &[BeyondLine]) -> BTreeSet<TenantId> {
        let mut deleted = BTreeSet::new();
        for beyond in lines {
            let subject = beyond.line.subject.as_ref();
            let subject = subject.and_then(|text| text.parse::<Subject>().ok());
            let Some(tenant) = subject.and_then(|subject| subject.tenant().cloned()) else {
                continue;
            };
            match (beyond.line.event.as_str(), beyond.line.outcome.as_str()) {
                ("delete" | "shred", "done") => drop(deleted.insert(tenant)),
                ("create" | "open" | "migrate", "done") => drop(deleted.remove(&tenant)),
                _ => {}
            }
        }
        deleted
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
                // Begun is enough: whoever asked for it wanted the key to count no more. One that
                // failed takes nothing back: of two that were asked for at once, one fails.
                if matches!(outcome, "begun" | "done") {
                    self.revoked.insert(key);
                }
            }
            ("lock", "done") => drop(self.locked.insert(tenant, true)),
            ("unlock", "done") if proven => {
                self.doubtful.remove(&tenant);
                self.locked.insert(tenant, false);
            }
            ("delete" | "shred", "done") if proven => self.end(tenant),
            // It may have ended later, without a line: a start finishes what a kill cut short. Or
            // it failed, and the tenant is there.
            ("delete" | "shred", _) => drop(self.doubtful.insert(tenant)),
            (event, "begun" | "done") if proven => {
                // Nothing is created under the name of one that is there.
                let ended = self.gone.contains_key(&tenant) && !self.doubtful.contains(&tenant);
                if event == "create" && !self.blank && !ended {
                    self.end(tenant.clone());
                }
                if let Some(keys) = self.gone.get_mut(&tenant) {
                    keys.extend(line.deks.iter().cloned());
                }
            }
            _ => {}
        }
    }

    /// What was said so far is of a tenant that has ended.
    fn end(&mut self, tenant: TenantId) {
        self.revoked.retain(|(of, _)| *of != tenant);
        self.locked.remove(&tenant);
        self.doubtful.remove(&tenant);
        drop(self.gone.insert(tenant, BTreeSet::new()));
    }

    /// With the deletions that the older control file has under way: they may have ended since, and
    /// a later tenant be there.
    pub(super) fn and_pending(mut self, pending: Vec<TenantId>) -> Self {
        for tenant in pending {
            self.gone.entry(tenant).or_default();
        }
        self
    }

    /// The same without what ends tenants or gives rights back: for lines that a crash left beyond
    /// the head.
    pub(super) fn restrictive(mut self) -> Self {
        self.locked.retain(|_, locked| *locked);
        Self {
            revoked: self.revoked,
            locked: self.locked,
            ..Self::default()
        }
    }

    /// Does them; returns the events that record the changes. Blocks.
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
        let mut came_back = BTreeSet::new();
        for (tenant, later_keys) in &self.gone {
            if !self.blank {
                control.finish_delete(tenant)?;
                crash_point!("audit::reapplied-one");
            }
            // Of a later tenant, or of a restored one, the log names the data key.
            if keys_there(data_dir, tenant).is_some_and(|keys| keys.is_disjoint(later_keys)) {
                locked.entry(tenant.clone()).or_insert(true);
                came_back.insert(tenant);
            }
        }
        for tenant in self.doubtful {
            if !is_there(data_dir, &tenant) {
                continue;
            }
            locked.insert(tenant, true);
        }
        let before = control.locked_tenants()?;
        for (tenant, locked) in locked {
            match (before.contains(&tenant), locked) {
                (false, true) => {
                    control.lock_tenant(&tenant)?;
                    let said = match came_back.contains(&tenant) {
                        true => came_back_says(&tenant),
                        false if self.blank => FROM_THE_LOST.to_owned(),
                        false => AGAIN.to_owned(),
                    };
                    tell(EventKind::Lock, EventOutcome::Done, &tenant, &said);
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

/// What was repeated, as text.
pub(super) fn describe(event: &Event) -> String {
    let subject = event.subject.as_ref().map(ToString::to_string);
    let tenant = event.subject.as_ref().and_then(Subject::tenant);
    let name = tenant.map_or(subject, |tenant| Some(format!("tenant {tenant}")));
    format!(
        "{} {}: {}",
        event.kind.as_str(),
        name.unwrap_or_default(),
        event.detail.as_deref().unwrap_or_default()
    )
}

/// The event for a control file that was made in place of a lost one.
pub(super) fn made_anew(deeds: usize) -> Event {
    Event::new(EventKind::Restore, EventOutcome::Done)
        .about(&control::subject())
        .saying(format!(
            "the control file was gone, and a new one was made. Locked again by the log that was beside it: {}. Not known any more: access keys, \
             usage and due times, and copies of manifests until each tenant is opened",
            pluralize(deeds, "tenant")
        ))
}

/// The key that a line about access keys names.
fn named_key(detail: &str) -> Option<AccessKeyId> {
    let named = detail.strip_prefix("key ")?;
    let end = named.find([';', ',']).unwrap_or(named.len());
    named[..end].parse().ok()
}

fn is_there(data_dir: &Path, tenant: &TenantId) -> bool {
    let files = data_dir::of_tenant(data_dir, tenant);
    files.map_or(true, |files| !files.is_empty())
}

/// The data keys of what stands under this name, by a manifest that nobody has verified: one that
/// lies does not open. `None` when there is neither a database nor a manifest, and no key where the
/// manifest is lost or unreadable.
fn keys_there(data_dir: &Path, tenant: &TenantId) -> Option<BTreeSet<String>> {
    let path = data_dir.join(data_dir::subject(tenant).file_name());
    match read_manifest(&manifest_path(&path)) {
        Ok(Some(sealed)) => {
            let deks = sealed.claims().deks().iter();
            Some(deks.map(|dek| dek.id.to_string()).collect())
        }
        Ok(None) if std::fs::symlink_metadata(&path).is_err() => None,
        Ok(None) | Err(_) => Some(BTreeSet::new()),
    }
}

/// Says what to do with files that came back; on the error stream as well.
fn came_back_says(tenant: &TenantId) -> String {
    let said = format!(
        "the log says that it was deleted, but there are files of it: `nimbus encryption shred --tenant-id {tenant}` deletes them, `nimbus \
         encryption unlock --tenant-id {tenant}` serves them"
    );
    tracing::warn!(%tenant, "locked: {said}");
    said
}

const FROM_THE_LOST: &str = "locked again: the control file was gone, and the log beside it says that the tenant was locked";
const AGAIN: &str = "done again: the log was ahead of the control file";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A proven line about the tenant `acme`.
    fn line(event: &str, outcome: &str, deks: &[&str], detail: Option<&str>) -> BeyondLine {
        let line = json!({
            "seq": 1, "time": "2026-01-01T00:00:00Z", "event": event, "outcome": outcome,
            "subject": data_dir::subject(&acme()).to_string(), "deks": deks, "keys": [],
            "actor": "nimbus", "detail": detail, "prev": "", "key": "", "mac": "",
        });
        let line = serde_json::from_value(line).unwrap();
        BeyondLine { line, proven: true }
    }

    fn acme() -> TenantId {
        "acme".parse().unwrap()
    }

    #[test]
    fn of_two_revocations_at_once_the_one_that_fails_takes_nothing_back() {
        let key = crate::control::AccessKey::draw(&nimbus_keyproviders::OsRandom)
            .unwrap()
            .id();
        let detail = format!("key {key}");
        let said = |outcome| line("access-key-revoked", outcome, &[], Some(&detail));
        let deeds = Deeds::of(&[said("begun"), said("begun"), said("done"), said("failed")]);
        assert!(deeds.revoked.contains(&(acme(), key)));
    }

    #[test]
    fn a_deletion_that_failed_ends_no_lock_and_no_tenant() {
        for event in ["shred", "delete"] {
            let deeds = Deeds::of(&[
                line("lock", "done", &[], None),
                line(event, "begun", &[], None),
                line(event, "failed", &[], None),
                line("export", "begun", &["dek"], None),
            ]);
            assert_eq!(deeds.locked.get(&acme()), Some(&true));
            assert!(deeds.gone.is_empty() && deeds.doubtful.contains(&acme()));
        }
        let deeds = Deeds::of(&[
            line("lock", "done", &[], None),
            line("delete", "begun", &[], None),
            line("create", "done", &["later"], None),
        ]);
        assert!(deeds.locked.is_empty() && deeds.doubtful.is_empty());
        assert!(deeds.gone[&acme()].contains("later"));
    }
}
