//! What was done to the file behind our back: refused, whatever it is, or of no consequence.

use super::super::device::{BLOCKS_AT, SLOT_STRIDE, STORED};
use super::*;
use crate::envelope::{Trouble, manifest_path};

#[tokio::test]
async fn holds_nothing_in_plaintext() {
    let house = House::new();
    let path = house.filled().await;
    let bytes = std::fs::read(path).unwrap();
    for word in [&b"tenant"[..], b"redb", b"manifests", b"t17.sqlite3"] {
        assert!(!bytes.windows(word.len()).any(|window| window == word));
    }
}

#[tokio::test]
async fn rejects_plaintext_while_encryption_is_on_and_the_reverse() {
    let house = House::new();
    drop(
        Control::open(&Envelope::plaintext(), house.dir.path())
            .await
            .unwrap(),
    );
    let error = house.open().await.unwrap_err();
    assert_eq!(error.trouble(), Trouble::Plaintext);

    let house = House::new();
    let _path = house.filled().await;
    let error = Control::open(&Envelope::plaintext(), house.dir.path())
        .await
        .unwrap_err();
    assert_eq!(error.trouble(), Trouble::KeyUnavailable);
}

#[tokio::test]
async fn rejects_another_files_content() {
    let (one, two) = (House::new(), House::new());
    let (from, to) = (one.filled().await, two.filled().await);
    let _bytes = std::fs::copy(from, to).unwrap();
    let error = two.open().await.unwrap_err();
    assert!(
        matches!(error, ControlError::KeyMismatch { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn rejects_a_file_that_was_emptied_cut_or_removed() {
    let house = House::new();
    let path = house.filled().await;
    let whole = std::fs::read(&path).unwrap();
    for length in [whole.len() / 2, BLOCKS_AT as usize + 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = house.open().await.unwrap_err();
        assert_eq!(error.trouble(), Trouble::Corrupt, "{length}: {error:?}");
    }
    std::fs::write(&path, b"").unwrap();
    let error = house.open().await.unwrap_err();
    assert_eq!(error.trouble(), Trouble::DatabaseMissing);
    std::fs::remove_file(&path).unwrap();
    let error = house.open().await.unwrap_err();
    assert_eq!(error.trouble(), Trouble::DatabaseMissing);
    std::fs::write(&path, &whole).unwrap();
    drop(house.open().await.unwrap());
}

/// Where each stored block of a file lies, but for the header's two slots.
fn blocks(length: usize) -> Vec<std::ops::Range<usize>> {
    let (first, stored) = (BLOCKS_AT as usize, STORED as usize);
    (0..(length - first) / stored)
        .map(|block| first + block * stored..first + (block + 1) * stored)
        .collect()
}

#[tokio::test]
async fn rejects_any_single_block_that_is_zeroed_changed_or_swapped_and_used() {
    let house = House::new();
    let path = house.filled().await;
    let whole = std::fs::read(&path).unwrap();
    let all = blocks(whole.len());
    let mut refused = 0;
    for (index, block) in all.iter().enumerate() {
        let mut zeroed = whole.clone();
        zeroed[block.clone()].fill(0);
        let mut changed = whole.clone();
        changed[block.start + 100] ^= 1;
        let mut swapped = whole.clone();
        let other = &all[(index + 1) % all.len()];
        swapped[block.clone()].copy_from_slice(&whole[other.clone()]);
        let outcomes = [zeroed, changed, swapped].map(|bytes| {
            std::fs::write(&path, bytes).unwrap();
            house.envelope.clone()
        });
        for envelope in outcomes {
            match Control::open(&envelope, house.dir.path()).await {
                // A block that nothing refers to is not read, and is written whole before it is.
                Ok(control) => {
                    for n in 0..40 {
                        let copy = control.get(&tenant_subject(&format!("t{n}"))).unwrap();
                        assert!(copy.all().eq([&[3; 700][..]]));
                    }
                }
                Err(error) => {
                    assert_eq!(error.trouble(), Trouble::Corrupt, "{index}: {error:?}");
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 10, "only {refused} of {} mattered", all.len() * 3);
}

#[tokio::test]
async fn rejects_a_single_block_put_back_from_an_older_copy() {
    let house = House::new();
    let path = house.filled().await;
    let old = std::fs::read(&path).unwrap();
    let _path = house.filled().await;
    let new = std::fs::read(&path).unwrap();
    let mut refused = 0;
    for block in blocks(old.len().min(new.len())) {
        if old[block.clone()] == new[block.clone()] {
            continue;
        }
        let mut bytes = new.clone();
        bytes[block.clone()].copy_from_slice(&old[block]);
        std::fs::write(&path, bytes).unwrap();
        match house.open().await {
            Ok(control) => {
                // Nothing refers to it: what is read is the newest.
                for n in 0..40 {
                    let copy = control.get(&tenant_subject(&format!("t{n}"))).unwrap();
                    assert!(copy.all().eq([&[3; 700][..]]));
                }
            }
            Err(error) => {
                assert_eq!(error.trouble(), Trouble::Corrupt, "{error:?}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
}

#[tokio::test]
async fn lives_with_one_damaged_header_slot_and_not_with_two() {
    let house = House::new();
    let path = house.filled().await;
    let whole = std::fs::read(&path).unwrap();
    let damage = |slots: &[u64]| {
        let mut bytes = whole.clone();
        for slot in slots {
            bytes[*slot as usize + 50] ^= 1;
        }
        std::fs::write(&path, bytes).unwrap();
    };
    damage(&[0, SLOT_STRIDE]);
    let error = house.open().await.unwrap_err();
    assert!(
        matches!(error, ControlError::KeyMismatch { .. }),
        "{error:?}"
    );
    // The newest of the two is lost: the one before it leads to the state of the last flush but
    // one, which redb repairs or refuses.
    for slot in [0, SLOT_STRIDE] {
        damage(&[slot]);
        if let Err(error) = house.open().await {
            assert_eq!(error.trouble(), Trouble::Corrupt, "{error:?}");
        }
    }
}

#[tokio::test]
async fn sets_aside_what_does_not_open_beside_a_new_manifest() {
    let house = House::new();
    let path = Control::path_in(house.dir.path());
    let prepared = house
        .envelope
        .prepare(&path, &subject(), Cipher::Blocks1, Intent::Create)
        .await;
    drop(prepared.unwrap());
    std::fs::write(&path, [9; 100]).unwrap();
    drop(house.open().await.unwrap());
    assert!(manifest_path(&path).exists());
    let aside = house.dir.path().join("nimbus-control.db.set-aside-1");
    assert_eq!(std::fs::read(aside).unwrap(), [9; 100]);
}
