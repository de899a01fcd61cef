//! Which pages of a file the repository does not have.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use nimbus_manifests::Cipher;
use tokio::sync::mpsc;

use super::catalogue::Run;
use super::run::{Entry, Index, RunBuilder, Version, version};
use crate::envelope::PLAIN_SQLITE;
use crate::sqlcipher::{Tag, UNIT, tag};
use crate::tenants::sqlite::Captured;

/// Where the bytes of a file come from.
#[derive(Clone)]
pub(super) enum Source {
    Tenant(Arc<Mutex<Captured>>),
    Bytes(Arc<Vec<u8>>),
}

impl Source {
    /// How the file stands on the disk, where that says what is in it.
    pub(super) fn on_disk(&self) -> Option<String> {
        match self {
            Self::Tenant(captured) => {
                let captured = captured.lock().unwrap_or_else(PoisonError::into_inner);
                captured.pages.on_disk()
            }
            Self::Bytes(_) => None,
        }
    }

    /// How long the file is.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Tenant(captured) => {
                let captured = captured.lock().unwrap_or_else(PoisonError::into_inner);
                u64::from(captured.pages.pages()) * UNIT as u64
            }
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }
}

/// The pages that the repository has of a file.
pub(super) struct StoredPages {
    /// By number: which run has the page last, and by what it is known.
    pages: Vec<Option<(u32, Known)>>,
    runs: Vec<Run>,
}

impl StoredPages {
    /// None.
    pub(super) fn none() -> Self {
        Self {
            pages: Vec::new(),
            runs: Vec::new(),
        }
    }

    /// Those of a file with so many bytes, which these runs make.
    pub(super) fn of(runs: &[Run], bytes: u64) -> Self {
        let count = usize::try_from(bytes.div_ceil(UNIT as u64)).unwrap_or(0);
        Self {
            pages: (0..=count).map(|_| None).collect(),
            runs: runs.to_vec(),
        }
    }

    /// Takes over what the index of the run at `place` says, which lies over those before. Tags are
    /// taken at their word where `by_tag` says so.
    pub(super) fn take(&mut self, place: u32, index: &Index<'_>, by_tag: impl Fn(u32) -> bool) {
        for Entry {
            number,
            version,
            tag,
        } in index.entries()
        {
            let known = match tag.filter(|_| by_tag(number)) {
                Some(tag) => Known::Tag(tag),
                None => Known::Version(version),
            };
            if let Some(page) = self.pages.get_mut(number as usize) {
                *page = Some((place, known));
            }
        }
    }
}

/// By what a page is known that is stored.
enum Known {
    Tag(Tag),
    Version(Version),
}

impl Known {
    /// Whether `page` is the one that is stored.
    fn is(&self, page: &[u8]) -> bool {
        match self {
            Self::Tag(known) => *known == tag(page),
            Self::Version(known) => *known == version(page),
        }
    }
}

/// Whether a page is hashed this time although its tag is known: one that was wrong when it was
/// stored, and has the tag of the right one, is found so after as many snapshots at the latest.
pub(super) fn is_due(number: u32, turn: u64) -> bool {
    (u64::from(number) + turn).is_multiple_of(each_hashed_within())
}

/// A prime: entries that take every second number leave no page out.
fn each_hashed_within() -> u64 {
    ::fail::fail_point!("backup::each-hashed-within", |_| 2);
    31
}

/// Reads a file and sends the pages that are not known. Answers its length, and the known runs that
/// still count. Blocks.
pub(super) fn read_changes(
    source: &Source,
    cipher: Cipher,
    known: StoredPages,
    sender: &mpsc::Sender<RunBuilder>,
    tell: &dyn Fn(u64) -> bool,
) -> io::Result<(u64, Vec<Run>)> {
    let bytes = source.bytes();
    let count = u32::try_from(bytes.div_ceil(UNIT as u64)).map_err(io::Error::other)?;
    let mut counted = vec![false; known.runs.len()];
    let builder = || match has_tags(cipher) {
        true => RunBuilder::tagged(),
        false => RunBuilder::default(),
    };
    let mut run = builder();
    let gone = |_| io::Error::from(io::ErrorKind::Interrupted);
    let mut chunk = vec![0; UNIT * CHUNK as usize];
    let mut first = 1;
    while first <= count {
        let pages = CHUNK.min(count - first + 1);
        let chunk = &mut chunk[..UNIT * pages as usize];
        match source {
            Source::Tenant(captured) => {
                let captured = captured.lock().unwrap_or_else(PoisonError::into_inner);
                captured.pages.read(first, chunk)?;
            }
            Source::Bytes(all) => {
                let at = (first as usize - 1) * UNIT;
                let there = &all[at..all.len().min(at + chunk.len())];
                chunk.fill(0);
                chunk[..there.len()].copy_from_slice(there);
            }
        }
        for (number, page) in (first..).zip(chunk.chunks_exact(UNIT)) {
            if number == 1 && cipher == Cipher::Sqlcipher4 && page.starts_with(PLAIN_SQLITE) {
                return Err(io::Error::other("its first page is in plaintext"));
            }
            match known.pages.get(number as usize) {
                Some(Some((place, known))) if known.is(page) => counted[*place as usize] = true,
                _ => run.push(number, &version(page), page, count - number + 1),
            }
            if run.is_full() {
                let full = std::mem::replace(&mut run, builder());
                sender.blocking_send(full).map_err(gone)?;
            }
        }
        if !tell(chunk.len() as u64) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        first += pages;
    }
    if run.count() > 0 {
        sender.blocking_send(run).map_err(gone)?;
    }
    let runs = known.runs.into_iter().zip(counted);
    let runs = runs.filter(|(_, counts)| *counts).map(|(run, _)| run);
    Ok((bytes, runs.collect()))
}

/// Whether pages have tags; tests make snapshots as they were before.
fn has_tags(cipher: Cipher) -> bool {
    ::fail::fail_point!("backup::no-tags", |_| false);
    cipher == Cipher::Sqlcipher4
}

/// Pages that are read at a time. To read their tags alone, 80 bytes of each page, takes as long: a
/// call costs as much as 4 KiB.
const CHUNK: u32 = 256;
