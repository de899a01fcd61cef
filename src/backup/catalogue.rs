//! What belongs to one moment: the catalogue of a snapshot.
//!
//! ```text
//! nimbus-snapshot/1
//! {"number":…,…}                                            one line of JSON
//! mac: <control file-id> <dek-id> <base64 of 32 bytes>
//! ```
//!
//! The MAC is HMAC-SHA-256 (RFC 2104) over every byte before its base64, under the archive key of the control file's data key. All that a
//! catalogue names it names with its SHA-256, so the MAC covers every byte that is restored, but for manifests, which have MACs of their own
//! under the data keys that they hold.

use data_encoding::BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use nimbus_keyproviders::ArchiveKey;
use nimbus_manifests::{Cipher, DekId, FileId, Subject, TenantId};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use uuid::Uuid;

use super::is_sha256;
use crate::control::ArchiveSealer;
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
    /// The one tenant that it holds; `None` where it holds all.
    pub tenant: Option<String>,
    /// The control file.
    pub control: StoredFile,
    /// The audit log's parts, in their order.
    pub audit: Vec<StoredPart>,
    /// The tenants, by their names.
    pub tenants: Vec<StoredFile>,
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
    /// SHA-256 of so many bytes.
    pub sha256: String,
    /// How many pages.
    pub pages: u32,
    /// SHA-256 of what stands before the pages.
    pub index_sha256: String,
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
}

/// Why a catalogue cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogueError {
    /// Another format.
    #[error("its format is {0}")]
    Format(String),
    /// It is none.
    #[error("{0}")]
    Malformed(String),
}

/// A catalogue whose MAC was not verified.
#[derive(Debug, Clone)]
pub struct SealedCatalogue {
    /// What it says.
    pub claims: Catalogue,
    /// The control file whose data key it is sealed with.
    pub file_id: FileId,
    /// That data key.
    pub dek_id: DekId,
    text: Vec<u8>,
    mac: Vec<u8>,
}

impl Catalogue {
    /// The text of the catalogue, with its MAC.
    pub(crate) fn seal(&self, sealer: &ArchiveSealer) -> Vec<u8> {
        let body = serde_json::to_string(self).expect("strings and numbers are JSON");
        let mut text = format!(
            "{FORMAT}\n{body}\nmac: {} {} ",
            sealer.file_id, sealer.dek_id
        );
        let mac = mac(&sealer.key, text.as_bytes()).finalize().into_bytes();
        text.push_str(&BASE64.encode(&mac));
        text.push('\n');
        text.into_bytes()
    }

    /// All protected files, the control file first.
    pub fn files(&self) -> impl Iterator<Item = &StoredFile> {
        std::iter::once(&self.control).chain(&self.tenants)
    }

    /// Every object that it names, but for manifests, with what is needed of it.
    pub fn spans(&self) -> impl Iterator<Item = Piece> + '_ {
        let runs = self.files().flat_map(|file| &file.runs).map(|run| Piece {
            object: run.object.clone(),
            offset: run.offset,
            bytes: run.bytes,
            sha256: run.sha256.clone(),
        });
        runs.chain(self.audit.iter().flat_map(|part| part.pieces.clone()))
    }

    /// Refuses what no release writes.
    fn check(&self) -> Result<(), String> {
        let pieces = self.spans().all(|span| {
            is_object(&span.object)
                && is_sha256(&span.sha256)
                && span.offset.checked_add(span.bytes).is_some()
        });
        let order = self
            .tenants
            .windows(2)
            .all(|two| two[0].subject < two[1].subject);
        let log = self
            .audit
            .iter()
            .all(|part| is_log_name(&part.name) && is_sha256(&part.sha256));
        if !(pieces && order && log) {
            return Err("it names what no repository holds".to_owned());
        }
        for file in self.files() {
            let subject = file.subject()?;
            let is_control = std::ptr::eq(file, &self.control);
            let is_long = file.bytes > u64::from(u32::MAX) * UNIT as u64;
            if subject.tenant().is_none() != is_control || !is_sha256(&file.manifest) || is_long {
                return Err(format!("its entry of {subject} is not right"));
            }
            let _ids = (file.file_id()?, file.dek_id()?);
        }
        Ok(())
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

    fn file_id(&self) -> Result<FileId, String> {
        self.file_id
            .parse()
            .map_err(|_| format!("{:?} is no file id", self.file_id))
    }

    fn dek_id(&self) -> Result<DekId, String> {
        self.dek_id
            .parse()
            .map_err(|_| format!("{:?} is no id of a data key", self.dek_id))
    }

    /// Where its manifests are, as many as there are of this data key.
    #[must_use]
    pub fn manifests(&self) -> String {
        format!("keys/{}/{}", self.file_id, self.dek_id)
    }
}

impl SealedCatalogue {
    /// Reads a catalogue.
    ///
    /// # Errors
    ///
    /// [`CatalogueError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, CatalogueError> {
        let malformed = |why: &str| CatalogueError::Malformed(why.to_owned());
        let text = std::str::from_utf8(bytes).map_err(|_| malformed("it is not text"))?;
        let (format, rest) = text
            .split_once('\n')
            .ok_or_else(|| malformed("it is cut short"))?;
        if format != FORMAT {
            return Err(match format.starts_with("nimbus-snapshot/") {
                true => CatalogueError::Format(format.to_owned()),
                false => malformed("it is no catalogue"),
            });
        }
        let (body, rest) = rest
            .split_once('\n')
            .ok_or_else(|| malformed("it is cut short"))?;
        let seal = rest
            .strip_prefix("mac: ")
            .and_then(|rest| rest.strip_suffix('\n'));
        let seal = seal.ok_or_else(|| malformed("its MAC is cut short"))?;
        let [file_id, dek_id, mac] = seal.split(' ').collect::<Vec<_>>()[..] else {
            return Err(malformed("its MAC is not right"));
        };
        let wrong = |_| malformed("its MAC is not right");
        let claims: Catalogue = serde_json::from_str(body)
            .map_err(|error| CatalogueError::Malformed(error.to_string()))?;
        claims.check().map_err(CatalogueError::Malformed)?;
        Ok(Self {
            file_id: file_id.parse().map_err(wrong)?,
            dek_id: dek_id
                .parse()
                .map_err(|_| malformed("its MAC is not right"))?,
            text: text.as_bytes()[..text.len() - mac.len() - 1].to_vec(),
            mac: BASE64
                .decode(mac.as_bytes())
                .map_err(|_| malformed("its MAC is not right"))?,
            claims,
        })
    }

    /// Whether the MAC is right, in constant time.
    #[must_use]
    pub fn is_authentic(&self, key: &ArchiveKey) -> bool {
        mac(key, &self.text).verify_slice(&self.mac).is_ok()
    }
}

fn mac(key: &ArchiveKey, text: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose()).expect("HMAC takes any key");
    mac.update(text);
    mac
}

/// Whether an object of pages, or of the audit log, may have this name.
fn is_object(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
            && !part.starts_with('.')
    };
    name.split('/').all(part)
}

/// Whether a part of the audit log may have this name.
fn is_log_name(name: &str) -> bool {
    let number = name
        .strip_prefix("nimbus-audit.")
        .and_then(|rest| rest.strip_suffix(".log"));
    name == crate::audit::FILE_NAME
        || number.is_some_and(|number| {
            number.len() >= 12 && number.bytes().all(|byte| byte.is_ascii_digit())
        })
}

const FORMAT: &str = "nimbus-snapshot/1";

#[cfg(test)]
mod tests {
    use nimbus_keyproviders::{Dek, OsRandom};

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
                sha256: "b".repeat(64),
                pages: 1,
                index_sha256: "c".repeat(64),
            }],
            missing: None,
        }
    }

    fn catalogue() -> Catalogue {
        Catalogue {
            number: 7,
            repository: Uuid::nil(),
            taken: "2026-12-01T10:00:00.000Z".to_owned(),
            previous: Some("d".repeat(64)),
            tenant: None,
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
        let text = catalogue().seal(&sealer);
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
            let read = SealedCatalogue::parse(&wrong.seal(&sealer()));
            assert!(
                matches!(read, Err(CatalogueError::Malformed(_))),
                "{wrong:?}"
            );
        }
        let newer = catalogue().seal(&sealer());
        let newer = String::from_utf8(newer)
            .unwrap()
            .replacen("snapshot/1", "snapshot/2", 1);
        let read = SealedCatalogue::parse(newer.as_bytes()).unwrap_err();
        assert_eq!(read, CatalogueError::Format("nimbus-snapshot/2".to_owned()));
    }
}
