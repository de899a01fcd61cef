//! The test vectors of the manifest format (`manifests/tests/vectors`, made in Python): fixed keys
//! open each wrap to the fixed data key, and what is derived from that is what Python derived.

use std::fs;
use std::path::Path;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use nimbus_keyproviders::key_dir::{self, KeyDir};
use nimbus_keyproviders::master_key_file::MasterKeyFile;
use nimbus_keyproviders::{Dek, KeyProvider, ProviderError, Unwrapped};
use nimbus_manifests::{DekEntry, Manifest, ProviderKind, SealedManifest, Wrap, WrapContext};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::common::{file, key, private_dir};

#[tokio::test]
async fn local_keys_open_the_vectors_to_their_data_keys() {
    let mut opened = Vec::new();
    for case in cases("accepted.json") {
        let sealed = sealed(&case);
        let manifest = sealed.claims();
        for (dek, wrap, expected, secrets) in wraps(manifest, &case) {
            let Some(kek) = secrets.get("kek") else {
                continue;
            };
            let found = unwrap(kek, wrap, &context(manifest, dek)).await.unwrap();
            assert_derives(&key(found), manifest, expected);
            opened.push((wrap.provider, wrap.algorithm.as_str()));
        }
    }
    for provider in [ProviderKind::MasterKeyFile, ProviderKind::KeyDir] {
        for algorithm in ["hkdf-sha256+aes-256-gcm", "hkdf-sha256+xchacha20-poly1305"] {
            assert!(
                opened.contains(&(provider, algorithm)),
                "{provider} {algorithm}"
            );
        }
    }
}

#[tokio::test]
async fn the_unwrapped_key_verifies_the_manifest_and_the_next_one_does_not() {
    let case = cases("accepted.json")
        .into_iter()
        .find(|case| case["state"] == "rekeying" && case["deks"][1]["wraps"][0]["kek"].is_string())
        .unwrap();
    let sealed = sealed(&case);
    let manifest = sealed.claims();
    let mut verified = Vec::new();
    for (dek, wrap, _, secrets) in wraps(manifest, &case) {
        if let Some(kek) = secrets.get("kek") {
            let found = key(unwrap(kek, wrap, &context(manifest, dek)).await.unwrap());
            verified.push(
                sealed
                    .verify(&found.manifest_key(&manifest.file_id()))
                    .is_ok(),
            );
        }
    }
    assert_eq!(verified, [true, false]);
}

#[tokio::test]
async fn local_keys_refuse_the_wraps_that_were_moved_or_damaged() {
    let mut refused = 0;
    for case in cases("refused.json") {
        if case["error"] != "unwrap-failed" {
            continue;
        }
        let sealed = sealed(&case);
        let manifest = sealed.claims();
        let dek = &manifest.deks()[0];
        let error = unwrap(&case["kek"], &dek.wraps[0], &context(manifest, dek)).await;
        let name = &case["file"];
        assert!(
            matches!(error, Err(ProviderError::UnwrapFailed { .. })),
            "{name}"
        );
        refused += 1;
    }
    assert!(refused >= 5, "{refused}");
}

#[test]
fn age_identities_open_the_vectors_to_context_and_data_key() {
    let mut opened = 0;
    for case in cases("accepted.json") {
        let sealed = sealed(&case);
        for (_, wrap, expected, secrets) in wraps(sealed.claims(), &case) {
            let Some(identity) = secrets.get("identity") else {
                continue;
            };
            let identity = age::x25519::Identity::from_str(text(identity)).unwrap();
            assert_eq!(identity.to_public().to_string(), wrap.key_id.as_str());
            let plaintext = age::decrypt(&identity, &wrap.blob).unwrap();
            assert_eq!(
                plaintext[..32],
                Sha256::digest(bytes(&secrets["context"]))[..]
            );
            assert_eq!(plaintext[32..], bytes(&expected["dek"]));
            opened += 1;
        }
    }
    assert!(opened >= 5, "{opened}");
}

/// Unwraps as the wrap's own kind of provider, with `kek` in its place in the file system.
async fn unwrap(
    kek: &Value,
    wrap: &Wrap,
    context: &WrapContext<'_>,
) -> Result<Unwrapped, ProviderError> {
    let dir = private_dir();
    let provider: Box<dyn KeyProvider> = match wrap.provider {
        ProviderKind::MasterKeyFile => {
            let path = file(dir.path(), "master.key", &bytes(kek), 0o400);
            Box::new(MasterKeyFile::open(path).unwrap())
        }
        ProviderKind::KeyDir => {
            let path = key_dir::path_for(dir.path(), context.subject);
            let name = path.file_name().unwrap().to_str().unwrap();
            let _ = file(dir.path(), name, &bytes(kek), 0o400);
            Box::new(KeyDir::open(dir.path()).unwrap())
        }
        other => panic!("{other} has no local key"),
    };
    provider.unwrap(wrap, context).await
}

/// The data key shows only in what is derived from it.
fn assert_derives(dek: &Dek, manifest: &Manifest, expected: &Value) {
    let file_id = manifest.file_id();
    assert_eq!(
        dek.cipher_key(&file_id).expose()[..],
        bytes(&expected["data_key"])
    );
    assert_eq!(
        dek.archive_key(&file_id).expose()[..],
        bytes(&expected["archive_key"])
    );
    // The manifest key has no way out: it shows in the MAC it makes.
    let made = manifest.seal(&dek.manifest_key(&file_id));
    let python = nimbus_manifests::MacKey::init_with(|key| {
        key.copy_from_slice(&bytes(&expected["manifest_key"]));
    });
    assert_eq!(made.verify(&python), Ok(manifest));
}

/// Each wrap of the manifest with its data key, and what the vectors know of both.
fn wraps<'a>(
    manifest: &'a Manifest,
    case: &'a Value,
) -> Vec<(&'a DekEntry, &'a Wrap, &'a Value, &'a Value)> {
    let deks = manifest.deks().iter().zip(case["deks"].as_array().unwrap());
    deks.flat_map(|(dek, expected)| {
        let wraps = dek.wraps.iter().zip(expected["wraps"].as_array().unwrap());
        wraps.map(move |(wrap, secrets)| (dek, wrap, expected, secrets))
    })
    .collect()
}

fn context<'a>(manifest: &'a Manifest, dek: &DekEntry) -> WrapContext<'a> {
    WrapContext {
        subject: manifest.subject(),
        file_id: manifest.file_id(),
        cipher: manifest.cipher(),
        dek_id: dek.id,
    }
}

fn sealed(case: &Value) -> SealedManifest {
    SealedManifest::parse(&read(text(&case["file"]))).unwrap()
}

fn cases(index: &str) -> Vec<Value> {
    serde_json::from_slice(&read(index)).unwrap()
}

fn read(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../manifests/tests/vectors")
        .join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

fn bytes(hex: &Value) -> Vec<u8> {
    HEXLOWER.decode(text(hex).as_bytes()).unwrap()
}

fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is not text"))
}
