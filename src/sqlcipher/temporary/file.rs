//! A temporary file: an open file without a name that holds nothing but ciphertext.
//!
//! It is kept in blocks of 4 KiB, each sealed under a random key of this one file
//! (`nimbus_sealing`), which exists in memory alone and is wiped with the file. What opens each
//! block stays in memory, too: a block that was changed, taken from another place or put back as it
//! was before does not open, and is an error.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use nimbus_keyproviders::{OsRandom, SecureRandom as _};
pub(super) use nimbus_sealing::BLOCK;
use nimbus_sealing::{BlockCipher, Seal};
use zeroize::{Zeroize as _, Zeroizing};

use super::room::{Room, Share};
use crate::data_dir::TEMPORARY_PREFIX;
use crate::process::nameless_file;

/// A file that goes with its owner, and is unreadable without it. One thread uses it at a time.
pub(super) struct TemporaryFile {
    blocks: Blocks,
    length: u64,
    /// The one block that is in memory: small writes one after the other are sealed together.
    held: CachedBlock,
    share: Share,
}

struct CachedBlock {
    block: Option<u64>,
    /// It is not on the disk as it is.
    is_changed: bool,
    content: Box<Zeroizing<Block>>,
}

/// The blocks as they lie on the disk.
struct Blocks {
    file: File,
    cipher: BlockCipher,
    /// What opens each block. One that is not among them was never written, and holds zeros.
    seals: Vec<Seal>,
    /// Where blocks are sealed.
    work: Box<Block>,
}

type Block = [u8; BLOCK];

impl TemporaryFile {
    /// An empty file in the directory of `room`.
    pub(super) fn new(room: &'static Room) -> io::Result<Self> {
        let file = nameless_file(room.dir(), TEMPORARY_PREFIX)?;
        let mut key = Zeroizing::new([0; 32]);
        OsRandom.fill(&mut *key).map_err(io::Error::other)?;
        Ok(Self {
            blocks: Blocks {
                file,
                cipher: BlockCipher::new(&key),
                seals: Vec::new(),
                work: Box::new([0; BLOCK]),
            },
            length: 0,
            held: CachedBlock {
                block: None,
                is_changed: false,
                content: Box::new(Zeroizing::new([0; BLOCK])),
            },
            share: Share::new(room),
        })
    }

    /// How long it is.
    pub(super) fn len(&self) -> u64 {
        self.length
    }

    /// Reads what stands at `offset`, and says how many bytes there are; the rest of `out` becomes
    /// zeros.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidData`] for a block that is not as it was written, and whatever the
    /// operating system says. `out` then holds zeros.
    pub(super) fn read_at(&mut self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.length.saturating_sub(offset);
        let there = usize::try_from(left).map_or(out.len(), |left| left.min(out.len()));
        out[there..].fill(0);
        for part in parts(offset, there) {
            let read = self.read_part(&part, &mut out[part.of_data.clone()]);
            if let Err(error) = read {
                out.zeroize();
                return Err(error);
            }
        }
        Ok(there)
    }

    fn read_part(&mut self, part: &BlockRange, out: &mut [u8]) -> io::Result<()> {
        if self.held.block != Some(part.block)
            && let Ok(whole) = <&mut Block>::try_from(&mut *out)
        {
            return self.blocks.open(part.block, whole);
        }
        self.hold(part.block)?;
        out.copy_from_slice(&self.held.content[part.of_block.clone()]);
        Ok(())
    }

    /// Writes `data` at `offset`. What lies between there and an end before it becomes zeros.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::StorageFull`] where there is no room; otherwise as
    /// [`read_at`](Self::read_at).
    pub(super) fn write_at(&mut self, data: &[u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(data.len() as u64);
        let end = end.filter(|end| *end <= LONGEST);
        self.share.grow(end.ok_or(io::ErrorKind::FileTooLarge)?)?;
        for part in parts(offset, data.len()) {
            let data = &data[part.of_data.clone()];
            if let Ok(whole) = data.try_into() {
                self.blocks.seal(part.block, whole)?;
                if self.held.block == Some(part.block) {
                    self.let_go();
                }
            } else {
                self.hold(part.block)?;
                self.held.content[part.of_block.clone()].copy_from_slice(data);
                self.held.is_changed = true;
            }
            let end = place(part.block) + part.of_block.end as u64;
            self.length = self.length.max(end);
        }
        Ok(())
    }

    /// Makes it `length` bytes long: cuts it, or adds zeros.
    ///
    /// # Errors
    ///
    /// As [`write_at`](Self::write_at).
    pub(super) fn set_len(&mut self, length: u64) -> io::Result<()> {
        if length > LONGEST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if length >= self.length {
            self.share.grow(length)?;
            self.length = length;
            return Ok(());
        }
        let rest = (length % BLOCK as u64) as usize;
        if rest > 0 {
            // Should it grow again, there are zeros.
            self.hold(length / BLOCK as u64)?;
            self.held.content[rest..].fill(0);
            self.held.is_changed = true;
        }
        let blocks = length.div_ceil(BLOCK as u64);
        if self.held.block.is_some_and(|held| held >= blocks) {
            self.let_go();
        }
        self.length = length;
        self.blocks.cut(blocks)?;
        self.share.shrink(length);
        Ok(())
    }

    /// Has this block in memory.
    fn hold(&mut self, block: u64) -> io::Result<()> {
        if self.held.block == Some(block) {
            return Ok(());
        }
        if self.held.is_changed
            && let Some(before) = self.held.block
        {
            // Where it cannot be written it stays, so that nothing that was accepted is lost.
            self.blocks.seal(before, &self.held.content)?;
        }
        self.held.is_changed = false;
        self.held.block = None;
        self.blocks.open(block, &mut self.held.content)?;
        self.held.block = Some(block);
        Ok(())
    }

    /// Has no block in memory.
    fn let_go(&mut self) {
        self.held.block = None;
        self.held.is_changed = false;
        self.held.content.zeroize();
    }

    /// What lies on the disk.
    #[cfg(test)]
    pub(super) fn on_disk(&self) -> &File {
        &self.blocks.file
    }

    /// How many blocks were sealed until now.
    #[cfg(test)]
    pub(super) fn sealed(&self) -> u64 {
        self.blocks.cipher.sealed()
    }
}

impl Blocks {
    /// Writes a block.
    fn seal(&mut self, block: u64, content: &Block) -> io::Result<()> {
        let index = usize::try_from(block).map_err(io::Error::other)?;
        self.work.copy_from_slice(content);
        let seal = self.cipher.seal(block, &mut self.work);
        self.file.write_all_at(&self.work[..], place(block))?;
        if self.seals.len() <= index {
            self.seals.resize(index + 1, Seal::default());
        }
        self.seals[index] = seal;
        Ok(())
    }

    /// Reads a block.
    fn open(&self, block: u64, out: &mut Block) -> io::Result<()> {
        let index = usize::try_from(block).unwrap_or(usize::MAX);
        let seal = self.seals.get(index).filter(|seal| !seal.is_none());
        let Some(seal) = seal else {
            out.fill(0);
            return Ok(());
        };
        let bad = || io::Error::from(io::ErrorKind::InvalidData);
        let read = self.file.read_exact_at(out, place(block));
        read.map_err(|error| match error.kind() {
            // Somebody else cut it.
            io::ErrorKind::UnexpectedEof => bad(),
            _ => error,
        })?;
        let opened = self.cipher.open(block, seal, out);
        opened.map_err(|_forged| bad())
    }

    /// Keeps so many blocks and no more.
    fn cut(&mut self, blocks: u64) -> io::Result<()> {
        let kept = usize::try_from(blocks).unwrap_or(usize::MAX);
        self.seals.truncate(kept);
        self.file.set_len(place(blocks))
    }
}

/// The part of a read or write that is in one block.
#[derive(Debug, Clone)]
struct BlockRange {
    block: u64,
    of_block: Range<usize>,
    of_data: Range<usize>,
}

fn parts(offset: u64, length: usize) -> impl Iterator<Item = BlockRange> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let at = offset + done as u64;
        let start = (at % BLOCK as u64) as usize;
        let count = (BLOCK - start).min(length - done);
        let part = BlockRange {
            block: at / BLOCK as u64,
            of_block: start..start + count,
            of_data: done..done + count,
        };
        done += count;
        Some(part)
    })
}

/// Where a block lies.
fn place(block: u64) -> u64 {
    block * BLOCK as u64
}

/// Longer than any there is room for; sums of offsets stay far from their bounds.
const LONGEST: u64 = 1 << 50;
