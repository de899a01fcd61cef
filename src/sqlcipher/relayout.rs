//! A whole database, laid out anew under another key or none: each b-tree entry by entry, and of
//! the schema nothing but where the roots are.

use crate::sqlcipher::error::io_error;
use std::collections::BTreeMap;
use std::fs::File;

use nimbus_keyproviders::CipherKey;
use rusqlite::ffi;
use sha2::{Digest as _, Sha256};

use super::btree::{Fault, Kind, Walk, put_varint, varint_at};
use super::error::{CopyError, sqlite, sqlite_error};
use super::layout::{Layout, Tree, fresh_salt, header};
use super::page::PageKey;
use super::snapshot::Snapshot;
use super::{Database, OpenError};
use crate::runtime::Progress;

/// Where a b-tree is in the copy, what it is, and what is in it.
struct Copied {
    root: u32,
    kind: Kind,
    digest: [u8; 32],
}

/// Writes all that `source` holds into the empty `file`, under `key`, or in plaintext. With
/// `validate` all of it is read again and compared.
pub(super) fn relayout(
    source: &mut Snapshot,
    file: &File,
    key: Option<CipherKey>,
    validate: bool,
    progress: Option<Progress>,
) -> Result<(), Fault> {
    let birth = source.header()?;
    let key = match key {
        Some(key) => Some(PageKey::new(key, fresh_salt()?)),
        None => None,
    };
    let encrypted = key.is_some();
    let progress = progress.map(|progress| (progress, source.bytes()));
    let mut out = Layout::new(file, key, progress);
    let mut walk = Walk::new(source);
    let mut schema = Vec::new();
    walk.tree(SCHEMA, Kind::Table, &mut |rowid, row| {
        schema.push((rowid, row.to_vec()));
        Ok(())
    })?;
    let mut roots = BTreeMap::from([(SCHEMA, SCHEMA)]);
    for root in schema.iter().filter_map(|(_, row)| Row::of(row)?.root()) {
        roots.entry(root).or_default();
    }
    for (_, root) in roots.iter_mut().filter(|(old, _)| **old != SCHEMA) {
        *root = out.allocate();
    }
    let mut copied = Vec::new();
    for (old, root) in roots.iter().filter(|(old, _)| **old != SCHEMA) {
        let kind = walk.kind(*old)?;
        let mut tree = Tree::new(*root, kind);
        let mut digest = Sha256::new();
        walk.tree(*old, kind, &mut |rowid, payload| {
            add(&mut digest, rowid, payload);
            tree.push(&mut out, rowid, payload)
        })?;
        tree.finish(&mut out, |_count| Vec::new())?;
        copied.push(Copied {
            root: *root,
            kind,
            digest: digest.finalize().into(),
        });
    }
    let mut tree = Tree::new(SCHEMA, Kind::Table);
    let mut digest = Sha256::new();
    for (rowid, row) in &schema {
        let moved = Row::of(row).and_then(|row| row.with_root(*roots.get(&row.root()?)?));
        let row = moved.as_ref().unwrap_or(row);
        add(&mut digest, *rowid, row);
        tree.push(&mut out, *rowid, row)?;
    }
    tree.finish(&mut out, |count| header(&birth, encrypted, count))?;
    copied.push(Copied {
        root: SCHEMA,
        kind: Kind::Table,
        digest: digest.finalize().into(),
    });
    out.finish()?;
    if validate {
        prove(out, &copied)
    } else {
        Ok(())
    }
}

/// Reads what was written, all of it, and compares it with what was read.
fn prove(out: Layout<'_>, copied: &[Copied]) -> Result<(), Fault> {
    let taken = out.taken();
    let mut written = out.into_written();
    let mut walk = Walk::new(&mut written);
    for tree in copied {
        let mut digest = Sha256::new();
        walk.tree(tree.root, tree.kind, &mut |rowid, payload| {
            add(&mut digest, rowid, payload);
            Ok(())
        })
        .map_err(|fault| match fault {
            Fault::Damaged(_) => Fault::Unlike,
            fault => fault,
        })?;
        if <[u8; 32]>::from(digest.finalize()) != tree.digest {
            return Err(Fault::Unlike);
        }
    }
    if walk.visited == taken {
        Ok(())
    } else {
        Err(Fault::Unlike)
    }
}

fn add(digest: &mut Sha256, rowid: u64, payload: &[u8]) {
    digest.update(rowid.to_le_bytes());
    digest.update((payload.len() as u64).to_le_bytes());
    digest.update(payload);
}

impl Fault {
    /// What it means for a copy of `database`.
    pub(super) fn of(self, database: &Database) -> CopyError {
        let path = database.path().to_owned();
        match self {
            Self::Damaged(_) if database.key().is_some() => database
                .explain("copy", sqlite_error(ffi::SQLITE_CORRUPT))
                .into(),
            Self::Damaged(page) => CopyError::SourceDamaged { path, page },
            Self::Read(source) => io_error("read", &path)(source),
            Self::Write(source) => io_error("write a copy of", &path)(source),
            Self::Random(source) => {
                OpenError::from(crate::envelope::EnvelopeError::from(source)).into()
            }
            Self::Unlike => CopyError::Unlike { path },
            Self::Stopped => sqlite("copy", &path, sqlite_error(ffi::SQLITE_INTERRUPT)),
        }
    }
}

/// A row of the schema table (<https://www.sqlite.org/fileformat.html#record_format>): its columns'
/// types, and where their values begin.
struct Row<'a> {
    row: &'a [u8],
    types: Vec<u64>,
    values: usize,
}

impl<'a> Row<'a> {
    fn of(row: &'a [u8]) -> Option<Self> {
        let (length, mut at) = varint_at(row)?;
        let values = usize::try_from(length).ok().filter(|at| *at <= row.len())?;
        let mut types = Vec::new();
        while at < values {
            let (kind, length) = varint_at(&row[at..values])?;
            types.push(kind);
            at += length;
        }
        (types.len() > ROOT_COLUMN).then_some(Self { row, types, values })
    }

    /// Where the value of the root's column is, and how long.
    fn place(&self) -> Option<(usize, usize)> {
        let before = self.types[..ROOT_COLUMN].iter().map(|kind| width(*kind));
        let before = before.sum::<Option<usize>>()?;
        Some((self.values + before, width(self.types[ROOT_COLUMN])?))
    }

    /// The root that it names, if it names one: views and triggers have none.
    fn root(&self) -> Option<u32> {
        let (at, width) = self.place()?;
        let root = match self.types[ROOT_COLUMN] {
            1..=6 => {
                let bytes = self.row.get(at..at + width)?;
                // A negative one is none.
                let number = bytes
                    .iter()
                    .fold(0_u64, |n, byte| n << 8 | u64::from(*byte));
                (bytes[0] & 0x80 == 0).then_some(number)?
            }
            9 => 1,
            _ => return None,
        };
        u32::try_from(root).ok().filter(|root| *root > 0)
    }

    /// The same row with another root.
    fn with_root(&self, root: u32) -> Option<Vec<u8>> {
        let (at, width) = self.place()?;
        let number = root.to_be_bytes();
        let length = match root {
            0..=0x7f => 1,
            0x80..=0x7fff => 2,
            0x8000..=0x7f_ffff => 3,
            _ => 4,
        };
        let mut types = Vec::new();
        for (column, kind) in self.types.iter().enumerate() {
            let kind = if column == ROOT_COLUMN { length } else { *kind };
            put_varint(kind, &mut types);
        }
        // The length counts itself.
        let own = if types.len() + 1 > 0x7f { 2 } else { 1 };
        let mut row = Vec::new();
        put_varint((types.len() + own) as u64, &mut row);
        row.extend_from_slice(&types);
        row.extend_from_slice(self.row.get(self.values..at)?);
        row.extend_from_slice(&number[4 - length as usize..]);
        row.extend_from_slice(self.row.get(at + width..)?);
        Some(row)
    }
}

/// How many bytes a value of this type has.
fn width(kind: u64) -> Option<usize> {
    let width = match kind {
        0 | 8 | 9 => 0,
        1..=4 => kind,
        5 => 6,
        6 | 7 => 8,
        10 | 11 => return None,
        _ => (kind - 12) / 2,
    };
    usize::try_from(width).ok()
}

/// The root of the schema table.
const SCHEMA: u32 = 1;
/// type, name, tbl_name, rootpage, sql.
const ROOT_COLUMN: usize = 3;
