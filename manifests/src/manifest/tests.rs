//! The rules of a manifest.

use super::*;
use crate::MacKey;

fn time() -> Timestamp {
    Timestamp::from_unix(1_795_370_645).unwrap()
}

fn wrap(provider: ProviderKind, key_id: &str, algorithm: WrapAlgorithm) -> Wrap {
    Wrap {
        provider,
        key_id: key_id.parse().unwrap(),
        algorithm,
        at: time(),
        blob: vec![1, 2, 3],
    }
}

fn kms(number: usize) -> Wrap {
    wrap(
        ProviderKind::AwsKms,
        &format!("arn:{number}"),
        WrapAlgorithm::SymmetricDefault,
    )
}

fn dek(id: u8) -> DekEntry {
    DekEntry {
        id: DekId::from_bytes([id; 8]),
        created: time(),
        wraps: vec![kms(0)],
    }
}

fn made(state: State, revision: u64, deks: Vec<DekEntry>) -> Result<Manifest, InvalidManifest> {
    Manifest::new(
        "db:sqlite:tenant:demo:demo.sqlite3".parse().unwrap(),
        "0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a10".parse().unwrap(),
        Cipher::Sqlcipher4,
        state,
        revision,
        time(),
        deks,
    )
}

fn with_wraps(wraps: Vec<Wrap>) -> Result<Manifest, InvalidManifest> {
    made(State::Ready, 1, vec![DekEntry { wraps, ..dek(1) }])
}

#[test]
fn rejects_a_number_of_deks_that_does_not_fit_the_state() {
    let deks = |count: u8| (0..count).map(dek).collect::<Vec<_>>();
    for (state, right) in [(State::New, 1), (State::Ready, 1), (State::Rekeying, 2)] {
        for count in 0..4 {
            let refused = made(state, 1, deks(count)).err();
            let expected = (count != right).then_some(InvalidManifest::DekCount);
            assert_eq!(refused, expected, "{state} {count}");
        }
    }
}

#[test]
fn rejects_two_deks_of_one_id() {
    assert_eq!(
        made(State::Rekeying, 1, vec![dek(1), dek(1)]),
        Err(InvalidManifest::DuplicateDek)
    );
}

#[test]
fn rejects_a_cipher_that_does_not_fit_the_subject() {
    for (subject, right, wrong) in [
        ("db:sqlite:tenant:a:f", Cipher::Sqlcipher4, Cipher::Blocks1),
        (
            "cache:libsql:tenant:a:f",
            Cipher::Sqlcipher4,
            Cipher::Blocks1,
        ),
        ("db:redb:control:f", Cipher::Blocks1, Cipher::Sqlcipher4),
    ] {
        let made = |cipher| {
            let id = made(State::Ready, 1, vec![dek(1)]).unwrap().file_id();
            let subject = subject.parse().unwrap();
            Manifest::new(subject, id, cipher, State::Ready, 1, time(), vec![dek(1)])
        };
        assert_eq!(made(right).unwrap().cipher(), right);
        assert_eq!(made(wrong), Err(InvalidManifest::Cipher));
    }
}

#[test]
fn rejects_revisions_outside_1_to_2_to_the_63_less_1() {
    for revision in [1, 9_223_372_036_854_775_807] {
        let manifest = made(State::Ready, revision, vec![dek(1)]).unwrap();
        assert_eq!(manifest.revision(), revision);
    }
    for revision in [0, 9_223_372_036_854_775_808, u64::MAX] {
        assert_eq!(
            made(State::Ready, revision, vec![dek(1)]),
            Err(InvalidManifest::Revision)
        );
    }
}

#[test]
fn rejects_a_dek_without_wraps_or_with_nine() {
    assert_eq!(with_wraps(vec![]), Err(InvalidManifest::WrapCount(0)));
    assert!(with_wraps((0..8).map(kms).collect()).is_ok());
    assert_eq!(
        with_wraps((0..9).map(kms).collect()),
        Err(InvalidManifest::WrapCount(9))
    );
}

#[test]
fn rejects_a_second_wrap_by_the_same_key() {
    assert_eq!(
        with_wraps(vec![kms(0), kms(1), kms(0)]),
        Err(InvalidManifest::DuplicateWrap)
    );
    // The key ids of two providers have nothing to do with each other.
    let local = |kind| wrap(kind, "9c0d2f6e1b7a4455", WrapAlgorithm::HkdfSha256Aes256Gcm);
    let both = vec![
        local(ProviderKind::MasterKeyFile),
        local(ProviderKind::KeyDir),
    ];
    assert!(with_wraps(both).is_ok());
    // Nor have two algorithms: the same key is the same key.
    let mut other = local(ProviderKind::KeyDir);
    other.algorithm = WrapAlgorithm::HkdfSha256XChaCha20Poly1305;
    assert_eq!(
        with_wraps(vec![local(ProviderKind::KeyDir), other]),
        Err(InvalidManifest::DuplicateWrap)
    );
}

#[test]
fn accepts_both_deks_wrapped_by_the_same_key() {
    assert!(made(State::Rekeying, 1, vec![dek(1), dek(2)]).is_ok());
}

#[test]
fn rejects_wrapped_keys_of_0_bytes_and_more_than_8_kib() {
    for (length, refused) in [(0, true), (1, false), (8192, false), (8193, true)] {
        let mut wrap = kms(0);
        wrap.blob = vec![0; length];
        let expected = refused.then_some(InvalidManifest::WrappedSize);
        assert_eq!(with_wraps(vec![wrap]).err(), expected, "{length}");
    }
}

#[test]
fn rejects_a_key_id_of_another_provider() {
    assert_eq!(
        with_wraps(vec![wrap(
            ProviderKind::AwsKms,
            "alias/nimbus",
            WrapAlgorithm::SymmetricDefault
        )]),
        Err(InvalidManifest::KeyId(ProviderKind::AwsKms))
    );
}

#[test]
fn rejects_an_algorithm_of_another_provider() {
    assert_eq!(
        with_wraps(vec![wrap(
            ProviderKind::Age,
            "age1qx0",
            WrapAlgorithm::SymmetricDefault
        )]),
        Err(InvalidManifest::Algorithm(
            ProviderKind::Age,
            WrapAlgorithm::SymmetricDefault
        ))
    );
}

#[test]
fn rejects_more_than_32_kib_as_text() {
    let wraps = |last: usize| {
        let sizes = [8192, 8192, last];
        let wraps = sizes.into_iter().enumerate().map(|(number, size)| Wrap {
            blob: vec![0; size],
            ..kms(number)
        });
        wraps.collect::<Vec<_>>()
    };
    // The text grows by 4 bytes for each 3: one of the sizes is the last that fits.
    let last = (1..8192)
        .rev()
        .find(|last| with_wraps(wraps(*last)).is_ok());
    let last = last.expect("two wraps of 8 KiB leave room for a third");
    let key = MacKey::init_with(|key| key.fill(7));
    let largest = with_wraps(wraps(last)).unwrap().seal(&key);
    assert!((32 * 1024 - 4..=32 * 1024).contains(&largest.as_bytes().len()));
    assert_eq!(with_wraps(wraps(last + 1)), Err(InvalidManifest::TooLarge));
}

#[test]
fn settles_with_the_kept_dek_alone() {
    let manifest = made(State::Rekeying, 4, vec![dek(1), dek(2)]).unwrap();
    for kept in 0..2 {
        let settled = manifest.settled(kept).unwrap();
        assert_eq!(settled.state(), State::Ready);
        assert_eq!(settled.revision(), 5);
        assert_eq!(settled.deks(), &manifest.deks()[kept..=kept]);
        assert_eq!(settled.subject(), manifest.subject());
        assert_eq!(settled.file_id(), manifest.file_id());
        assert_eq!(settled.created(), manifest.created());
    }
    assert_eq!(manifest.settled(2), Err(InvalidManifest::DekCount));
    let new = made(State::New, 1, vec![dek(1)]).unwrap();
    assert_eq!(new.settled(0).unwrap().state(), State::Ready);
}

#[test]
fn rekeys_to_one_more_dek() {
    let manifest = made(State::Ready, 1, vec![dek(1)]).unwrap();
    let rekeying = manifest.rekeying(dek(2)).unwrap();
    assert_eq!(rekeying.state(), State::Rekeying);
    assert_eq!(rekeying.revision(), 2);
    assert_eq!(rekeying.deks(), [dek(1), dek(2)]);
    assert_eq!(rekeying.rekeying(dek(3)), Err(InvalidManifest::DekCount));
    assert_eq!(
        manifest.rekeying(dek(1)),
        Err(InvalidManifest::DuplicateDek)
    );
}

#[test]
fn rewraps_every_dek_in_one_revision_and_keeps_the_state() {
    let manifest = made(State::Rekeying, 1, vec![dek(1), dek(2)]).unwrap();
    let rewrapped = manifest
        .rewrapped(vec![vec![kms(8)], vec![kms(7)]])
        .unwrap();
    assert_eq!(rewrapped.state(), State::Rekeying);
    assert_eq!(rewrapped.revision(), 2);
    assert_eq!(rewrapped.deks()[0].id, dek(1).id);
    assert_eq!(rewrapped.deks()[0].wraps, [kms(8)]);
    assert_eq!(rewrapped.deks()[1].wraps, [kms(7)]);
    assert_eq!(
        manifest.rewrapped(vec![vec![kms(7)]]),
        Err(InvalidManifest::DekCount)
    );
    assert_eq!(
        manifest.rewrapped(vec![vec![kms(7)], vec![]]),
        Err(InvalidManifest::WrapCount(0))
    );
}

#[test]
fn rejects_a_revision_after_the_last() {
    let last = made(State::Ready, 9_223_372_036_854_775_807, vec![dek(1)]).unwrap();
    assert_eq!(last.settled(0), Err(InvalidManifest::Revision));
}
