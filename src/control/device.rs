//! `blocks1`: an encrypted block device for redb.
//!
//! ```text
//! offset      length  what
//! 0           4144    header slot A: sequence (8, big-endian) ‖ nonce (24) ‖ ciphertext (4096) ‖ tag (16)
//! 8192        4144    header slot B: the same
//! 16384       4136    block 1: nonce (24) ‖ ciphertext (4096) ‖ tag (16)
//! 16384+4136  4136    block 2, and so on; a shorter rest at the end is no block
//! ```
//!
//! XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha) with a fresh random nonce a write. Associated data:
//! file-id ‖ block index (8 bytes, big-endian), and for block 0 also its sequence number, so that
//! no block passes at another place or in another file.
//!
//! redb overwrites in place only what it can lose, and its header, which is block 0. That one has
//! two slots; the newest that authenticates wins. States between two writes:
//!
//! - header written, not flushed: the other slot is durable and untouched until a flush ends well;
//!   a torn write costs the newest header only
//! - blocks written, not flushed: torn ones do not authenticate, and no durable header refers to
//!   them
//! - file grown, not flushed: the same; a rest shorter than a block is cut off in thought
//!
//! A block is only ever written whole; a part of one is written only if the whole authenticates,
//! never over zeros.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chacha20poly1305::aead::{AeadInOut, KeyInit as _};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use nimbus_keyproviders::{CipherKey, SecureRandom};
use nimbus_manifests::FileId;
use redb::StorageBackend;

/// What the device lies on: a file, or what a test puts in its place.
pub(super) trait BlockFile: fmt::Debug + Send + Sync + 'static {
    fn len(&self) -> io::Result<u64>;
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
}

/// A block that is not what this key wrote at this place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("block {block} does not authenticate: it was changed, moved or torn")]
pub struct BadBlock {
    /// The block's index.
    pub block: u64,
}

/// The device, over a file.
pub(super) struct Device<F> {
    file: F,
    cipher: XChaCha20Poly1305,
    file_id: FileId,
    random: Arc<dyn SecureRandom>,
    state: Mutex<State>,
}

struct State {
    /// Blocks, the header's among them.
    blocks: u64,
    /// Block 0 in plaintext: redb writes parts of it.
    header: Box<[u8; BLOCK]>,
    sequence: u64,
    /// The slot that the last flush made durable; the other one is written.
    durable: Slot,
    /// Whether the other slot was written since.
    pending: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    A,
    B,
}

impl Slot {
    fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    fn offset(self) -> u64 {
        match self {
            Self::A => 0,
            Self::B => SLOT_STRIDE,
        }
    }
}

/// A header slot that authenticates: where, its sequence number, block 0.
type Header = (Slot, u64, Box<[u8; BLOCK]>);

impl<F: BlockFile> Device<F> {
    /// Opens what lies in `file`; an empty file is a device of no blocks.
    pub(super) fn open(
        file: F,
        key: &CipherKey,
        file_id: FileId,
        random: Arc<dyn SecureRandom>,
    ) -> io::Result<Self> {
        let length = file.len()?;
        let device = Self {
            file,
            cipher: XChaCha20Poly1305::new(key.expose().into()),
            file_id,
            random,
            state: Mutex::new(State {
                blocks: 0,
                header: Box::new([0; BLOCK]),
                sequence: 0,
                durable: Slot::B,
                pending: false,
            }),
        };
        if length > 0 {
            // A process that was killed may have left a header that only the page cache holds. It
            // counts as durable from here on, and the other slot is written next.
            device.file.sync()?;
            let mut state = device.state();
            let slots = [
                device.read_slot(Slot::A, length)?,
                device.read_slot(Slot::B, length)?,
            ];
            let newest = slots
                .into_iter()
                .flatten()
                .max_by_key(|(_, sequence, _)| *sequence);
            let (slot, sequence, header) = newest.ok_or_else(|| bad(0))?;
            state.durable = slot;
            state.sequence = sequence;
            state.header = header;
            state.blocks = 1 + length.saturating_sub(BLOCKS_AT) / STORED;
            drop(state);
        }
        Ok(device)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One header slot, if it is there and authenticates. A disk that does not read it is an error:
    /// the older one in its place would undo the last commit.
    fn read_slot(&self, slot: Slot, length: u64) -> io::Result<Option<Header>> {
        let mut stored = vec![0; SLOT];
        if slot.offset() + SLOT as u64 > length {
            return Ok(None);
        }
        self.file.read_at(slot.offset(), &mut stored)?;
        let (sequence, sealed) = stored
            .split_first_chunk::<SEQUENCE>()
            .ok_or_else(|| bad(0))?;
        let sequence = u64::from_be_bytes(*sequence);
        let mut header = Box::new([0; BLOCK]);
        let opened = self.open_block(sealed, &self.context(0, Some(sequence)), &mut header[..], 0);
        Ok(opened.is_ok().then_some((slot, sequence, header)))
    }

    /// Seals block 0 into the slot that is not durable.
    fn write_header(&self, state: &mut State) -> io::Result<()> {
        let sequence = state.sequence.checked_add(1).ok_or_else(|| bad(0))?;
        let mut stored = sequence.to_be_bytes().to_vec();
        stored.extend(self.seal(&state.header[..], &self.context(0, Some(sequence)))?);
        self.file
            .write_at(state.durable.other().offset(), &stored)?;
        state.sequence = sequence;
        state.pending = true;
        Ok(())
    }

    fn read_block(&self, block: u64, out: &mut [u8; BLOCK]) -> io::Result<()> {
        let mut stored = [0; STORED as usize];
        self.file.read_at(place(block), &mut stored)?;
        self.open_block(&stored, &self.context(block, None), out, block)
    }

    fn write_block(&self, block: u64, data: &[u8]) -> io::Result<()> {
        let stored = self.seal(data, &self.context(block, None))?;
        self.file.write_at(place(block), &stored)
    }

    /// `nonce ‖ ciphertext ‖ tag`.
    fn seal(&self, data: &[u8], context: &[u8]) -> io::Result<Vec<u8>> {
        let mut stored = vec![0; STORED as usize];
        let (nonce, sealed) = stored.split_at_mut(NONCE);
        let (text, tag) = sealed.split_at_mut(BLOCK);
        self.random.fill(nonce).map_err(io::Error::other)?;
        text.copy_from_slice(data);
        let nonce = XNonce::try_from(&*nonce).map_err(io::Error::other)?;
        let made = self
            .cipher
            .encrypt_inout_detached(&nonce, context, text.into())
            .map_err(|_too_long| io::Error::other("a block is too long for the cipher"))?;
        tag.copy_from_slice(&made);
        Ok(stored)
    }

    fn open_block(
        &self,
        stored: &[u8],
        context: &[u8],
        out: &mut [u8],
        block: u64,
    ) -> io::Result<()> {
        let (nonce, sealed) = stored.split_at_checked(NONCE).ok_or_else(|| bad(block))?;
        let (text, tag) = sealed.split_at_checked(BLOCK).ok_or_else(|| bad(block))?;
        let (Ok(nonce), Ok(tag)) = (XNonce::try_from(nonce), Tag::try_from(tag)) else {
            return Err(bad(block));
        };
        out.copy_from_slice(text);
        self.cipher
            .decrypt_inout_detached(&nonce, context, out.into(), &tag)
            .map_err(|_forged| bad(block))
    }

    /// What a block is bound to.
    fn context(&self, block: u64, sequence: Option<u64>) -> Vec<u8> {
        let mut context = self.file_id.as_bytes().to_vec();
        context.extend_from_slice(&block.to_be_bytes());
        if let Some(sequence) = sequence {
            context.extend_from_slice(&sequence.to_be_bytes());
        }
        context
    }
}

impl<F: BlockFile> StorageBackend for Device<F> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().blocks * BLOCK as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        in_bounds(&state, offset, out.len())?;
        let header = state.header.clone();
        drop(state);
        let mut whole = [0; BLOCK];
        for part in parts(offset, out.len()) {
            let out = &mut out[part.of_data];
            if part.block == 0 {
                out.copy_from_slice(&header[part.of_block]);
            } else {
                self.read_block(part.block, &mut whole)?;
                out.copy_from_slice(&whole[part.of_block]);
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        in_bounds(&state, offset, data.len())?;
        let mut whole = [0; BLOCK];
        for part in parts(offset, data.len()) {
            let data = &data[part.of_data];
            if part.block == 0 {
                state.header[part.of_block].copy_from_slice(data);
                self.write_header(&mut state)?;
            } else if data.len() == BLOCK {
                self.write_block(part.block, data)?;
            } else {
                // Fails when the block does not authenticate: what was tampered with is not sealed
                // again.
                self.read_block(part.block, &mut whole)?;
                whole[part.of_block].copy_from_slice(data);
                self.write_block(part.block, &whole)?;
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        let blocks = len.div_ceil(BLOCK as u64);
        if blocks < state.blocks {
            let last = if blocks == 0 { 0 } else { place(blocks) };
            self.file.set_len(last)?;
        }
        // New blocks are zeros that authenticate: a hole in the file is never taken for data.
        for block in state.blocks..blocks {
            if block == 0 {
                state.header.fill(0);
                self.write_header(&mut state)?;
                self.file.set_len(BLOCKS_AT)?;
            } else {
                self.write_block(block, &[0; BLOCK])?;
            }
        }
        state.blocks = blocks;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        // The lock is held: a header that is written meanwhile must not count as flushed.
        let mut state = self.state();
        self.file.sync()?;
        if state.pending {
            state.durable = state.durable.other();
            state.pending = false;
        }
        Ok(())
    }
}

impl<F: fmt::Debug> fmt::Debug for Device<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// A piece of a read or write within one block.
pub(super) struct Extent {
    pub(super) block: u64,
    pub(super) of_block: std::ops::Range<usize>,
    pub(super) of_data: std::ops::Range<usize>,
}

pub(super) fn parts(offset: u64, length: usize) -> impl Iterator<Item = Extent> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let start = (at % BLOCK as u64) as usize;
        let count = (BLOCK - start).min(length - done);
        let part = Extent {
            block: at / BLOCK as u64,
            of_block: start..start + count,
            of_data: done..done + count,
        };
        done += count;
        (count > 0).then_some(part)
    })
}

fn in_bounds(state: &State, offset: u64, length: usize) -> io::Result<()> {
    match offset.checked_add(length as u64) {
        Some(end) if end <= state.blocks * BLOCK as u64 => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Where a block other than the header lies.
fn place(block: u64) -> u64 {
    BLOCKS_AT + (block - 1) * STORED
}

fn bad(block: u64) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, BadBlock { block })
}

pub(super) const BLOCK: usize = 4096;
const NONCE: usize = 24;
const SEQUENCE: usize = 8;
/// A block as it is stored: nonce, ciphertext, tag.
pub(super) const STORED: u64 = (NONCE + BLOCK + 16) as u64;
pub(super) const SLOT: usize = SEQUENCE + STORED as usize;
/// Slots begin at page boundaries, so that a torn write of one never reaches into the other.
pub(super) const SLOT_STRIDE: u64 = 8192;
pub(super) const BLOCKS_AT: u64 = 2 * SLOT_STRIDE;
