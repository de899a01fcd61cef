//! What belongs to one moment: the catalogue of a snapshot.
//!
//! It is [`Sealed`]. All that a catalogue names it names with its SHA-256, so the MAC covers every
//! byte that is restored, but for manifests, which have MACs of their own under the data keys that
//! they hold.

use std::collections::BTreeSet;

use nimbus_manifests::{Cipher, DekId, FileId, SealedManifest, Subject, TenantId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::run::{is_run, pages};
use super::sealed::{Claims, Sealed, seal};
use super::{is_sha256, limits, sha256};
use crate::control::{self, ArchiveSealer};
use crate::data_dir;
use crate::sqlcipher::UNIT;

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    /// Its number, one more than that of the snapshot before; the first is 1.
    pub number: u64,
    /// The repository that it is in.
    pub repository: Uuid,
    /// When, RFC 3339, UTC.
    pub taken: String,
    /// SHA-256 of the catalogue before; `None` of the first.
    pub previous: Option<String>,
    /// The data keys of the control file that sealed entries before its own did: they seal nothing
    /// any more.
    #[serde(default)]
    pub keys_before: Vec<String>,
    /// The line of the deployment that made it; `None` where that was never restored from a
    /// backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<Uuid>,
    /// The one tenant that it holds; `None` where it holds all.
    pub tenant: Option<String>,
    /// Where shipping into this repository was at its moment; `None` while nothing was shipped.
    pub shipping: Option<ShippedAt>,
    /// The control file.
    pub control: StoredFile,
    /// The audit log's parts, in their order.
    pub audit: Vec<StoredPart>,
    /// The tenants, by their names.
    pub tenants: Vec<StoredFile>,
}

/// Where shipping was at the moment of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShippedAt {
    /// The epoch.
    pub epoch: u64,
    /// The last pack that was formed; what comes after the snapshot is in those that follow.
    pub pack: u64,
    /// Bases from this number on were begun after the snapshot.
    pub base: u32,
    /// Whether shipping began, or began afresh, with this snapshot: nothing leads up to it.
    pub afresh: bool,
}

/// A protected file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredFile {
    /// Whose it is, by its manifest.
    pub subject: String,
    /// Its id.
    pub file_id: String,
    /// Its data key; while a rekey was under way, the first of two.
    pub dek_id: String,
    /// SHA-256 of its manifest, which is the object `keys/<file-id>/<dek-id>/<sha256>`.
    pub manifest: String,
    /// Its length.
    pub bytes: u64,
    /// Where its pages are, a page in the last of those that have it.
    pub runs: Vec<Run>,
    /// Why it is not in the snapshot; `None` where it is.
    pub missing: Option<String>,
    /// How the file stood on the disk; `None` where it was being written, or is no tenant's. A
    /// later snapshot does not read one that stands so again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_disk: Option<String>,
    /// What was committed to it since: not in a catalogue, but at an instant after one.
    #[serde(skip)]
    pub over: Option<FramesOver>,
}

/// What was committed to a file since the pages that are named of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FramesOver {
    /// How long the file was then.
    pub bytes: u64,
    /// Segments, in their order, and how many frames of each count.
    pub segments: Vec<(Piece, u32)>,
}

/// Pages of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The object they are in.
    pub object: String,
    /// Where in it they begin.
    pub offset: u64,
    /// How long they are, with their index.
    pub bytes: u64,
    /// SHA-256 of so many bytes. Older repositories have it; in others the index proves the pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// How many pages.
    pub pages: u32,
    /// SHA-256 of what stands before the pages.
    pub index_sha256: String,
}

/// Bytes of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extent {
    /// The object they are in.
    pub object: String,
    /// Where in it they begin.
    pub offset: u64,
    /// How long they are.
    pub bytes: u64,
}

/// A part of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredPart {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of all of it.
    pub sha256: String,
    /// What it is made of, one after the other.
    pub pieces: Vec<Piece>,
}

/// Bytes of a part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    /// The object they are in.
    pub object: String,
    /// Where in it they begin.
    pub offset: u64,
    /// How long they are.
    pub bytes: u64,
    /// SHA-256 of them.
    pub sha256: String,
    /// How many of the first do not count: the part has them already.
    #[serde(skip)]
    pub skip: u64,
}

/// A catalogue whose MAC was not verified.
pub type SealedCatalogue = Sealed<Catalogue>;

impl Claims for Catalogue {
    const FORMAT: &'static str = "nimbus-snapshot/1";

    fn check(&self) -> Result<(), String> {
        let pieces = self.extents().all(|one| {
            is_object(&one.object)
                && one.bytes <= limits::OBJECT
                && one.offset.checked_add(one.bytes).is_some()
        });
        let mut runs = self.files().flat_map(|file| &file.runs);
        let mut parts = self.audit.iter().flat_map(|part| &part.pieces);
        let pieces =
            pieces && runs.all(Run::has_hashes) && parts.all(|piece| is_sha256(&piece.sha256));
        let order = self
            .tenants
            .windows(2)
            .all(|two| two[0].subject < two[1].subject);
        let log = self.audit.iter().all(|part| {
            data_dir::is_audit_log(&part.name)
                && is_sha256(&part.sha256)
                && part.bytes <= limits::FILE
        });
        let names: BTreeSet<_> = self.audit.iter().map(|part| &part.name).collect();
        let log = log && names.len() == self.audit.len();
        let own = &self.control.dek_id;
        if !are_keys(&self.keys_before) || self.keys_before.contains(own) {
            return Err("the keys before its own are not right".to_owned());
        }
        let taken = self.taken.parse::<jiff::Timestamp>().is_ok();
        let tenant = self.tenant.as_ref();
        if !taken || tenant.is_some_and(|tenant| tenant.parse::<TenantId>().is_err()) {
            return Err("its time, or its tenant, is none".to_owned());
        }
        if !(pieces && order && log) {
            return Err("it names what no repository holds".to_owned());
        }
        for file in self.files() {
            let subject = file.subject()?;
            let is_control = std::ptr::eq(file, &self.control);
            let is_long = file.bytes > limits::FILE;
            let ours = match subject.tenant() {
                Some(tenant) => !is_control && subject == data_dir::subject(tenant),
                None => is_control && subject == control::subject() && file.missing.is_none(),
            };
            let said = file.missing.iter();
            let is_printable = said
                .chain(&file.on_disk)
                .all(|text| !text.contains(char::is_control));
            if !ours || !is_sha256(&file.manifest) || is_long || !is_printable {
                return Err(format!("its entry of {subject} is not right"));
            }
            let _ids = (file.file_id()?, file.dek_id()?);
        }
        Ok(())
    }
}

impl Catalogue {
    /// The text of the catalogue, with its MAC. One that no reader would take is not sealed: what
    /// is wrong with it is the error.
    pub(crate) fn seal(&self, sealer: &ArchiveSealer) -> Result<Vec<u8>, String> {
        self.check()?;
        let ids = (sealer.file_id.to_string(), sealer.dek_id.to_string());
        if ids != (self.control.file_id.clone(), self.control.dek_id.clone()) {
            return Err("its control file is another than the one whose key seals it".to_owned());
        }
        let text = seal(self, sealer);
        match text.len() as u64 <= limits::CATALOGUE {
            true => Ok(text),
            false => Err("it is longer than any catalogue".to_owned()),
        }
    }

    /// All protected files, the control file first.
    pub fn files(&self) -> impl Iterator<Item = &StoredFile> {
        std::iter::once(&self.control).chain(&self.tenants)
    }

    /// Every object that it names, but for manifests, with what is needed of it.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        let runs = self.files().flat_map(|file| &file.runs).map(Run::extent);
        let pieces = self.audit.iter().flat_map(|part| &part.pieces);
        runs.chain(pieces.map(Piece::extent))
    }
}

impl Run {
    /// Its bytes.
    #[must_use]
    pub fn extent(&self) -> Extent {
        Extent {
            object: self.object.clone(),
            offset: self.offset,
            bytes: self.bytes,
        }
    }

    /// Whether these are its bytes.
    pub(super) fn is(&self, object: &[u8]) -> bool {
        match &self.sha256 {
            Some(whole) => sha256(object) == *whole && pages(object).is_some(),
            None => is_run(object, self.pages, &self.index_sha256),
        }
    }

    /// What stands before its pages; `None` where it is too short for so many.
    pub(super) fn head(&self) -> Option<Piece> {
        let pages = u64::from(self.pages) * UNIT as u64;
        Some(Piece {
            object: self.object.clone(),
            offset: self.offset,
            bytes: self.bytes.checked_sub(pages)?,
            sha256: self.index_sha256.clone(),
            skip: 0,
        })
    }

    pub(super) fn has_hashes(&self) -> bool {
        is_sha256(&self.index_sha256) && self.sha256.iter().all(|whole| is_sha256(whole))
    }
}

impl Piece {
    /// Its bytes.
    #[must_use]
    pub fn extent(&self) -> Extent {
        Extent {
            object: self.object.clone(),
            offset: self.offset,
            bytes: self.bytes,
        }
    }
}

impl StoredFile {
    /// Whose it is.
    ///
    /// # Errors
    ///
    /// What is wrong with the entry.
    pub fn subject(&self) -> Result<Subject, String> {
        self.subject
            .parse()
            .map_err(|_| format!("{:?} is no subject", self.subject))
    }

    /// The tenant; `None` of the control file.
    #[must_use]
    pub fn tenant(&self) -> Option<TenantId> {
        self.subject().ok()?.tenant().cloned()
    }

    /// Its cipher.
    pub(super) fn cipher(&self) -> Cipher {
        self.subject()
            .map_or(Cipher::Sqlcipher4, |subject| subject.cipher())
    }

    pub(super) fn file_id(&self) -> Result<FileId, String> {
        self.file_id
            .parse()
            .map_err(|_| format!("{:?} is no file id", self.file_id))
    }

    pub(super) fn dek_id(&self) -> Result<DekId, String> {
        self.dek_id
            .parse()
            .map_err(|_| format!("{:?} is no id of a data key", self.dek_id))
    }

    /// Whether a manifest is one of the file and its data key.
    pub(super) fn is_manifest(&self, sealed: &SealedManifest) -> bool {
        let claims = sealed.claims();
        claims.subject().as_str() == self.subject
            && claims.file_id().to_string() == self.file_id
            && claims.deks()[0].id.to_string() == self.dek_id
    }

    /// Where its manifests are, as many as there are of this data key.
    #[must_use]
    pub fn manifests(&self) -> String {
        format!("keys/{}/{}", self.file_id, self.dek_id)
    }
}

/// Whether these are ids of data keys.
pub(super) fn are_keys(keys: &[String]) -> bool {
    keys.iter().all(|key| key.parse::<DekId>().is_ok())
}

/// Whether an object of pages, or of the audit log, may have this name.
pub(super) fn is_object(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
            && !part.starts_with('.')
    };
    name.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use nimbus_keyproviders::{Dek, OsRandom};

    use super::super::sealed::SealedError;
    use super::*;

    fn file(subject: &str) -> StoredFile {
        StoredFile {
            subject: subject.to_owned(),
            file_id: "0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a10".to_owned(),
            dek_id: "4f1c0a9be2d35577".to_owned(),
            manifest: "a".repeat(64),
            bytes: 4096,
            runs: vec![Run {
                object: "base/x/y".to_owned(),
                offset: 0,
                bytes: 4151,
                sha256: None,
                pages: 1,
                index_sha256: "c".repeat(64),
            }],
            missing: None,
            on_disk: None,
            over: None,
        }
    }

    fn catalogue() -> Catalogue {
        Catalogue {
            number: 7,
            repository: Uuid::nil(),
            taken: "2026-12-01T10:00:00.000Z".to_owned(),
            previous: Some("d".repeat(64)),
            keys_before: vec!["1111222233334444".to_owned()],
            line: None,
            tenant: None,
            shipping: None,
            control: file("db:redb:control:nimbus-control.db"),
            audit: Vec::new(),
            tenants: vec![
                file("db:sqlite:tenant:a:a.sqlite3"),
                file("db:sqlite:tenant:b:b.sqlite3"),
            ],
        }
    }

    fn sealer() -> ArchiveSealer {
        let file_id = catalogue().control.file_id().unwrap();
        let key = Dek::generate(&OsRandom).unwrap().archive_key(&file_id);
        ArchiveSealer {
            key: key.into(),
            file_id,
            dek_id: "4f1c0a9be2d35577".parse().unwrap(),
        }
    }

    #[test]
    fn reads_what_it_writes_and_knows_each_changed_or_missing_byte() {
        let sealer = sealer();
        let text = catalogue().seal(&sealer).unwrap();
        let read = SealedCatalogue::parse(&text).unwrap();
        assert_eq!(read.claims, catalogue());
        assert!(read.is_authentic(&sealer.key));
        for at in 0..text.len() {
            let mut changed = text.clone();
            changed[at] ^= 1;
            let taken =
                SealedCatalogue::parse(&changed).is_ok_and(|read| read.is_authentic(&sealer.key));
            assert!(!taken, "{at}");
            let cut = SealedCatalogue::parse(&text[..at])
                .is_ok_and(|read| read.is_authentic(&sealer.key));
            assert!(!cut, "{at}");
        }
    }

    #[test]
    fn refuses_names_that_lead_elsewhere_and_formats_that_it_does_not_know() {
        for change in [
            (|one: &mut Catalogue| one.tenants[0].runs[0].object = "../a".to_owned())
                as fn(&mut Catalogue),
            |one| one.tenants[0].subject = "db:sqlite:tenant:../a:x".to_owned(),
            |one| one.tenants[0].runs[0].offset = u64::MAX,
            |one| one.tenants[0].bytes = u64::MAX,
            |one| one.tenants.swap(0, 1),
            |one| one.control = one.tenants[0].clone(),
            |one| one.tenants[1] = one.control.clone(),
            |one| {
                one.audit = vec![StoredPart {
                    name: "../../etc/passwd".to_owned(),
                    bytes: 0,
                    sha256: "a".repeat(64),
                    pieces: Vec::new(),
                }]
            },
        ] {
            let mut wrong = catalogue();
            change(&mut wrong);
            assert!(wrong.seal(&sealer()).is_err(), "{wrong:?}");
            // What another wrote is read by the same rules.
            let read = SealedCatalogue::parse(&seal(&wrong, &sealer()));
            assert!(matches!(read, Err(SealedError::Malformed(_))), "{wrong:?}");
        }
        let newer = catalogue().seal(&sealer()).unwrap();
        let newer = String::from_utf8(newer)
            .unwrap()
            .replacen("snapshot/1", "snapshot/2", 1);
        let read = SealedCatalogue::parse(newer.as_bytes()).unwrap_err();
        assert_eq!(read, SealedError::Format("nimbus-snapshot/2".to_owned()));
    }
}
