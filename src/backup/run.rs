//! Pages of one file in one object.
//!
//! ```text
//! magic  "nimbus-pages/1\n", or "nimbus-pages/2\n"           15 bytes
//! count  how many pages, big-endian                           4 bytes
//! index  per page: number 4 (big-endian) │ version 32        36 bytes each, numbers ascending
//!        of format 2 also                  │ tag 32          68 bytes each
//! pages  as they lie in the file                           4096 bytes each, in the order of the index
//! ```
//!
//! A page's version is its SHA-256, and proves it. The SHA-256 of what stands before the pages
//! therefore proves all of the object, and names it: each byte is hashed once.
//!
//! Pages of SQLCipher have a [`Tag`], by which the next snapshot knows a page that did not change
//! without hashing it. It proves nothing: what of it follows is in decision 0046.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::sha256;
use crate::sqlcipher::{Tag, UNIT, tag};

/// What proves a page.
pub(super) type Version = [u8; 32];

/// The version of a page.
pub(super) fn version(page: &[u8]) -> Version {
    Sha256::digest(page).into()
}

/// Pages that are collected for an object.
#[derive(Debug, Default)]
pub(super) struct RunBuilder {
    /// Whether its pages have tags.
    is_tagged: bool,
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
    /// Of pages that have tags.
    pub(super) fn tagged() -> Self {
        Self {
            is_tagged: true,
            ..Self::default()
        }
    }

    /// Adds a page, of at most `left` that may still come; its number is larger than those before.
    pub(super) fn push(&mut self, number: u32, version: &Version, page: &[u8], left: u32) {
        if self.object.is_empty() {
            let pages = left.min(MOST_PAGES) as usize;
            self.object.reserve_exact(LONGEST_HEAD + pages * UNIT);
            self.object.resize(LONGEST_HEAD, 0);
        }
        self.index.extend(number.to_be_bytes());
        self.index.extend(version);
        if self.is_tagged {
            self.index.extend(tag(page));
        }
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
        let magic = if self.is_tagged { MAGIC_TAGGED } else { MAGIC };
        head[..magic.len()].copy_from_slice(magic);
        head[magic.len()..].copy_from_slice(&self.count.to_be_bytes());
        index.copy_from_slice(&self.index);
        let index_sha256 = sha256(&object[begin..LONGEST_HEAD]);
        FinishedRun {
            object: Bytes::from(object).slice(begin..),
            pages: self.count,
            index_sha256,
        }
    }
}

/// A page in an index.
pub(super) struct Entry {
    pub(super) number: u32,
    pub(super) version: Version,
    pub(super) tag: Option<Tag>,
}

/// What stands before the pages of an object.
pub(super) struct Index<'a> {
    entries: &'a [u8],
    is_tagged: bool,
}

impl<'a> Index<'a> {
    /// The index of an object, of which at least that part was read. `None` when it is none.
    pub(super) fn of(object: &'a [u8]) -> Option<Self> {
        let (is_tagged, rest) = match object.strip_prefix(MAGIC) {
            Some(rest) => (false, rest),
            None => (true, object.strip_prefix(MAGIC_TAGGED)?),
        };
        let (count, rest) = rest.split_first_chunk::<4>()?;
        let count = usize::try_from(u32::from_be_bytes(*count)).ok()?;
        let entries = rest.get(..count.checked_mul(entry_bytes(is_tagged))?)?;
        let index = Self { entries, is_tagged };
        let mut before = 0;
        for Entry { number, .. } in index.entries() {
            if number <= before {
                return None;
            }
            before = number;
        }
        Some(index)
    }

    /// How long it is, with what stands before it.
    fn bytes(&self) -> usize {
        HEAD + self.entries.len()
    }

    /// How many pages there are.
    fn len(&self) -> usize {
        self.entries.len() / entry_bytes(self.is_tagged)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = Entry> + use<'a> {
        let is_tagged = self.is_tagged;
        self.entries
            .chunks_exact(entry_bytes(is_tagged))
            .map(move |entry| Entry {
                number: number(entry),
                version: hash_at(entry, 4),
                tag: is_tagged.then(|| hash_at(entry, ENTRY)),
            })
    }
}

/// Whether an object holds so many pages, and exactly those that the SHA-256 of its index says.
pub(super) fn is_run(object: &[u8], count: u32, index_sha256: &str) -> bool {
    let Some(index) = Index::of(object).filter(|index| index.len() == count as usize) else {
        return false;
    };
    let (head, pages) = object.split_at(index.bytes());
    if sha256(head) != index_sha256 || pages.len() != index.len() * UNIT {
        return false;
    }
    let mut pages = pages.chunks_exact(UNIT).zip(index.entries());
    pages.all(|(page, of)| {
        version(page) == of.version && of.tag.is_none_or(|known| known == tag(page))
    })
}

/// The pages of an object, those that follow one another in the file together, with the number of
/// the first. `None` when it is none, or has another length.
pub(super) fn stretches(object: &[u8]) -> Option<Vec<(u32, &[u8])>> {
    let index = Index::of(object)?;
    let pages = object.get(index.bytes()..)?;
    let numbers: Vec<u32> = index.entries().map(|entry| entry.number).collect();
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

fn hash_at(entry: &[u8], at: usize) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(&entry[at..at + 32]);
    hash
}

/// The length of an entry.
fn entry_bytes(is_tagged: bool) -> usize {
    match is_tagged {
        false => ENTRY,
        true => ENTRY + size_of::<Tag>(),
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .take(4)
        .fold(0, |number, byte| number << 8 | u32::from(*byte))
}

const MAGIC: &[u8] = b"nimbus-pages/1\n";
/// Its pages have tags.
const MAGIC_TAGGED: &[u8] = b"nimbus-pages/2\n";
const HEAD: usize = MAGIC.len() + 4;
const ENTRY: usize = 36;
/// 16 MiB.
const MOST_PAGES: u32 = 4096;
const LONGEST_HEAD: usize = HEAD + MOST_PAGES as usize * (ENTRY + size_of::<Tag>());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_what_was_put_in_and_takes_nothing_else() {
        for mut run in [RunBuilder::default(), RunBuilder::tagged()] {
            let entry = entry_bytes(run.is_tagged);
            let numbers = [1, 3, 0x0102_0304_u32];
            for number in numbers {
                let page = vec![number.to_be_bytes()[3]; UNIT];
                run.push(number, &version(&page), &page, 1);
            }
            let is_tagged = run.is_tagged;
            let FinishedRun {
                object,
                pages,
                index_sha256,
            } = run.finish();
            let index_end = HEAD + 3 * entry;
            assert_eq!((pages, object.len()), (3, index_end + 3 * UNIT));
            assert!(is_run(&object, 3, &index_sha256));
            assert!(!is_run(&object, 2, &index_sha256));
            for at in 0..object.len() {
                let mut changed = object.to_vec();
                changed[at] ^= 1;
                assert!(!is_run(&changed, 3, &index_sha256), "{at}");
            }
            let entries = |bytes: &[u8]| -> Option<Vec<_>> {
                let entries = Index::of(bytes)?.entries();
                Some(entries.map(|entry| (entry.number, entry.tag)).collect())
            };
            let known = |number: u32| {
                let filled = [number.to_be_bytes()[3]; 32];
                (number, is_tagged.then_some(filled))
            };
            let known = Some(numbers.map(known).to_vec());
            assert_eq!(entries(&object), known);
            assert_eq!(entries(&object[..index_end]), known);
            let read = stretches(&object).unwrap();
            assert_eq!(read.len(), 3);
            assert_eq!(read[1], (3, &[3; UNIT][..]));
            for length in 0..index_end {
                assert_eq!(entries(&object[..length]), None, "{length}");
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
            twice[HEAD + entry..HEAD + entry + 4].copy_from_slice(&1_u32.to_be_bytes());
            assert!(stretches(&twice).is_none());
        }
    }

    #[test]
    fn an_index_whose_tag_is_not_that_of_its_page_is_none() {
        let page: Vec<u8> = (0..UNIT).map(|at| (at % 251) as u8).collect();
        let mut run = RunBuilder::tagged();
        run.push(1, &version(&page), &page, 1);
        let object = run.finish().object.to_vec();
        let head = HEAD + entry_bytes(true);
        assert!(is_run(&object, 1, &sha256(&object[..head])));
        for at in HEAD + ENTRY..head {
            let mut changed = object.clone();
            changed[at] ^= 1;
            assert!(!is_run(&changed, 1, &sha256(&changed[..head])), "{at}");
        }
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
