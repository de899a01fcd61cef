//! A device that is only read: what redb writes to what it opens stays in memory, and goes with it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use super::device::{BLOCK, parts};

#[derive(Debug)]
pub(super) struct Overlay<D> {
    below: D,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    length: u64,
    /// By index: the blocks that were written.
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl<D: StorageBackend> Overlay<D> {
    pub(super) fn on(below: D) -> io::Result<Self> {
        let state = State {
            length: below.len()?,
            blocks: BTreeMap::new(),
        };
        Ok(Self {
            below,
            state: Mutex::new(state),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A block as it lies below; zeros beyond the end.
    fn block_below(&self, block: u64) -> io::Result<Vec<u8>> {
        let mut data = vec![0; BLOCK];
        let at = block * BLOCK as u64;
        let there = self.below.len()?.saturating_sub(at).min(BLOCK as u64);
        let there = usize::try_from(there).unwrap_or(BLOCK);
        self.below.read(at, &mut data[..there])?;
        Ok(data)
    }
}

impl<D: StorageBackend> StorageBackend for Overlay<D> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        for part in parts(offset, out.len()) {
            let out = &mut out[part.of_data];
            match state.blocks.get(&part.block) {
                Some(data) => out.copy_from_slice(&data[part.of_block]),
                None => {
                    let at = part.block * BLOCK as u64 + part.of_block.start as u64;
                    self.below.read(at, out)?;
                }
            }
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut state = self.state();
        state.length = length;
        state
            .blocks
            .retain(|block, _| block * (BLOCK as u64) < length);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        for part in parts(offset, data.len()) {
            let mut whole = match state.blocks.remove(&part.block) {
                Some(whole) => whole,
                None => self.block_below(part.block)?,
            };
            whole[part.of_block].copy_from_slice(&data[part.of_data]);
            drop(state.blocks.insert(part.block, whole));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use redb::backends::InMemoryBackend;

    use super::*;

    #[test]
    fn reads_what_was_written_over_what_lies_below_which_stays_as_it_is() {
        let below = InMemoryBackend::new();
        below.set_len(3 * BLOCK as u64).unwrap();
        below.write(0, &vec![7; 3 * BLOCK]).unwrap();
        let overlay = Overlay::on(below).unwrap();
        // Across the border of two blocks, and beyond the end.
        overlay.write(BLOCK as u64 - 2, &[1, 2, 3, 4]).unwrap();
        overlay.set_len(4 * BLOCK as u64).unwrap();
        overlay.write(3 * BLOCK as u64 + 1, &[5]).unwrap();
        let mut all = vec![9; 4 * BLOCK];
        overlay.read(0, &mut all).unwrap();
        let mut expected = vec![7; 3 * BLOCK];
        expected[BLOCK - 2..BLOCK + 2].copy_from_slice(&[1, 2, 3, 4]);
        expected.resize(4 * BLOCK, 0);
        expected[3 * BLOCK + 1] = 5;
        assert!(all == expected);
        let mut part = [0; 2];
        overlay.read(BLOCK as u64 - 1, &mut part).unwrap();
        assert_eq!(part, [2, 3]);
        let mut first = vec![0; 3 * BLOCK];
        overlay.below.read(0, &mut first).unwrap();
        assert!(first.iter().all(|byte| *byte == 7));
    }
}
