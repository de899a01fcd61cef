//! The b-trees of a SQLite database, read as they lie in its pages: rows and index entries in their
//! order, whatever they mean.
//!
//! No schema is needed for that, no collation, no function and no module: an entry is bytes, and
//! its place is what it is (<https://www.sqlite.org/fileformat.html#b_tree_pages>).

use std::io;

use nimbus_keyproviders::RandomError;

/// The pages of one snapshot of a database.
pub(super) trait Pages {
    /// How many bytes of each page are used; the rest is reserved.
    fn usable(&self) -> usize;

    /// How many pages there are.
    fn count(&self) -> u32;

    /// Page `number`, from 1.
    fn read(&mut self, number: u32) -> Result<Vec<u8>, Fault>;
}

/// Why reading or writing pages ended.
#[derive(Debug)]
pub(super) enum Fault {
    /// A page of the source cannot be what it is.
    Damaged(u32),
    /// The source cannot be read.
    Read(io::Error),
    /// The target cannot be written.
    Write(io::Error),
    /// There is no randomness.
    Random(RandomError),
    /// What was written is not what was read.
    Unlike,
    /// It was stopped.
    Stopped,
}

/// What a b-tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Rows by their row ids, all of them in leaves.
    Table,
    /// Entries in their own order, some of them in the pages above the leaves.
    Index,
}

/// Reads b-trees, each page once.
pub(super) struct Walk<'a, P> {
    pages: &'a mut P,
    /// How many pages were read. More than there are means that they go round in a circle.
    pub(super) visited: u64,
}

/// Called for each entry: its row id, which an index entry lacks, and its payload.
pub(super) type Each<'a> = dyn FnMut(u64, &[u8]) -> Result<(), Fault> + 'a;

impl<'a, P: Pages> Walk<'a, P> {
    pub(super) fn new(pages: &'a mut P) -> Self {
        Self { pages, visited: 0 }
    }

    /// What the b-tree with this root is.
    pub(super) fn kind(&mut self, root: u32) -> Result<Kind, Fault> {
        let page = self.pages.read(root)?;
        match page[start(root)] {
            TABLE_LEAF | TABLE_INTERIOR => Ok(Kind::Table),
            INDEX_LEAF | INDEX_INTERIOR => Ok(Kind::Index),
            _ => Err(Fault::Damaged(root)),
        }
    }

    /// Every entry of the b-tree with this root, in order.
    pub(super) fn tree(&mut self, root: u32, kind: Kind, each: &mut Each<'_>) -> Result<(), Fault> {
        self.page(root, kind, 0, each)
    }

    fn page(
        &mut self,
        number: u32,
        kind: Kind,
        depth: usize,
        each: &mut Each<'_>,
    ) -> Result<(), Fault> {
        if depth > MAX_DEPTH {
            return Err(Fault::Damaged(number));
        }
        let page = self.visit(number)?;
        let at = start(number);
        let (leaf, interior) = match kind {
            Kind::Table => (TABLE_LEAF, TABLE_INTERIOR),
            Kind::Index => (INDEX_LEAF, INDEX_INTERIOR),
        };
        let is_leaf = page[at] == leaf;
        if !is_leaf && page[at] != interior {
            return Err(Fault::Damaged(number));
        }
        let head = if is_leaf { LEAF_HEAD } else { INTERIOR_HEAD };
        let cells = usize::from(u16_at(&page, at + 3));
        let mut payload = Vec::new();
        for cell in 0..cells {
            let damaged = || Fault::Damaged(number);
            let pointer = at + head + 2 * cell;
            if pointer + 2 > self.pages.usable() {
                return Err(damaged());
            }
            let mut reader = Reader {
                page: &page[..self.pages.usable()],
                at: usize::from(u16_at(&page, pointer)),
            };
            if !is_leaf {
                let child = reader.u32().ok_or_else(damaged)?;
                self.page(child, kind, depth + 1, each)?;
                if kind == Kind::Table {
                    continue;
                }
            }
            let size = reader.varint().ok_or_else(damaged)?;
            let rowid = match kind {
                Kind::Table => reader.varint().ok_or_else(damaged)?,
                Kind::Index => 0,
            };
            self.payload(number, reader, kind, size, &mut payload)?;
            each(rowid, &payload)?;
        }
        if is_leaf {
            return Ok(());
        }
        self.page(u32_at(&page, at + 8), kind, depth + 1, each)
    }

    /// The whole payload of a cell: what is in its page, and what is in overflow pages.
    fn payload(
        &mut self,
        number: u32,
        mut reader: Reader<'_>,
        kind: Kind,
        size: u64,
        payload: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let damaged = || Fault::Damaged(number);
        let usable = self.pages.usable();
        let size = usize::try_from(size)
            .ok()
            .filter(|size| *size <= MAX_PAYLOAD);
        let size = size.ok_or_else(damaged)?;
        payload.clear();
        let local = local(usable, kind, size);
        payload.extend_from_slice(reader.bytes(local).ok_or_else(damaged)?);
        if local == size {
            return Ok(());
        }
        let mut next = reader.u32().ok_or_else(damaged)?;
        while payload.len() < size {
            let page = self.visit(next)?;
            let part = (size - payload.len()).min(usable - 4);
            payload.extend_from_slice(&page[4..4 + part]);
            next = u32_at(&page, 0);
        }
        Ok(())
    }

    fn visit(&mut self, number: u32) -> Result<Vec<u8>, Fault> {
        self.visited += 1;
        if self.visited > u64::from(self.pages.count()) {
            return Err(Fault::Damaged(number));
        }
        self.pages.read(number)
    }
}

/// Reads what stands in a page, as far as it goes.
struct Reader<'a> {
    page: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let bytes = self.page.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes(4).map(|bytes| u32_at(bytes, 0))
    }

    fn varint(&mut self) -> Option<u64> {
        let (value, length) = varint_at(self.page.get(self.at..)?)?;
        self.at += length;
        Some(value)
    }
}

/// How much of a payload of `size` bytes lies in the b-tree's own page.
pub(super) fn local(usable: usize, kind: Kind, size: usize) -> usize {
    let most = match kind {
        Kind::Table => usable - 35,
        Kind::Index => (usable - 12) * 64 / 255 - 23,
    };
    if size <= most {
        return size;
    }
    let least = (usable - 12) * 32 / 255 - 23;
    let whole = least + (size - least) % (usable - 4);
    if whole <= most { whole } else { least }
}

/// Where the b-tree begins in a page: the first one has the database's header before it.
pub(super) fn start(number: u32) -> usize {
    if number == 1 { HEADER } else { 0 }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.iter().skip(at).take(4);
    bytes.fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// A number of variable length, and its length.
pub(super) fn varint_at(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0_u64;
    for (index, byte) in bytes.iter().take(9).enumerate() {
        if index == 8 {
            return Some((value << 8 | u64::from(*byte), 9));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value, index + 1));
        }
    }
    None
}

/// Appends a number of variable length.
pub(super) fn put_varint(value: u64, out: &mut Vec<u8>) {
    if value >= 1 << 56 {
        for shift in (0..8).rev() {
            let bits = (value >> (8 + 7 * shift)) & 0x7f;
            out.push(bits as u8 | 0x80);
        }
        out.push((value & 0xff) as u8);
        return;
    }
    let groups = (64 - value.leading_zeros()).div_ceil(7).max(1);
    for group in (0..groups).rev() {
        let more = if group == 0 { 0 } else { 0x80 };
        out.push(((value >> (7 * group)) & 0x7f) as u8 | more);
    }
}

/// The database's own header.
pub(super) const HEADER: usize = 100;
pub(super) const LEAF_HEAD: usize = 8;
pub(super) const INTERIOR_HEAD: usize = 12;
pub(super) const TABLE_LEAF: u8 = 13;
pub(super) const TABLE_INTERIOR: u8 = 5;
pub(super) const INDEX_LEAF: u8 = 10;
pub(super) const INDEX_INTERIOR: u8 = 2;
/// As deep as SQLite goes.
const MAX_DEPTH: usize = 20;
const MAX_PAYLOAD: usize = i32::MAX as usize;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_variable_length_come_back() {
        for shift in 0..64 {
            for value in [1_u64 << shift, (1 << shift) - 1, u64::MAX >> shift] {
                let mut bytes = Vec::new();
                put_varint(value, &mut bytes);
                assert_eq!(varint_at(&bytes), Some((value, bytes.len())), "{value}");
            }
        }
        assert_eq!(varint_at(&[0x80]), None);
    }
}
