//! Which pages are kept, and for how long: shards of S3-FIFO
//! (<https://dl.acm.org/doi/10.1145/3600006.3613147>).
//!
//! A page begins in the queue of new ones, a tenth of the shard. Used again before its turn comes,
//! it moves to the main queue; otherwise it goes, and is remembered by a few bits of its IV, so
//! that it begins in the main queue when it comes back. So what is read once, as by a scan,
//! displaces nothing but what was read once. Entries of the main queue that were used since their
//! last turn get another.
//!
//! ```text
//! slot     ciphertext, IV │ …        MAC  │ plaintext │ …
//!          0                4032     4096                8112    8192
//! ```

use super::super::page::{CONTENT, PAGE};

/// What is kept of one page.
pub(super) type Slot = [u8; SLOT];

/// The MAC of a page.
pub(super) type Mac = [u8; MAC];

/// Which page it is. The IV is random and new at each writing, so that it serves as its own hash.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Name {
    /// Whose it is.
    pub(super) owner: u32,
    /// The number of the page, as it is authenticated.
    pub(super) number: [u8; 4],
    /// The IV of the page.
    pub(super) iv: [u8; IV],
    /// Bytes of ciphertext: less in page 1, which begins with a salt.
    pub(super) length: u16,
}

/// Where an entry was found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    slot: u32,
    generation: u32,
}

/// What happened in a shard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Bytes of the pages that are kept, in both forms.
    pub bytes: u64,
    /// Pages that were kept when they were read.
    pub hits: u64,
    /// Pages that were not.
    pub misses: u64,
    /// Pages that made room for others.
    pub evictions: u64,
}

/// A part of the cache, which one thread uses at a time. Slots are counted from 1, and 0 is none.
#[derive(Debug)]
pub(super) struct Shard {
    slots: &'static mut [Slot],
    /// Of the slots that were ever used.
    entries: Vec<Entry>,
    /// The first entry of each bucket.
    buckets: Box<[u32]>,
    /// Bits of the IVs that went unused.
    ghosts: Box<[u32]>,
    /// Slots that were emptied.
    free: Vec<u32>,
    fresh: List,
    main: List,
    /// The entries of each owner.
    owners: Vec<List>,
    stats: CacheStats,
}

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    name: Name,
    generation: u32,
    uses: u8,
    is_main: bool,
    /// The next in its bucket.
    bucket: u32,
    /// Its neighbours in its queue, and among its owner's.
    links: [Links; 2],
}

#[derive(Debug, Clone, Copy, Default)]
struct Links {
    older: u32,
    newer: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct List {
    oldest: u32,
    newest: u32,
    length: u32,
}

impl Shard {
    /// An empty one.
    pub(super) fn new(slots: &'static mut [Slot]) -> Self {
        let count = slots.len().next_power_of_two();
        // Zeroed by the operating system, and not touched before they are used; so are the entries'
        // places.
        let zeros = || vec![0; count].into_boxed_slice();
        Self {
            entries: Vec::with_capacity(slots.len()),
            buckets: zeros(),
            ghosts: zeros(),
            free: Vec::new(),
            fresh: List::default(),
            main: List::default(),
            owners: Vec::new(),
            stats: CacheStats::default(),
            slots,
        }
    }

    /// Finds the entry of that name whose ciphertext is `ciphertext`, byte for byte, and gives the
    /// MAC that was verified over it.
    pub(super) fn find(&mut self, name: &Name, ciphertext: &[u8]) -> Option<(Found, Mac)> {
        let found = self.named(name).filter(|slot| {
            let kept = &self.slots[place(*slot)];
            kept[..usize::from(name.length)] == *ciphertext
        });
        let Some(slot) = found else {
            self.stats.misses += 1;
            return None;
        };
        self.stats.hits += 1;
        let entry = &mut self.entries[place(slot)];
        entry.uses = (entry.uses + 1).min(MOST_USES);
        let found = Found {
            slot,
            generation: entry.generation,
        };
        let mut mac = [0; MAC];
        mac.copy_from_slice(&self.slots[place(slot)][PAGE - MAC..PAGE]);
        Some((found, mac))
    }

    /// Copies the plaintext of what was found into `out`, unless its place was taken meanwhile.
    pub(super) fn copy(&self, found: Found, iv: &[u8], out: &mut [u8]) -> bool {
        let entry = &self.entries[place(found.slot)];
        let is_there = entry.generation == found.generation
            && entry.name.iv == iv
            && usize::from(entry.name.length) == out.len();
        if is_there {
            out.copy_from_slice(&self.slots[place(found.slot)][PAGE..PAGE + out.len()]);
        }
        is_there
    }

    /// Keeps a page whose MAC was verified, or made, over these bytes.
    pub(super) fn insert(&mut self, name: &Name, ciphertext: &[u8], mac: &Mac, plaintext: &[u8]) {
        let length = usize::from(name.length);
        if length > CONTENT || ciphertext.len() != length || plaintext.len() != length {
            return;
        }
        if let Some(old) = self.named(name) {
            self.remove(old);
            self.free.push(old);
        }
        let slot = self.vacant();
        let kept = &mut self.slots[place(slot)];
        kept[..length].copy_from_slice(ciphertext);
        kept[length..length + IV].copy_from_slice(&name.iv);
        kept[PAGE - MAC..PAGE].copy_from_slice(mac);
        kept[PAGE..PAGE + length].copy_from_slice(plaintext);
        // Of a longer one before. No compiler leaves it out: the slots are memory that lives on.
        kept[PAGE + length..].fill(0);
        let ghost = self.ghost(&name.iv);
        let is_main = self.ghosts[ghost] == bits(&name.iv);
        if is_main {
            self.ghosts[ghost] = 0;
        }
        let bucket = self.bucket(&name.iv);
        let entry = &mut self.entries[place(slot)];
        *entry = Entry {
            name: *name,
            generation: entry.generation.wrapping_add(1),
            is_main,
            bucket: self.buckets[bucket],
            ..Entry::default()
        };
        self.buckets[bucket] = slot;
        self.stats.bytes += SLOT as u64;
        self.enqueue(slot);
        let owner = name.owner as usize;
        if self.owners.len() <= owner {
            self.owners.resize(owner + 1, List::default());
        }
        push(&mut self.entries, &mut self.owners[owner], OWNED, slot);
    }

    /// Removes and wipes pages of `owner`, at most `most`. Whether there may be more.
    pub(super) fn forget(&mut self, owner: u32, most: usize) -> bool {
        for _ in 0..most {
            let list = self.owners.get(owner as usize);
            let Some(slot) = list.map(|list| list.oldest).filter(|slot| *slot != NONE) else {
                return false;
            };
            self.remove(slot);
            self.slots[place(slot)].fill(0);
            self.free.push(slot);
        }
        true
    }

    pub(super) fn stats(&self) -> CacheStats {
        self.stats
    }

    fn named(&self, name: &Name) -> Option<u32> {
        let mut slot = self.buckets[self.bucket(&name.iv)];
        while slot != NONE {
            let entry = &self.entries[place(slot)];
            if entry.name == *name {
                return Some(slot);
            }
            slot = entry.bucket;
        }
        None
    }

    /// A slot that holds nothing that is wanted.
    fn vacant(&mut self) -> u32 {
        if let Some(slot) = self.free.pop() {
            return slot;
        }
        if self.entries.len() < self.slots.len() {
            self.entries.push(Entry::default());
            return self.entries.len() as u32;
        }
        self.evict()
    }

    /// Takes the place of a page that has not been used for long.
    fn evict(&mut self) -> u32 {
        let most_fresh = (self.slots.len() / FRESH_SHARE).max(1) as u32;
        loop {
            let from_fresh = self.fresh.length >= most_fresh || self.main.length == 0;
            let slot = if from_fresh {
                self.fresh.oldest
            } else {
                self.main.oldest
            };
            let entry = &mut self.entries[place(slot)];
            if entry.uses == 0 {
                let iv = entry.name.iv;
                self.remove(slot);
                if from_fresh {
                    let ghost = self.ghost(&iv);
                    self.ghosts[ghost] = bits(&iv);
                }
                self.stats.evictions += 1;
                return slot;
            }
            // From the fresh to the main ones, or on to another turn.
            entry.uses = if from_fresh { 0 } else { entry.uses - 1 };
            self.dequeue(slot);
            self.entries[place(slot)].is_main = true;
            self.enqueue(slot);
        }
    }

    /// Takes the entry out of everything that leads to it. Its bytes stay.
    fn remove(&mut self, slot: u32) {
        self.dequeue(slot);
        let Entry { name, bucket, .. } = self.entries[place(slot)];
        unlink(
            &mut self.entries,
            &mut self.owners[name.owner as usize],
            OWNED,
            slot,
        );
        let head = self.bucket(&name.iv);
        if self.buckets[head] == slot {
            self.buckets[head] = bucket;
        } else {
            let mut before = self.buckets[head];
            while self.entries[place(before)].bucket != slot {
                before = self.entries[place(before)].bucket;
            }
            self.entries[place(before)].bucket = bucket;
        }
        let entry = &mut self.entries[place(slot)];
        *entry = Entry {
            generation: entry.generation.wrapping_add(1),
            ..Entry::default()
        };
        self.stats.bytes -= SLOT as u64;
    }

    fn enqueue(&mut self, slot: u32) {
        let list = if self.entries[place(slot)].is_main {
            &mut self.main
        } else {
            &mut self.fresh
        };
        push(&mut self.entries, list, QUEUED, slot);
    }

    fn dequeue(&mut self, slot: u32) {
        let list = if self.entries[place(slot)].is_main {
            &mut self.main
        } else {
            &mut self.fresh
        };
        unlink(&mut self.entries, list, QUEUED, slot);
    }

    fn bucket(&self, iv: &[u8; IV]) -> usize {
        (word(iv, 4) as usize) & (self.buckets.len() - 1)
    }

    fn ghost(&self, iv: &[u8; IV]) -> usize {
        (word(iv, 4) as usize) & (self.ghosts.len() - 1)
    }
}

/// Which of `count` shards a page belongs to. Bits that no shard uses.
pub(super) fn shard(iv: &[u8; IV], count: usize) -> usize {
    word(iv, 0) as usize % count
}

fn push(entries: &mut [Entry], list: &mut List, kind: usize, slot: u32) {
    entries[place(slot)].links[kind] = Links {
        older: list.newest,
        newer: NONE,
    };
    match list.newest {
        NONE => list.oldest = slot,
        newest => entries[place(newest)].links[kind].newer = slot,
    }
    list.newest = slot;
    list.length += 1;
}

fn unlink(entries: &mut [Entry], list: &mut List, kind: usize, slot: u32) {
    let Links { older, newer } = entries[place(slot)].links[kind];
    match older {
        NONE => list.oldest = newer,
        older => entries[place(older)].links[kind].newer = newer,
    }
    match newer {
        NONE => list.newest = older,
        newer => entries[place(newer)].links[kind].older = older,
    }
    list.length -= 1;
}

/// Where the slot lies, which is not none.
fn place(slot: u32) -> usize {
    slot as usize - 1
}

/// What is remembered of an IV; never 0.
fn bits(iv: &[u8; IV]) -> u32 {
    word(iv, 8) | 1
}

fn word(iv: &[u8; IV], at: usize) -> u32 {
    u32::from_le_bytes([iv[at], iv[at + 1], iv[at + 2], iv[at + 3]])
}

pub(super) const IV: usize = 16;
pub(super) const MAC: usize = 64;
pub(super) const SLOT: usize = 2 * PAGE;
/// Memory beside each slot, at most: its entry, its share of buckets and ghosts, its place among
/// the free ones.
pub(super) const BESIDE: usize = size_of::<Entry>() + 6 * size_of::<u32>();
const NONE: u32 = 0;
const QUEUED: usize = 0;
const OWNED: usize = 1;
const MOST_USES: u8 = 3;
/// One in so many slots is for pages that were read once.
const FRESH_SHARE: usize = 10;

#[cfg(test)]
impl Shard {
    /// Whether these bytes stand in any slot.
    pub(super) fn contains(&self, bytes: &[u8]) -> bool {
        let holds = |slot: &Slot| slot.windows(bytes.len()).any(|window| window == bytes);
        self.slots.iter().any(holds)
    }

    pub(super) fn size(&self) -> usize {
        self.slots.len()
    }

    /// Every slot that was ever used is free, or in one bucket, one queue and its owner's list.
    pub(super) fn check(&self) {
        let walk = |list: &List, kind: usize| {
            let mut slots = Vec::new();
            let mut slot = list.oldest;
            while slot != NONE {
                slots.push(slot);
                slot = self.entries[place(slot)].links[kind].newer;
            }
            assert_eq!(slots.len(), list.length as usize);
            assert_eq!(slots.last().copied().unwrap_or(NONE), list.newest);
            slots
        };
        let sorted = |mut slots: Vec<u32>| {
            slots.sort_unstable();
            slots
        };
        let fresh = walk(&self.fresh, QUEUED);
        let main = walk(&self.main, QUEUED);
        assert!(fresh.iter().all(|slot| !self.entries[place(*slot)].is_main));
        assert!(main.iter().all(|slot| self.entries[place(*slot)].is_main));
        let queued = sorted([fresh, main].concat());
        let owned: Vec<Vec<u32>> = self.owners.iter().map(|list| walk(list, OWNED)).collect();
        assert_eq!(queued, sorted(owned.concat()));
        let mut bucketed = Vec::new();
        for (bucket, first) in self.buckets.iter().enumerate() {
            let mut slot = *first;
            while slot != NONE {
                assert_eq!(self.bucket(&self.entries[place(slot)].name.iv), bucket);
                bucketed.push(slot);
                slot = self.entries[place(slot)].bucket;
            }
        }
        assert_eq!(queued, sorted(bucketed));
        assert_eq!(self.stats.bytes, (queued.len() * SLOT) as u64);
        let all: Vec<u32> = (1..=self.entries.len() as u32).collect();
        assert_eq!(all, sorted([queued, self.free.clone()].concat()));
    }
}
