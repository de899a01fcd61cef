//! What is kept, and for how long.

use super::super::cache::{Cache, Owner, Page, lock};
use super::super::store::{IV, MAC, Mac, SLOT};
use crate::process::Arena;

/// A page of a number, and its name.
fn page(number: u32) -> (Page, Vec<u8>, Mac, Vec<u8>) {
    let mut iv = [0; IV];
    // As random as IVs are: SplitMix64.
    for (half, bytes) in iv.chunks_exact_mut(8).enumerate() {
        let mut z = u64::from(number)
            .wrapping_mul(2)
            .wrapping_add(half as u64)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bytes.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    let length = if number == 1 { 4000 } else { 4016 };
    let fill = |kind: u8| {
        let mut content = vec![kind; length];
        content[..4].copy_from_slice(&number.to_le_bytes());
        content
    };
    let page = Page {
        number: number.to_le_bytes(),
        iv,
        length: length as u16,
    };
    (page, fill(1), [number as u8; MAC], fill(2))
}

fn keep(owner: &Owner, number: u32) {
    let (page, ciphertext, mac, plaintext) = page(number);
    owner.insert(&page, &ciphertext, &mac, &plaintext);
}

/// Whether the page is found, and right.
fn is_kept(owner: &Owner, number: u32) -> bool {
    let (page, ciphertext, mac, plaintext) = page(number);
    let Some((found, kept)) = owner.find(&page, &ciphertext) else {
        return false;
    };
    let mut out = vec![0; plaintext.len()];
    assert!(owner.copy(found, &page.iv, &mut out));
    assert_eq!((kept, out), (mac, plaintext));
    true
}

fn cache(slots: usize) -> &'static Cache {
    let memory = Arena::new(slots * SLOT).unwrap().memory;
    Box::leak(Box::new(Cache::new(memory)))
}

#[test]
fn shards_are_of_one_size() {
    for slots in [1, 63, 64, 65, 127, 129, 130, 1000, 1025, 1040, 2050] {
        let cache = cache(slots);
        let sizes: Vec<usize> = cache
            .shards
            .iter()
            .map(|shard| lock(shard).size())
            .collect();
        let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
        assert!(most - least < sizes.len(), "{slots}: {sizes:?}");
        assert!(sizes.len() <= 16 && sizes.iter().sum::<usize>() == slots);
    }
}

#[test]
fn evicts_nothing_while_there_is_room() {
    let cache = cache(2000);
    let owner = cache.owner();
    for number in 0..1300 {
        keep(&owner, number);
    }
    assert_eq!(cache.stats().evictions, 0);
    assert!((0..1300).all(|number| is_kept(&owner, number)));
}

#[test]
fn finds_by_every_part_of_the_name_and_by_every_byte() {
    let cache = cache(64);
    let owner = cache.owner();
    for number in 1..=20 {
        keep(&owner, number);
    }
    for number in 1..=20 {
        assert!(is_kept(&owner, number));
        assert!(!is_kept(&cache.owner(), number));
        let (page, mut ciphertext, ..) = page(number);
        for at in 0..ciphertext.len() {
            ciphertext[at] ^= 1;
            assert!(owner.find(&page, &ciphertext).is_none());
            ciphertext[at] ^= 1;
        }
        let mut elsewhere = page;
        elsewhere.number[0] ^= 1;
        assert!(owner.find(&elsewhere, &ciphertext).is_none());
        let mut other = page;
        other.iv[7] ^= 1;
        assert!(owner.find(&other, &ciphertext).is_none());
        other = page;
        other.length -= 16;
        assert!(owner.find(&other, &ciphertext[16..]).is_none());
    }
}

#[test]
fn what_was_found_is_not_copied_once_its_place_was_taken() {
    let cache = cache(64);
    let owner = cache.owner();
    keep(&owner, 7);
    let (page, ciphertext, ..) = page(7);
    let (found, _mac) = owner.find(&page, &ciphertext).unwrap();
    let mut out = vec![0; 4016];
    assert!(owner.copy(found, &page.iv, &mut out));
    // The same page again, in the same slot.
    keep(&owner, 7);
    assert!(!owner.copy(found, &page.iv, &mut out));
    let (found, _mac) = owner.find(&page, &ciphertext).unwrap();
    cache.forget(owner.0.number);
    assert!(!owner.copy(found, &page.iv, &mut out));
    keep(&owner, 8);
    assert!(!owner.copy(found, &page.iv, &mut out));
}

#[test]
fn a_scan_does_not_displace_what_is_read_again_and_again() {
    let cache = cache(640);
    let owner = cache.owner();
    let hot = 1..=300;
    for number in hot.clone() {
        keep(&owner, number);
        assert!(is_kept(&owner, number));
    }
    // Ten times as much as there is room for, each page once.
    for number in 1000..7400 {
        keep(&owner, number);
    }
    let left = hot.filter(|number| is_kept(&owner, *number)).count();
    assert!(left >= 295, "{left} of 300");
    assert!(cache.stats().evictions > 6000);
}

#[test]
fn what_comes_back_soon_stays() {
    let cache = cache(64);
    let owner = cache.owner();
    for number in 0..100 {
        keep(&owner, number);
    }
    // Number 35 was the last that went, unused; it comes back, and is remembered.
    assert!(!is_kept(&owner, 35));
    keep(&owner, 35);
    for number in 200..240 {
        keep(&owner, number);
    }
    assert!(is_kept(&owner, 35));
}

#[test]
fn keeps_its_books_whatever_comes_and_goes() {
    let cache = cache(200);
    let mut owners: Vec<Owner> = (0..4).map(|_| cache.owner()).collect();
    let mut random = 88_172_645_463_325_252_u64;
    for step in 0..60_000 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let at = (random >> 8) as usize % owners.len();
        let number = (random >> 16) as u32 % 400;
        match random % 1000 {
            0 => owners[at] = cache.owner(),
            1 => cache.forget(owners[at].0.number),
            2..500 => keep(&owners[at], number),
            _ => drop(is_kept(&owners[at], number)),
        }
        if step % 1000 == 0 {
            cache.check();
        }
    }
    assert!(cache.stats().evictions > 1000 && cache.stats().hits > 1000);
    drop(owners);
    assert_eq!(cache.stats().bytes, 0);
    cache.check();
    assert!(!cache.contains(&[2; 100]));
    assert!(cache.owner().0.number < 5, "numbers are used again");
}

impl Cache {
    fn check(&self) {
        for shard in &self.shards {
            lock(shard).check();
        }
    }
}
