//! Pages of one file in one object.
//!
//! ```text
//! magic  "nimbus-pages/1\n"                                  15 bytes
//! count  how many pages, big-endian                           4 bytes
//! index  per page: number 4 (big-endian) │ version 32        36 bytes each, numbers ascending
//! pages  as they lie in the file                           4096 bytes each, in the order of the index
//! ```
//!
//! A page's version says whether the page changed: its SHA-256. IV and MAC of a SQLCipher page would not do: a page that was read wrong has those
//! of the right one, and would be taken for it by every later snapshot.
//!
//! The SHA-256 of what stands before the pages therefore proves all of the object, and names it: each byte is hashed once.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::sha256;
use crate::sqlcipher::UNIT;

/// What tells one state of a page from another.
pub(super) type Version = [u8; 32];

/// The version of a page.
pub(super) fn version(page: &[u8]) -> Version {
    Sha256::digest(page).into()
}

/// Pages that are collected for an object.
#[derive(Debug, Default)]
pub(super) struct RunBuilder {
    index: Vec<u8>,
    /// Room for the longest head, and the pages: nothing is moved once the head is known.
    object: Vec<u8>,
    count: u32,
}

/// An object, and what proves it.
#[derive(Debug)]
pub(super) struct FinishedRun {
    pub(super) object: Bytes,
    pub(super) pages: u32,
    /// SHA-256 of what stands before the pages.
    pub(super) index_sha256: String,
}

impl RunBuilder {
    /// Adds a page, of at most `left` that may still come; its number is larger than those before.
    pub(super) fn push(&mut self, number: u32, version: &Version, page: &[u8], left: u32) {
        if self.object.is_empty() {
            let pages = left.min(MOST_PAGES) as usize;
            self.object.reserve_exact(LONGEST_HEAD + pages * UNIT);
            self.object.resize(LONGEST_HEAD, 0);
        }
        self.index.extend(number.to_be_bytes());
        self.index.extend(version);
        self.object.extend_from_slice(page);
        self.count += 1;
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    pub(super) fn is_full(&self) -> bool {
        self.count >= MOST_PAGES
    }

    /// The object. At least one page was added.
    pub(super) fn finish(self) -> FinishedRun {
        let mut object = self.object;
        let begin = LONGEST_HEAD - HEAD - self.index.len();
        let (head, index) = object[begin..LONGEST_HEAD].split_at_mut(HEAD);
        head[..MAGIC.len()].copy_from_slice(MAGIC);
        head[MAGIC.len()..].copy_from_slice(&self.count.to_be_bytes());
        index.copy_from_slice(&self.index);
        let index_sha256 = sha256(&object[begin..LONGEST_HEAD]);
        FinishedRun {
            object: Bytes::from(object).slice(begin..),
            pages: self.count,
            index_sha256,
        }
    }
}

/// The length of what stands before the pages of an object with so many.
pub(super) fn index_bytes(count: u32) -> u64 {
    HEAD as u64 + u64::from(count) * ENTRY as u64
}

/// The index of an object, of which at least that part was read. `None` when it is none.
pub(super) fn index(object: &[u8]) -> Option<impl Iterator<Item = (u32, Version)> + '_> {
    let rest = object.strip_prefix(MAGIC)?;
    let (count, rest) = rest.split_first_chunk::<4>()?;
    let count = usize::try_from(u32::from_be_bytes(*count)).ok()?;
    let index = rest.get(..count.checked_mul(ENTRY)?)?;
    let mut before = 0;
    for entry in index.chunks_exact(ENTRY) {
        let number = number(entry);
        if number <= before {
            return None;
        }
        before = number;
    }
    Some(index.chunks_exact(ENTRY).map(|entry| {
        let mut version = [0; 32];
        version.copy_from_slice(&entry[4..]);
        (number(entry), version)
    }))
}

/// Whether an object holds so many pages, and exactly those that the SHA-256 of its index says.
pub(super) fn is_run(object: &[u8], count: u32, index_sha256: &str) -> bool {
    let head = usize::try_from(index_bytes(count))
        .ok()
        .and_then(|end| object.split_at_checked(end));
    let Some((head, pages)) = head.filter(|(head, _)| sha256(head) == index_sha256) else {
        return false;
    };
    let Some(index) = index(head).map(Iterator::collect::<Vec<_>>) else {
        return false;
    };
    let pages = pages.chunks(UNIT);
    let lengths = (pages.len(), index.len());
    lengths == (count as usize, count as usize)
        && pages
            .zip(index)
            .all(|(page, (_, found))| version(page) == found)
}

/// The pages of an object, those that follow one another in the file together, with the number of the first. `None` when it is none, or has
/// another length.
pub(super) fn stretches(object: &[u8]) -> Option<Vec<(u32, &[u8])>> {
    let numbers: Vec<u32> = index(object)?.map(|(number, _)| number).collect();
    let pages = object.get(HEAD + numbers.len() * ENTRY..)?;
    if pages.len() != numbers.len() * UNIT {
        return None;
    }
    let mut rest = pages;
    let stretches = numbers.chunk_by(|one, next| one + 1 == *next);
    let stretch = |numbers: &[u32]| {
        let (these, others) = rest.split_at(numbers.len() * UNIT);
        rest = others;
        (numbers[0], these)
    };
    Some(stretches.map(stretch).collect())
}

/// The pages of an object, each with its number. `None` as for [`stretches`].
pub(super) fn pages(object: &[u8]) -> Option<impl Iterator<Item = (u32, &[u8])>> {
    let stretches = stretches(object)?.into_iter();
    Some(stretches.flat_map(|(first, pages)| {
        let pages = pages.chunks_exact(UNIT).enumerate();
        pages.map(move |(place, page)| (first + u32::try_from(place).unwrap_or(0), page))
    }))
}

fn number(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .take(4)
        .fold(0, |number, byte| number << 8 | u32::from(*byte))
}

const MAGIC: &[u8] = b"nimbus-pages/1\n";
const HEAD: usize = MAGIC.len() + 4;
const ENTRY: usize = 36;
/// 16 MiB.
const MOST_PAGES: u32 = 4096;
const LONGEST_HEAD: usize = HEAD + MOST_PAGES as usize * ENTRY;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_what_was_put_in_and_takes_nothing_else() {
        let mut run = RunBuilder::default();
        for number in [1, 3, 0x0102_0304_u32] {
            let page = vec![number.to_be_bytes()[3]; UNIT];
            run.push(number, &version(&page), &page, 1);
        }
        let FinishedRun {
            object,
            pages,
            index_sha256,
        } = run.finish();
        let index_end = usize::try_from(index_bytes(3)).unwrap();
        assert_eq!((pages, object.len()), (3, index_end + 3 * UNIT));
        assert!(is_run(&object, 3, &index_sha256));
        assert!(!is_run(&object, 2, &index_sha256));
        for at in 0..object.len() {
            let mut changed = object.to_vec();
            changed[at] ^= 1;
            assert!(!is_run(&changed, 3, &index_sha256), "{at}");
        }
        let numbers =
            |bytes: &[u8]| Some(index(bytes)?.map(|(number, _)| number).collect::<Vec<_>>());
        assert_eq!(numbers(&object), Some(vec![1, 3, 0x0102_0304]));
        assert_eq!(numbers(&object[..index_end]), Some(vec![1, 3, 0x0102_0304]));
        let read = stretches(&object).unwrap();
        assert_eq!(read.len(), 3);
        assert_eq!(read[1], (3, &[3; UNIT][..]));
        for length in 0..index_end {
            assert_eq!(numbers(&object[..length]), None, "{length}");
        }
        for length in [index_end, object.len() - 1, object.len() - UNIT] {
            assert!(stretches(&object[..length]).is_none(), "{length}");
            assert!(!is_run(&object[..length], 3, &index_sha256), "{length}");
        }
        let longer = [&object[..], &[0; UNIT]].concat();
        assert!(stretches(&longer).is_none());
        assert!(!is_run(&longer, 3, &index_sha256));
        // Two pages under one number.
        let mut twice = object.to_vec();
        twice[HEAD + ENTRY..HEAD + ENTRY + 4].copy_from_slice(&1_u32.to_be_bytes());
        assert!(stretches(&twice).is_none());
    }

    #[test]
    fn pages_that_follow_one_another_are_together() {
        let mut run = RunBuilder::default();
        for number in [2, 3, 4, 9, 10, 12] {
            run.push(number, &[0; 32], &[u8::try_from(number).unwrap(); UNIT], 6);
        }
        let object = run.finish().object;
        let found = stretches(&object).unwrap();
        let shape: Vec<_> = found
            .iter()
            .map(|(first, pages)| (*first, pages.len() / UNIT, pages[pages.len() - 1]))
            .collect();
        assert_eq!(shape, [(2, 3, 4), (9, 2, 10), (12, 1, 12)]);
    }
}
