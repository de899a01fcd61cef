//! What holds of every manifest: one spelling, no shorter one inside it, and no change that goes
//! unnoticed.

#![expect(
    clippy::disallowed_methods,
    reason = "a test reads and damages files by hand"
)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nimbus_manifests::{
    DekEntry, DekId, FileId, KeyId, MAX_MANIFEST_BYTES, MacKey, Manifest, ProviderKind,
    SealedManifest, State, Subject, Timestamp, Wrap, WrapAlgorithm,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn reads_what_it_wrote_and_writes_what_it_read(manifest in manifest(), key in any::<[u8; 32]>()) {
        let sealed = manifest.seal(&mac_key(key));
        prop_assert!(sealed.as_bytes().len() <= MAX_MANIFEST_BYTES);
        let read = SealedManifest::parse(sealed.as_bytes()).unwrap();
        prop_assert_eq!(read.as_bytes(), sealed.as_bytes());
        prop_assert_eq!(read.verify(&mac_key(key)), Ok(&manifest));
    }

    #[test]
    fn rejects_prefixes_of_any_manifest(manifest in manifest(), cuts in vec(any::<Index>(), 64)) {
        let sealed = manifest.seal(&mac_key([7; 32]));
        let bytes = sealed.as_bytes();
        for cut in cuts {
            let end = cut.index(bytes.len());
            prop_assert!(SealedManifest::parse(&bytes[..end]).is_err(), "{} bytes", end);
        }
    }

    #[test]
    fn rejects_changed_bytes_of_any_manifest(
        manifest in manifest(),
        changes in vec((any::<Index>(), 1..=255_u8), 64),
    ) {
        let key = mac_key([7; 32]);
        let sealed = manifest.seal(&key);
        for (at, change) in changes {
            let mut bytes = sealed.as_bytes().to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= change;
            prop_assert!(refused(&bytes, &key), "byte {} ^ {:#04x}", at, change);
        }
    }

    #[test]
    fn rejects_any_manifest_under_another_key(manifest in manifest(), one in any::<[u8; 32]>(), bit in 0..256_usize) {
        let sealed = manifest.seal(&mac_key(one));
        let mut other = one;
        other[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(sealed.verify(&mac_key(other)).is_err());
    }

    #[test]
    fn reads_any_bytes_without_panic(bytes in vec(any::<u8>(), 0..2048), at in any::<Index>()) {
        // Alone, and spliced into a manifest where the parser gets as far as them.
        let (vector, key) = vector("rekeying");
        let at = at.index(vector.len());
        let spliced = [&vector[..at], &bytes, &vector[at..]].concat();
        prop_assert!(SealedManifest::parse(&bytes).is_err());
        prop_assert_eq!(refused(&spliced, &key), !bytes.is_empty());
    }
}

#[test]
fn rejects_every_strict_prefix_of_the_vectors() {
    for name in ["master-key-file", "age", "rekeying", "eight-wraps"] {
        let (bytes, _key) = vector(name);
        for end in 0..bytes.len() {
            assert!(
                SealedManifest::parse(&bytes[..end]).is_err(),
                "{name}: {end} bytes"
            );
        }
        assert!(SealedManifest::parse(&bytes).is_ok());
    }
}

#[test]
fn rejects_every_other_value_of_every_byte_of_a_vector() {
    let (vector, key) = vector("master-key-file");
    assert!(!refused(&vector, &key));
    for at in 0..vector.len() {
        let mut bytes = vector.clone();
        for change in 1..=255 {
            bytes[at] = vector[at] ^ change;
            assert!(refused(&bytes, &key), "byte {at} ^ {change:#04x}");
        }
    }
}

#[test]
fn rejects_every_byte_left_out_said_twice_or_put_in() {
    let (vector, key) = vector("rekeying");
    for at in 0..=vector.len() {
        let (head, tail) = vector.split_at(at);
        for more in [b'\n', b' ', b'0', b'A', b'=', b':', 0] {
            let bytes = [head, &[more], tail].concat();
            assert!(refused(&bytes, &key), "{more:#04x} at {at}");
        }
        if let Some((first, rest)) = tail.split_first() {
            assert!(refused(&[head, rest].concat(), &key), "without byte {at}");
            let twice = [head, &[*first], tail].concat();
            assert!(refused(&twice, &key), "byte {at} twice");
        }
    }
}

fn refused(bytes: &[u8], key: &MacKey) -> bool {
    SealedManifest::parse(bytes).map_or(true, |sealed| sealed.verify(key).is_err())
}

fn mac_key(bytes: [u8; 32]) -> MacKey {
    MacKey::init_with(|key| *key = bytes)
}

/// A test vector and the key of its MAC.
fn vector(name: &str) -> (Vec<u8>, MacKey) {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let file = format!("accepted/{name}.nimbus-enc");
    let index = fs::read(vectors.join("accepted.json")).unwrap();
    let cases: Vec<serde_json::Value> = serde_json::from_slice(&index).unwrap();
    let case = cases.iter().find(|case| case["file"] == *file).unwrap();
    let key = case["deks"][0]["manifest_key"].as_str().unwrap();
    let key = data_encoding::HEXLOWER.decode(key.as_bytes()).unwrap();
    let key = mac_key(key.try_into().unwrap());
    (fs::read(vectors.join(&file)).unwrap(), key)
}

/// Any valid manifest that fits into 32 KiB.
fn manifest() -> impl Strategy<Value = Manifest> {
    let parts = (
        subject(),
        any::<[u8; 16]>(),
        select(State::ALL),
        1..=u64::try_from(i64::MAX).unwrap(),
        time(),
        [dek(), dek()],
    );
    let made = |(subject, file_id, state, revision, created, deks): (
        Subject,
        [u8; 16],
        State,
        u64,
        Timestamp,
        [DekEntry; 2],
    )| {
        let count = if state == State::Rekeying { 2 } else { 1 };
        let file_id = FileId::from_uuid(uuid::Uuid::from_bytes(file_id));
        let deks = deks.into_iter().take(count).collect();
        let cipher = subject.cipher();
        Manifest::new(subject, file_id, cipher, state, revision, created, deks).ok()
    };
    parts.prop_filter_map("two deks of one id, or too large", made)
}

fn subject() -> impl Strategy<Value = Subject> {
    let form = prop_oneof![
        "db:sqlite:tenant:[a-z0-9][a-z0-9_-]{0,47}:",
        Just("db:redb:control:".to_owned()),
        "cache:libsql:tenant:[a-z0-9][a-z0-9_-]{0,47}:",
        "db:external:tenant:[a-z0-9][a-z0-9_-]{0,47}:",
    ];
    let file_name = prop_oneof!["[a-z]{1,12}\\.sqlite3", "[!-.0-9;-\\[\\]-~]{1,255}"];
    (form, file_name).prop_filter_map("`.` and `..` are no file names", |(form, file_name)| {
        (form + &file_name).parse().ok()
    })
}

fn time() -> impl Strategy<Value = Timestamp> {
    (0..=253_370_764_799_i64).prop_map(|seconds| Timestamp::from_unix(seconds).unwrap())
}

fn dek() -> impl Strategy<Value = DekEntry> {
    (any::<[u8; 8]>(), time(), vec(wrap(), 1..=8)).prop_map(|(id, created, wraps)| {
        let by_key: BTreeMap<(&str, KeyId), Wrap> = wraps
            .into_iter()
            .map(|wrap| ((wrap.provider.as_str(), wrap.key_id.clone()), wrap))
            .collect();
        DekEntry {
            id: DekId::from_bytes(id),
            created,
            wraps: by_key.into_values().collect(),
        }
    })
}

fn wrap() -> impl Strategy<Value = Wrap> {
    use ProviderKind::{Age, AwsKms, KeyDir, MasterKeyFile};
    let local = select(vec![
        WrapAlgorithm::HkdfSha256Aes256Gcm,
        WrapAlgorithm::HkdfSha256XChaCha20Poly1305,
    ]);
    let by = prop_oneof![
        (select(vec![MasterKeyFile, KeyDir]), "[0-9a-f]{16}", local),
        (
            Just(AwsKms),
            "arn:[!-~]{0,508}",
            Just(WrapAlgorithm::SymmetricDefault)
        ),
        (
            Just(Age),
            "age1[0-9a-z]{0,508}",
            Just(WrapAlgorithm::X25519)
        ),
    ];
    let blob = prop_oneof![
        15 => vec(any::<u8>(), 1..200),
        1 => vec(any::<u8>(), 1..=8192),
    ];
    (by, time(), blob).prop_map(|((provider, key_id, algorithm), at, blob)| Wrap {
        provider,
        key_id: key_id.parse().unwrap(),
        algorithm,
        at,
        blob,
    })
}
