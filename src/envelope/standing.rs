//! How a manifest on the disk stands to the copies that the control file keeps: an authentic
//! manifest may still be an older one.
//!
//! A copy is written before its manifest, so a crash leaves the copy ahead by one step of
//! [`is_next_step`], or announced by a rotation. Whatever else is behind its copy was put there.

use nimbus_manifests::{Manifest, SealedManifest, State};

use super::{Copies, Opened};

/// What the copies say about a manifest, or about its absence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// There is no copy: nothing is known of this file.
    Unknown,
    /// The manifest is its copy, byte for byte.
    Same,
    /// There is a copy, and the manifest, if there is one, is neither that nor older.
    Known,
    /// The manifest is of a rekey whose end the copy has. The copy was written after the swap, or
    /// after it was given up: the file is under the key that the copy keeps, and under the other
    /// one it is an older file.
    Ended(Opened),
    /// The manifest is older than its copy, or of an earlier file of the same name.
    Older,
}

impl Copies {
    /// Whether `there` is older than they are, or of an earlier file of the name.
    pub(crate) fn outdates(&self, there: &SealedManifest) -> bool {
        Standing::of(Some(there), self) == Standing::Older
    }

    /// Whether `there` is one of them, byte for byte, or what one of them takes the place of.
    pub(crate) fn vouch_for(&self, there: &SealedManifest) -> bool {
        self.all().any(|copy| {
            let follows = || {
                SealedManifest::parse(copy)
                    .is_ok_and(|copy| is_next_step(there.claims(), copy.claims()))
            };
            copy == there.as_bytes() || follows()
        })
    }
}

impl Standing {
    /// How `there` stands to `copies`.
    pub(super) fn of(there: Option<&SealedManifest>, copies: &Copies) -> Self {
        if copies.is_empty() {
            return Self::Unknown;
        }
        let Some(there) = there else {
            return Self::Known;
        };
        if copies.all().any(|copy| copy == there.as_bytes()) {
            return Self::Same;
        }
        let parse = |copy: &Option<Vec<u8>>| {
            let copy = copy.as_deref()?;
            // The control file is authentic: what does not parse is of a newer release, and tells
            // nothing.
            SealedManifest::parse(copy).ok()
        };
        let claims = there.claims();
        let older = match (parse(&copies.settled), parse(&copies.announced)) {
            (Some(settled), _) => is_older(claims, settled.claims()),
            (None, Some(announced)) => {
                is_older(claims, announced.claims()) && !precedes(claims, announced.claims())
            }
            (None, None) => false,
        };
        if older {
            return Self::Older;
        }
        let ended = parse(&copies.settled).and_then(|copy| ends_rekey(claims, copy.claims()));
        ended.map_or(Self::Known, Self::Ended)
    }
}

/// Which key the rekey of `there` ended with, if `copy` is what its end wrote.
fn ends_rekey(there: &Manifest, copy: &Manifest) -> Option<Opened> {
    if there.state() != State::Rekeying {
        return None;
    }
    let ends = |opened: &Opened| there.settled(opened.kept()).as_ref() == Ok(copy);
    [Opened::First, Opened::Next].into_iter().find(ends)
}

/// Whether `copy` is what ends the creation of `there`.
pub(super) fn ends(there: &SealedManifest, copy: &[u8]) -> bool {
    let copy = SealedManifest::parse(copy);
    there.claims().state() == State::New
        && copy.is_ok_and(|copy| is_next_step(there.claims(), copy.claims()))
}

fn is_older(there: &Manifest, copy: &Manifest) -> bool {
    if there.file_id() != copy.file_id() {
        // Another file of the same name: the later one counts. Of one that was never finished,
        // nothing proves that it came later.
        return there.state() == State::New || there.created() <= copy.created();
    }
    if is_next_step(there, copy) {
        return false;
    }
    match there.state() {
        // Never mirrored itself: `rotate-kek` may have rewritten it past the copy of a creation
        // that was cut short.
        State::New => there.revision() < copy.revision(),
        State::Ready | State::Rekeying => there.revision() <= copy.revision(),
    }
}

/// Whether `copy` is what Nimbus writes next after `there`, without any change of a wrap: the
/// states between a copy and its manifest.
fn is_next_step(there: &Manifest, copy: &Manifest) -> bool {
    match there.state() {
        State::New | State::Rekeying => {
            (0..there.deks().len()).any(|kept| there.settled(kept).as_ref() == Ok(copy))
        }
        State::Ready => {
            copy.state() == State::Rekeying
                && Some(copy.revision()) == there.revision().checked_add(1)
                && copy.deks().first() == there.deks().first()
        }
    }
}

/// Whether `announced` is a rotation's rewrap of `there`.
fn precedes(there: &Manifest, announced: &Manifest) -> bool {
    let ids =
        |manifest: &Manifest| -> Vec<_> { manifest.deks().iter().map(|dek| dek.id).collect() };
    there.file_id() == announced.file_id()
        && there.state() == announced.state()
        && Some(announced.revision()) == there.revision().checked_add(1)
        && ids(there) == ids(announced)
}
