//! A removal: what leaves the repository. How it leaves, and why nothing goes that anybody refers
//! to, is `removing`'s.

use std::collections::BTreeSet;

use nimbus_manifests::FileId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::catalogue::{Catalogue, are_keys};
use super::is_sha256;
use super::sealed::{Claims, Sealed};

/// A removal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Removal {
    /// Its number, one more than that of the entry before.
    pub(super) number: u64,
    /// The repository that it is in.
    pub(super) repository: Uuid,
    /// When, RFC 3339, UTC.
    pub(super) at: String,
    /// SHA-256 of the entry before; `None` where it was removed and this is the first that is
    /// left.
    pub(super) previous: Option<String>,
    /// As in a catalogue: those of the newest snapshot, whose key seals it.
    #[serde(default)]
    pub(super) keys_before: Vec<String>,
    /// All entries that are removed, by this removal and by those before.
    pub(super) gone: Vec<Gone>,
    /// Entries that stay, and behind which one is gone, so that no other names them.
    #[serde(default)]
    pub(super) kept: Vec<Gone>,
    /// The ids of all files whose keys and pages are removed because their tenants were shredded,
    /// by this removal and by those before.
    pub(super) shredded: Vec<String>,
    /// The objects that this removal removes, besides entries.
    pub(super) objects: Vec<String>,
    /// Up to which pack of epochs all are removed, by this removal and by those before.
    #[serde(default)]
    pub(super) log: Vec<GonePacks>,
}

/// The first packs of an epoch, which are removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GonePacks {
    /// The epoch.
    pub(super) epoch: u64,
    /// The last of them.
    pub(super) pack: u64,
    /// SHA-256 of that one.
    pub(super) sha256: String,
}

/// An entry that is removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Gone {
    /// Its number.
    pub(super) number: u64,
    /// SHA-256 of it.
    pub(super) sha256: String,
}

impl Removal {
    /// Whether it removes anything that the catalogue names.
    pub(super) fn takes_from(&self, catalogue: &Catalogue) -> bool {
        let objects: BTreeSet<&str> = self.objects.iter().map(String::as_str).collect();
        let named = catalogue.extents();
        let mut taken = named.map(|one| objects.contains(one.object.as_str()));
        taken.any(|taken| taken)
            || catalogue.files().any(|file| {
                let manifests = format!("{}/", file.manifests());
                let mut keys = objects.range(manifests.as_str()..);
                self.shredded.contains(&file.file_id)
                    || keys.next().is_some_and(|key| key.starts_with(&manifests))
            })
    }
}

/// A removal whose MAC was not verified.
pub(super) type SealedRemoval = Sealed<Removal>;

impl Claims for Removal {
    const FORMAT: &'static str = "nimbus-removal/1";

    fn check(&self) -> Result<(), String> {
        let order = self
            .gone
            .windows(2)
            .all(|two| two[0].number < two[1].number);
        let mut named = self.gone.iter().chain(&self.kept);
        let gone = named.all(|gone| gone.number < self.number && is_sha256(&gone.sha256));
        let files = self
            .shredded
            .iter()
            .all(|file| file.parse::<FileId>().is_ok());
        let objects = self.objects.iter().all(|object| may_go(object));
        let log = self.log.windows(2).all(|two| two[0].epoch < two[1].epoch)
            && self.log.iter().all(|gone| is_sha256(&gone.sha256));
        let objects = objects && log;
        match order && gone && files && objects && are_keys(&self.keys_before) {
            true => Ok(()),
            false => Err("it removes what no removal does".to_owned()),
        }
    }
}

/// Whether an object of this name is ever removed. Never entries, which are named by their numbers,
/// nor what continuous shipping keeps.
fn may_go(object: &str) -> bool {
    let mut parts = object.split('/');
    let kind = parts.next().unwrap_or_default();
    let is_name = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
    };
    matches!(kind, "base" | "audit" | "keys") && parts.clone().count() > 0 && parts.all(is_name)
}
