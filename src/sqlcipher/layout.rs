//! B-trees written anew, from their entries in order, into pages of another size.
//!
//! SQLCipher needs 80 bytes of each page for itself, so that the pages of a plaintext database do
//! not fit as they are, and SQLite lays them out anew only by running the schema: with collations,
//! functions and modules that only the application has. Here the entries of each b-tree are put
//! into full leaves, one after the other, and the pages above are built as the leaves come. Order
//! and bytes of the entries stay what they are.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use nimbus_keyproviders::{OsRandom, SecureRandom as _};
use zeroize::Zeroizing;

use super::btree::{
    Fault, HEADER, INDEX_INTERIOR, INDEX_LEAF, INTERIOR_HEAD, Kind, LEAF_HEAD, Pages,
    TABLE_INTERIOR, TABLE_LEAF, local, put_varint, start,
};
use super::page::{CONTENT, Content, LOCK_PAGE, PAGE, PageKey, SALT};
use crate::runtime::Progress;

/// A database that is being written: pages of 4096 bytes.
pub(super) struct Layout<'a> {
    file: &'a File,
    /// `None` for plaintext.
    key: Option<PageKey>,
    /// How many bytes of a page b-trees have.
    usable: usize,
    /// How many pages were given out.
    taken: u64,
    /// The first page that is not taken.
    next: u32,
    written: u64,
    progress: Option<(Progress, u64)>,
}

impl<'a> Layout<'a> {
    /// An empty database whose first page is taken. `progress` is called with `total` bytes.
    pub(super) fn new(
        file: &'a File,
        key: Option<PageKey>,
        progress: Option<(Progress, u64)>,
    ) -> Self {
        Self {
            file,
            usable: if key.is_some() { CONTENT } else { PAGE },
            key,
            taken: 1,
            next: 2,
            written: 0,
            progress,
        }
    }

    /// How many pages the database has now.
    pub(super) fn count(&self) -> u32 {
        self.next - 1
    }

    /// How many of them hold b-trees.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// What is written, to be read again.
    pub(super) fn into_written(self) -> Written<'a> {
        Written {
            file: self.file,
            count: self.count(),
            key: self.key,
            usable: self.usable,
            read: 0,
            progress: self.progress,
        }
    }

    fn blank(&self) -> Page {
        Page::new(vec![0; self.usable])
    }

    /// The number of a page that is free. It is taken from then on.
    pub(super) fn allocate(&mut self) -> u32 {
        if self.next == LOCK_PAGE {
            self.next += 1;
        }
        self.next += 1;
        self.taken += 1;
        self.next - 1
    }

    fn write(&mut self, number: u32, page: &Page) -> Result<(), Fault> {
        let at = u64::from(number - 1) * PAGE as u64;
        let written = match &self.key {
            Some(key) => {
                let mut content = Content::new([0; CONTENT]);
                content.copy_from_slice(page);
                let sealed = key.seal(number, &content, &OsRandom);
                self.file.write_all_at(&sealed.map_err(Fault::Random)?, at)
            }
            None => self.file.write_all_at(page, at),
        };
        written.map_err(Fault::Write)?;
        self.written += PAGE as u64;
        match &self.progress {
            Some((progress, total))
                if self.written.is_multiple_of(TELL_EVERY)
                    && !progress(self.written.min(*total), *total) =>
            {
                Err(Fault::Stopped)
            }
            _ => Ok(()),
        }
    }

    /// The entry of one payload, as it goes into its page. Its overflow pages are written.
    fn cell(&mut self, kind: Kind, rowid: u64, payload: &[u8]) -> Result<Vec<u8>, Fault> {
        let local = local(self.usable, kind, payload.len());
        let mut cell = Vec::with_capacity(local + 22);
        put_varint(payload.len() as u64, &mut cell);
        if kind == Kind::Table {
            put_varint(rowid, &mut cell);
        }
        let (here, mut rest) = payload.split_at(local);
        cell.extend_from_slice(here);
        if rest.is_empty() {
            return Ok(cell);
        }
        let mut number = self.allocate();
        cell.extend_from_slice(&number.to_be_bytes());
        while !rest.is_empty() {
            let (part, more) = rest.split_at(rest.len().min(self.usable - 4));
            let next = if more.is_empty() { 0 } else { self.allocate() };
            let mut content = self.blank();
            content[..4].copy_from_slice(&next.to_be_bytes());
            content[4..4 + part.len()].copy_from_slice(part);
            self.write(number, &content)?;
            (number, rest) = (next, more);
        }
        Ok(cell)
    }

    /// Writes the file's end. The last thing to do.
    pub(super) fn finish(&mut self) -> Result<(), Fault> {
        let bytes = u64::from(self.count()) * PAGE as u64;
        self.file.set_len(bytes).map_err(Fault::Write)
    }
}

/// A database that was written, read again from the file.
pub(super) struct Written<'a> {
    file: &'a File,
    count: u32,
    key: Option<PageKey>,
    usable: usize,
    read: u64,
    /// Asked now and then whether to go on.
    progress: Option<(Progress, u64)>,
}

impl Pages for Written<'_> {
    fn usable(&self) -> usize {
        self.usable
    }

    fn count(&self) -> u32 {
        self.count
    }

    fn read(&mut self, number: u32) -> Result<Vec<u8>, Fault> {
        if number == 0 || number > self.count {
            return Err(Fault::Unlike);
        }
        self.read += PAGE as u64;
        if let Some((progress, total)) = &self.progress
            && self.read.is_multiple_of(TELL_EVERY)
            && !progress(*total, *total)
        {
            return Err(Fault::Stopped);
        }
        let mut page = [0; PAGE];
        let at = u64::from(number - 1) * PAGE as u64;
        self.file
            .read_exact_at(&mut page, at)
            .map_err(Fault::Write)?;
        match &self.key {
            None => Ok(page.to_vec()),
            Some(key) => {
                let content = key.open(number, &page).ok_or(Fault::Unlike)?;
                Ok(content.to_vec())
            }
        }
    }
}

/// The content of a page.
type Page = Zeroizing<Vec<u8>>;

/// One b-tree that is being written.
pub(super) struct Tree {
    root: u32,
    kind: Kind,
    /// From the leaves up. The last one ends as the root.
    levels: Vec<Level>,
    last_rowid: u64,
    /// What stands before the b-tree in page 1.
    header: Vec<u8>,
}

/// The page of one level that is not full yet.
#[derive(Default)]
struct Level {
    entries: Vec<Entry>,
    bytes: usize,
    /// The entry that did not fit. It goes up between this page and the next, once there is
    /// something for the next.
    held: Option<Entry>,
}

/// What a page has one of for each pointer in it.
struct Entry {
    /// The page before it, above the leaves.
    child: Option<u32>,
    cell: Vec<u8>,
}

impl Entry {
    fn bytes(&self) -> usize {
        let child = if self.child.is_some() { 4 } else { 0 };
        (child + self.cell.len()).max(MIN_CELL) + 2
    }
}

impl Level {
    fn has_room_for(&self, entry: &Entry, usable: usize) -> bool {
        let head = if entry.child.is_some() {
            INTERIOR_HEAD
        } else {
            LEAF_HEAD
        };
        head + self.bytes + entry.bytes() <= usable
    }

    fn add(&mut self, entry: Entry) {
        self.bytes += entry.bytes();
        self.entries.push(entry);
    }

    fn take_last(&mut self) -> Option<Entry> {
        let last = self.entries.pop()?;
        self.bytes -= last.bytes();
        Some(last)
    }
}

impl Tree {
    /// A b-tree with its root at a page that is taken already.
    pub(super) fn new(root: u32, kind: Kind) -> Self {
        Self {
            root,
            kind,
            levels: vec![Level::default()],
            last_rowid: 0,
            header: Vec::new(),
        }
    }

    /// Appends an entry.
    pub(super) fn push(
        &mut self,
        out: &mut Layout<'_>,
        rowid: u64,
        payload: &[u8],
    ) -> Result<(), Fault> {
        let cell = out.cell(self.kind, rowid, payload)?;
        let entry = Entry { child: None, cell };
        match self.kind {
            Kind::Index => self.put(out, 0, entry)?,
            // All rows stay in leaves; what goes up is the greatest row id of the leaf.
            Kind::Table => {
                if !self.levels[0].has_room_for(&entry, out.usable) {
                    let child = Some(self.close(out, 0, None)?);
                    let mut cell = Vec::new();
                    put_varint(self.last_rowid, &mut cell);
                    self.put(out, 1, Entry { child, cell })?;
                }
                self.levels[0].add(entry);
            }
        }
        self.last_rowid = rowid;
        Ok(())
    }

    fn put(&mut self, out: &mut Layout<'_>, level: usize, entry: Entry) -> Result<(), Fault> {
        if self.levels.len() == level {
            self.levels.push(Level::default());
        }
        if let Some(held) = self.levels[level].held.take() {
            let child = Some(self.close(out, level, held.child)?);
            self.put(out, level + 1, Entry { child, ..held })?;
            self.levels[level].add(entry);
        } else if self.levels[level].has_room_for(&entry, out.usable) {
            self.levels[level].add(entry);
        } else {
            self.levels[level].held = Some(entry);
        }
        Ok(())
    }

    /// Writes the page of a level, and begins its next one.
    fn close(
        &mut self,
        out: &mut Layout<'_>,
        level: usize,
        right: Option<u32>,
    ) -> Result<u32, Fault> {
        let number = out.allocate();
        let page = std::mem::take(&mut self.levels[level].entries);
        self.levels[level].bytes = 0;
        self.page(out, number, &page, right)?;
        Ok(number)
    }

    /// Writes what is not written yet, the root last. `header` is called when all pages are taken,
    /// for what stands in page 1 before a b-tree.
    pub(super) fn finish(
        mut self,
        out: &mut Layout<'_>,
        header: impl FnOnce(u32) -> Vec<u8>,
    ) -> Result<(), Fault> {
        let mut right = None;
        let mut level = 0;
        loop {
            if let Some(held) = self.levels[level].held.take() {
                // The page after it would be empty: the last entry goes up in its place. A page
                // holds four at least.
                let Some(last) = self.levels[level].take_last() else {
                    return Err(Fault::Damaged(self.root));
                };
                let child = Some(self.close(out, level, last.child)?);
                self.put(out, level + 1, Entry { child, ..last })?;
                self.levels[level].add(held);
            }
            if level + 1 == self.levels.len() {
                break;
            }
            right = Some(self.close(out, level, right)?);
            level += 1;
        }
        let head = if right.is_some() {
            INTERIOR_HEAD
        } else {
            LEAF_HEAD
        };
        // Page 1 has less room: what does not fit goes below it.
        if start(self.root) + head + self.levels[level].bytes > out.usable {
            right = Some(self.close(out, level, right)?);
        }
        let page = std::mem::take(&mut self.levels[level].entries);
        self.header = header(out.count());
        self.page(out, self.root, &page, right)
    }

    fn page(
        &mut self,
        out: &mut Layout<'_>,
        number: u32,
        entries: &[Entry],
        right: Option<u32>,
    ) -> Result<(), Fault> {
        let mut content = out.blank();
        let at = start(number);
        content[..at].copy_from_slice(self.header.get(..at).unwrap_or(&[0; HEADER][..at]));
        let head = if right.is_some() {
            INTERIOR_HEAD
        } else {
            LEAF_HEAD
        };
        content[at] = match (self.kind, right) {
            (Kind::Table, None) => TABLE_LEAF,
            (Kind::Table, Some(_)) => TABLE_INTERIOR,
            (Kind::Index, None) => INDEX_LEAF,
            (Kind::Index, Some(_)) => INDEX_INTERIOR,
        };
        let mut end = out.usable;
        for (index, entry) in entries.iter().enumerate() {
            end -= entry.bytes() - 2;
            let mut cell = end;
            if let Some(child) = entry.child {
                content[cell..cell + 4].copy_from_slice(&child.to_be_bytes());
                cell += 4;
            }
            content[cell..cell + entry.cell.len()].copy_from_slice(&entry.cell);
            let pointer = at + head + 2 * index;
            content[pointer..pointer + 2].copy_from_slice(&short(end));
        }
        content[at + 3..at + 5].copy_from_slice(&short(entries.len()));
        content[at + 5..at + 7].copy_from_slice(&short(end));
        if let Some(right) = right {
            content[at + 8..at + 12].copy_from_slice(&right.to_be_bytes());
        }
        out.write(number, &content)
    }
}

/// A number below the size of a page, as pages hold it.
fn short(number: usize) -> [u8; 2] {
    u16::try_from(number).unwrap_or(0).to_be_bytes()
}

/// A key of a new file: its salt is drawn.
pub(super) fn fresh_salt() -> Result<[u8; SALT], Fault> {
    let mut salt = [0; SALT];
    OsRandom.fill(&mut salt).map_err(Fault::Random)?;
    Ok(salt)
}

/// The header of page 1, for pages of Nimbus: what a database was born with or was given stays
/// (<https://www.sqlite.org/fileformat.html#the_database_header>), but for auto-vacuum: with it,
/// SQLCipher takes a page of zeros for one beyond the end of the file, and does not compare its
/// MAC.
pub(super) fn header(of_source: &[u8], encrypted: bool, count: u32) -> Vec<u8> {
    let mut header = of_source[..HEADER].to_vec();
    header[16..18].copy_from_slice(&short(PAGE));
    // Written and read in WAL mode, or in the mode that every program can open.
    header[18..20].fill(if encrypted { 2 } else { 1 });
    header[20] = if encrypted { (PAGE - CONTENT) as u8 } else { 0 };
    header[28..32].copy_from_slice(&count.to_be_bytes());
    // No page is free.
    header[32..40].fill(0);
    // Neither auto-vacuum nor incremental vacuum.
    header[52..56].fill(0);
    header[64..68].fill(0);
    // The count is believed where these two agree.
    let changes = header[24..28].to_vec();
    header[92..96].copy_from_slice(&changes);
    header
}

/// SQLite takes no cell to be shorter, so that a freed one has room for its place in a list.
const MIN_CELL: usize = 4;
/// Bytes.
const TELL_EVERY: u64 = 1 << 20;
