//! What was committed in an interval, of all files, in one object.
//!
//! A pack is [`Sealed`], and its data follow behind the third line. All spans that it names of its
//! own data are counted from there, and named with their SHA-256.
//!
//! Frames of one file:
//!
//! ```text
//! magic    "nimbus-frames/1\n"                               16 bytes
//! count    how many frames, big-endian                        4 bytes
//! numbers  per frame the number of its page, big-endian       4 bytes each, in the order of the WAL
//! pages    as they will lie in the file                    4096 bytes each, in the same order
//! ```

use bytes::Bytes;
use nimbus_manifests::{DekId, FileId, Subject};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::catalogue::{Piece, Run, StoredFile};
use super::sealed::{Claims, Sealed, seal};
use super::{is_sha256, limits, sha256};
use crate::clock;
use crate::control::ArchiveSealer;
use crate::data_dir::is_audit_log;
use crate::sqlcipher::UNIT;

/// A pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pack {
    /// The epoch that it is in.
    pub epoch: u64,
    /// Its number in the epoch; the first is 1.
    pub number: u64,
    /// The repository that it is in.
    pub repository: Uuid,
    /// SHA-256 of the pack before; of the epoch's own object, for the first.
    pub previous: String,
    /// The snapshot from which it goes on; `None` where it goes on from the pack before.
    pub anchor: Option<u64>,
    /// The instant from which it goes on, RFC 3339, UTC.
    pub after: String,
    /// The instant up to which it goes. All tenants are of one instant at any time in between.
    pub at: String,
    /// The control file at the end; its runs are only those pages that changed.
    pub control: Option<StoredFile>,
    /// The audit log at the end, if it changed.
    pub audit: Option<PackedLog>,
    /// Manifests that changed.
    pub manifests: Vec<PackedManifest>,
    /// Files that were begun, and whose pages are stored by now.
    pub bases: Vec<PackedBase>,
    /// Tenants that were deleted.
    pub gone: Vec<PackedGone>,
    /// What was committed.
    pub frames: Vec<Segment>,
}

/// The audit log at the end of a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackedLog {
    /// The names of all parts, in their order.
    pub parts: Vec<String>,
    /// Those that changed, or have another name.
    pub changed: Vec<PackedPart>,
}

/// A part of the audit log that changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackedPart {
    /// Its name.
    pub name: String,
    /// The part, by its name before this pack, with which it begins; `None` of a new one.
    pub of: Option<String>,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of all of it.
    pub sha256: String,
    /// What was appended.
    pub added: Option<Span>,
}

/// A manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackedManifest {
    /// Of which file.
    pub subject: String,
    /// Its id.
    pub file_id: String,
    /// Its data keys; two while a rekey is under way.
    pub dek_ids: Vec<String>,
    /// SHA-256 of the manifest: the object `keys/<file-id>/<first dek-id>/<sha256>`.
    pub manifest: String,
}

/// A file whose pages were stored as they were at a moment, and on which frames build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackedBase {
    /// Its number.
    pub base: u32,
    /// The moment, RFC 3339, UTC.
    pub at: String,
    /// The data key that its pages are under.
    pub dek_id: String,
    /// The file.
    pub file: StoredFile,
}

/// A tenant that was deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackedGone {
    /// Which.
    pub subject: String,
    /// When, RFC 3339, UTC.
    pub at: String,
    /// Files of it with a base below this are gone, from the end of the pack on.
    pub before: u32,
}

/// Frames of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Whose.
    pub subject: String,
    /// What they build on.
    pub base: u32,
    /// Where in the data they are.
    pub span: Span,
    /// How many.
    pub frames: u32,
    /// Where commits end: after so many frames of the segment, the pages of the database then, and
    /// the time in milliseconds since 1970.
    pub commits: Vec<(u32, u32, i64)>,
}

/// Bytes of the pack's data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    /// Where they begin.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
    /// SHA-256 of them.
    pub sha256: String,
}

/// A pack whose MAC was not verified.
pub type SealedPack = Sealed<Pack>;

impl Claims for Pack {
    const FORMAT: &'static str = "nimbus-pack/1";

    fn check(&self) -> Result<(), String> {
        let span = |span: &Span| {
            let end = span.offset.checked_add(span.bytes);
            is_sha256(&span.sha256) && end.is_some_and(|end| end <= limits::PACK)
        };
        let wrong = |what: &str| Err(format!("its {what} are not right"));
        let (Some(after), Some(at)) = (clock::ms_of(&self.after), clock::ms_of(&self.at)) else {
            return wrong("times");
        };
        if after > at || !is_sha256(&self.previous) {
            return wrong("times");
        }
        let files = self
            .control
            .iter()
            .chain(self.bases.iter().map(|base| &base.file));
        for file in files {
            let _ids = (file.subject()?, file.file_id()?, file.dek_id()?);
            let is_long = file.bytes > limits::FILE;
            let runs = file.runs.iter().all(|run| {
                super::catalogue::is_object(&run.object)
                    && run.has_hashes()
                    && run.offset.checked_add(run.bytes).is_some()
            });
            if is_long || !runs || !is_sha256(&file.manifest) {
                return wrong("files");
            }
        }
        if let Some(log) = &self.audit {
            let changed = log.changed.iter().all(|part| {
                is_sha256(&part.sha256)
                    && part.bytes <= limits::FILE
                    && part.added.as_ref().is_none_or(span)
                    && log.parts.contains(&part.name)
            });
            if !changed || !log.parts.iter().all(|name| is_audit_log(name)) {
                return wrong("parts of the audit log");
            }
        }
        let is_tenant = |subject: &str| {
            subject
                .parse::<Subject>()
                .is_ok_and(|subject| subject.tenant().is_some())
        };
        let manifests = self.manifests.iter().all(|one| {
            one.subject.parse::<Subject>().is_ok()
                && one.file_id.parse::<FileId>().is_ok()
                && !one.dek_ids.is_empty()
                && one.dek_ids.iter().all(|id| id.parse::<DekId>().is_ok())
                && is_sha256(&one.manifest)
        });
        let bases = self.bases.iter().all(|base| {
            is_tenant(&base.file.subject)
                && base.dek_id.parse::<DekId>().is_ok()
                && clock::ms_of(&base.at).is_some()
        });
        let gone = self
            .gone
            .iter()
            .all(|gone| is_tenant(&gone.subject) && clock::ms_of(&gone.at).is_some());
        let frames = self.frames.iter().all(|one| {
            let ordered = one
                .commits
                .windows(2)
                .all(|two| two[0].0 < two[1].0 && two[0].2 <= two[1].2);
            let last = one.commits.last().map_or(0, |commit| commit.0);
            is_tenant(&one.subject)
                && span(&one.span)
                && one.span.bytes == frames_bytes(one.frames)
                && ordered
                && last <= one.frames
        });
        match (manifests && bases, gone, frames) {
            (true, true, true) => Ok(()),
            _ => wrong("entries"),
        }
    }
}

impl Pack {
    /// The object of a pack.
    #[must_use]
    pub fn name(epoch: u64, number: u64) -> String {
        format!("log/{epoch:010}/{number:010}")
    }

    /// The object, of which `data` is all that its spans name.
    pub(super) fn object(&self, sealer: &ArchiveSealer, data: Data) -> Bytes {
        data.behind(&seal(self, sealer))
    }

    /// Names what is in its own data by the object, behind a head of so many bytes.
    fn place(&mut self, head: u64) {
        let own = Self::name(self.epoch, self.number);
        let files = self
            .control
            .iter_mut()
            .chain(self.bases.iter_mut().map(|base| &mut base.file));
        for run in files.flat_map(|file| &mut file.runs) {
            if run.object == own {
                run.offset = run.offset.saturating_add(head);
            }
        }
        let segments = self.frames.iter_mut().map(|one| &mut one.span);
        let log = self.audit.iter_mut().flat_map(|log| &mut log.changed);
        for span in segments.chain(log.filter_map(|part| part.added.as_mut())) {
            span.offset = span.offset.saturating_add(head);
        }
    }

    /// Bytes of the pack, by the place that they have in its object.
    #[must_use]
    pub fn piece(&self, span: &Span) -> Piece {
        Piece {
            object: Self::name(self.epoch, self.number),
            offset: span.offset,
            bytes: span.bytes,
            sha256: span.sha256.clone(),
            skip: 0,
        }
    }

    /// What it adds to the audit log.
    pub(super) fn added(&self) -> impl Iterator<Item = Piece> {
        let log = self.audit.iter().flat_map(|log| &log.changed);
        log.filter_map(|part| Some(self.piece(part.added.as_ref()?)))
    }

    /// The pages of the control file that are in its own data.
    pub(super) fn own_runs(&self) -> impl Iterator<Item = &Run> {
        let own = Self::name(self.epoch, self.number);
        let runs = self.control.iter().flat_map(|file| &file.runs);
        runs.filter(move |run| run.object == own)
    }

    /// Where its data ends; `None` where it has none.
    pub(super) fn end(&self) -> Option<u64> {
        let frames = self.frames.iter().map(|one| self.piece(&one.span));
        let pieces = frames.chain(self.added()).map(|piece| piece.extent());
        let extents = pieces.chain(self.own_runs().map(Run::extent));
        extents.map(|one| one.offset + one.bytes).max()
    }
}

/// Reads the head of a pack, with which `bytes` begin; all that it names of its data is placed in
/// the object.
///
/// # Errors
///
/// As [`Sealed::parse_head`].
pub(super) fn parse_head(bytes: &[u8]) -> Result<(SealedPack, u64), super::sealed::SealedError> {
    let (mut read, length) = SealedPack::parse_head(bytes)?;
    read.claims.place(length as u64);
    Ok((read, length as u64))
}

/// What the spans of a pack name, while it is put together. Room for the head stands before it:
/// nothing is copied once that is known.
#[derive(Debug)]
pub(super) struct Data {
    room: usize,
    bytes: Vec<u8>,
}

impl Data {
    /// Room for a head, and for so many bytes behind it.
    pub(super) fn new(head: usize, bytes: usize) -> Self {
        let mut all = Vec::with_capacity(head + bytes);
        all.resize(head, 0);
        Self {
            room: head,
            bytes: all,
        }
    }

    pub(super) fn put(&mut self, bytes: &[u8]) -> Span {
        self.put_with(|data| data.extend_from_slice(bytes))
    }

    /// What `write` appends.
    fn put_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Span {
        let begin = self.bytes.len();
        write(&mut self.bytes);
        let written = &self.bytes[begin..];
        Span {
            offset: (begin - self.room) as u64,
            bytes: written.len() as u64,
            sha256: sha256(written),
        }
    }

    /// Where they begin.
    pub(super) fn append(&mut self, bytes: &[u8]) -> u64 {
        let offset = (self.bytes.len() - self.room) as u64;
        self.bytes.extend_from_slice(bytes);
        offset
    }

    /// The same behind `head`.
    fn behind(mut self, head: &[u8]) -> Bytes {
        match self.room.checked_sub(head.len()) {
            Some(begin) => {
                self.bytes[begin..self.room].copy_from_slice(head);
                Bytes::from(self.bytes).slice(begin..)
            }
            None => [head, &self.bytes[self.room..]].concat().into(),
        }
    }
}

/// A frame of a WAL.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    /// Of its page.
    pub(super) number: u32,
    /// Pages of the database, where a commit ends with it; else 0.
    pub(super) pages: u32,
    pub(super) page: &'a [u8],
    /// When it was committed.
    pub(super) at_ms: i64,
}

/// The segment of these frames, whose bytes are put into `data`.
pub(super) fn segment(
    subject: String,
    base: u32,
    frames: &[Frame<'_>],
    data: &mut Data,
) -> Segment {
    let count = u32::try_from(frames.len()).unwrap_or(u32::MAX);
    let span = data.put_with(|bytes| {
        bytes.extend(MAGIC);
        bytes.extend(count.to_be_bytes());
        bytes.extend(frames.iter().flat_map(|frame| frame.number.to_be_bytes()));
        for frame in frames {
            bytes.extend_from_slice(frame.page);
        }
    });
    let ends = (1..).zip(frames).filter(|(_, frame)| frame.pages > 0);
    Segment {
        subject,
        base,
        span,
        frames: count,
        commits: ends
            .map(|(place, frame)| (place, frame.pages, frame.at_ms))
            .collect(),
    }
}

/// How long a segment of so many frames is.
pub(super) fn frames_bytes(count: u32) -> u64 {
    MAGIC.len() as u64 + 4 + u64::from(count) * (4 + UNIT as u64)
}

/// The frames of a segment, each with the number of its page. `None` when it is none, or has
/// another length.
pub(super) fn frames(segment: &[u8]) -> Option<impl Iterator<Item = (u32, &[u8])>> {
    let rest = segment.strip_prefix(MAGIC)?;
    let (count, rest) = rest.split_first_chunk::<4>()?;
    let count = u32::from_be_bytes(*count);
    if segment.len() as u64 != frames_bytes(count) {
        return None;
    }
    let (numbers, pages) = rest.split_at(usize::try_from(count).ok()? * 4);
    let numbers = numbers.chunks_exact(4).map(|number| {
        number
            .iter()
            .fold(0, |all, byte| all << 8 | u32::from(*byte))
    });
    let is_page = numbers.clone().all(|number| number > 0);
    is_page.then(|| numbers.zip(pages.chunks_exact(UNIT)))
}

const MAGIC: &[u8] = b"nimbus-frames/1\n";

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use nimbus_keyproviders::{Dek, OsRandom};

    use super::*;

    pub(super) fn sealer() -> ArchiveSealer {
        let file_id: FileId = "01a22ade-1458-79f1-93cb-b7675b5c6529".parse().unwrap();
        let dek = Dek::generate(&OsRandom).unwrap();
        ArchiveSealer {
            key: Arc::new(dek.archive_key(&file_id)),
            file_id,
            dek_id: "69271c530a77808c".parse().unwrap(),
        }
    }

    fn pack(data: &mut Data) -> Pack {
        let pages = [[1; UNIT], [7; UNIT]];
        let frames = [(1, 0, 0), (7, 9, 1), (1, 10, 0)].map(|(number, pages_then, place)| Frame {
            number,
            pages: pages_then,
            page: &pages[place],
            at_ms: 5000,
        });
        let segment = segment(
            "db:sqlite:tenant:demo:demo.sqlite3".to_owned(),
            3,
            &frames,
            data,
        );
        Pack {
            epoch: 2,
            number: 17,
            repository: Uuid::nil(),
            previous: "0".repeat(64),
            anchor: None,
            after: "1970-01-01T00:00:04.000Z".to_owned(),
            at: "1970-01-01T00:00:06.000Z".to_owned(),
            control: None,
            audit: None,
            manifests: Vec::new(),
            bases: Vec::new(),
            gone: Vec::new(),
            frames: vec![segment],
        }
    }

    #[test]
    fn gives_back_the_frames_and_knows_each_changed_byte() {
        let (mut data, sealer) = (Data::new(4096, 0), sealer());
        let pack = pack(&mut data);
        let object = pack.object(&sealer, data);
        // Where the head has no room before the data, it is the same.
        let mut tight = Data::new(7, 0);
        let again = self::pack(&mut tight);
        assert_eq!(again.object(&sealer, tight), object);
        let (read, head) = parse_head(&object).unwrap();
        assert!(read.is_authentic(&sealer.key));
        let segment = &read.claims.frames[0];
        assert_eq!(segment.commits, [(2, 9, 5000), (3, 10, 5000)]);
        let piece = read.claims.piece(&segment.span);
        assert_eq!(
            (piece.offset, &*piece.object),
            (head, "log/0000000002/0000000017")
        );
        let bytes = &object[usize::try_from(piece.offset).unwrap()..];
        assert_eq!(sha256(bytes), piece.sha256);
        let found: Vec<_> = frames(bytes)
            .unwrap()
            .map(|(number, page)| (number, page[0]))
            .collect();
        assert_eq!(found, [(1, 1), (7, 7), (1, 1)]);
        for length in [0, 15, 19, 21, bytes.len() - 1, bytes.len() - UNIT] {
            assert!(frames(&bytes[..length]).is_none(), "{length}");
        }
        for at in 0..usize::try_from(head).unwrap() {
            let mut changed = object.to_vec();
            changed[at] ^= 1;
            let taken = parse_head(&changed).is_ok_and(|(read, _)| read.is_authentic(&sealer.key));
            assert!(!taken, "{at}");
        }
    }

    #[test]
    fn refuses_what_no_release_writes() {
        for change in [
            (|one: &mut Pack| one.at = "1970-01-01T00:00:03.000Z".to_owned()) as fn(&mut Pack),
            |one| one.at = "soon".to_owned(),
            |one| one.previous = "../x".to_owned(),
            |one| one.frames[0].subject = "db:sqlite:tenant:../a:x".to_owned(),
            |one| one.frames[0].frames = 4,
            |one| one.frames[0].span.offset = u64::MAX,
            |one| one.frames[0].commits[1].0 = 2,
            |one| one.frames[0].commits[1].0 = 4,
            |one| one.frames[0].commits[1].2 = 4999,
        ] {
            let mut data = Data::new(0, 0);
            let mut wrong = pack(&mut data);
            change(&mut wrong);
            let object = wrong.object(&sealer(), data);
            assert!(parse_head(&object).is_err(), "{wrong:?}");
        }
    }
}
