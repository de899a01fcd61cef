//! The plaintext hunt: the real server works under a load of documents with known canaries in
//! values, field names and table names, is killed in the middle, and every byte of its data
//! directory, temporary directory and logs (at the level `trace`) is searched for them, for the
//! admin token, access keys and whom they were used for, and for the keys. With encryption off the
//! same search has to find the canaries.
//!
//! Tenants come into being in each way that HTTP has: made, made anew after a deletion, and made in
//! two attempts with a kill between.

#![expect(
    clippy::disallowed_methods,
    reason = "a test reads and damages files by hand"
)]

mod engines;
mod hunt;
mod load;

use std::fs;
use std::path::PathBuf;

use hmac::{Hmac, KeyInit as _, Mac as _};
use nimbus_test_support::{FaultProxy, Machine, Moto};
use serde_json::Value;
use sha2::Sha256;

use hunt::{Hunt, Needle};

fn machine() -> Machine {
    Machine::new(env!("CARGO_BIN_EXE_nimbus"))
}

#[test]
fn nothing_is_found_with_the_key_of_a_first_start() {
    let machine = machine();
    let prey = work(&machine, &[]);
    assert_nothing(&machine, &prey, &[machine.master_key()]);
}

#[test]
fn nothing_is_found_with_a_master_key_file() {
    let machine = machine();
    let key = machine.path("operator/master.key");
    let path = key.to_str().expect("UTF-8").to_owned();
    let keygen = machine.nimbus(&["encryption", "keygen", "--master-key-file", &path]);
    machine.run_to_end(keygen).expect(0, &[]);
    let prey = work(
        &machine,
        &[
            "--encryption-key-provider",
            "master-key-file",
            "--encryption-master-key-file",
            &path,
        ],
    );
    assert_nothing(&machine, &prey, &[key]);
}

#[test]
fn nothing_is_found_with_a_key_directory() {
    let machine = machine();
    let dir = machine.path("operator");
    let path = dir.to_str().expect("UTF-8").to_owned();
    let mut whose = vec![["--subject", "db:redb:control:nimbus-control.db"]];
    whose.extend(load::TENANTS.map(|tenant| ["--tenant-id", tenant]));
    for whose in whose {
        let keygen = machine.nimbus(&[
            "encryption",
            "keygen",
            "--key-dir",
            &path,
            whose[0],
            whose[1],
        ]);
        machine.run_to_end(keygen).expect(0, &[]);
    }
    let prey = work(
        &machine,
        &[
            "--encryption-key-provider",
            "key-dir",
            "--encryption-key-dir",
            &path,
        ],
    );
    let keys: Vec<PathBuf> = nimbus_test_support::files_under(&dir);
    assert_eq!(keys.len(), load::TENANTS.len() + 1);
    assert_nothing(&machine, &prey, &keys);
}

#[test]
fn nothing_is_found_with_a_kms_key_nor_are_the_data_keys_that_kms_gave() {
    let machine = machine();
    let moto = Moto::start();
    let proxy = FaultProxy::in_front_of(moto.url());
    let arguments = [
        "--encryption-key-provider",
        "aws-kms",
        "--encryption-aws-kms-key-id",
        &moto.create_key(),
        "--encryption-aws-endpoint-url",
        proxy.url(),
        "--encryption-aws-region",
        "us-east-1",
    ];
    let mut prey = work(&machine, &arguments);
    // What the server asked KMS to unwrap, asked again: the data keys themselves.
    let calls = proxy.calls("Decrypt");
    assert!(calls.len() > load::TENANTS.len(), "{calls:?}");
    for call in calls {
        let call: Value = serde_json::from_str(&call).expect("JSON");
        let answer = moto.kms("us-east-1", "Decrypt", &call);
        let dek = answer["Plaintext"].as_str().expect("a data key").as_bytes();
        let dek = data_encoding::BASE64.decode(dek).expect("base64");
        let file_id = call["EncryptionContext"]["nimbus:file-id"]
            .as_str()
            .expect("a file id");
        let salt = file_id.replace('-', "");
        let salt = data_encoding::HEXLOWER
            .decode(salt.as_bytes())
            .expect("hex");
        for label in ["nimbus-enc/1 data", "nimbus-enc/1 manifest"] {
            prey.push(Needle::key(label, &hkdf(&salt, &dek, label.as_bytes())));
        }
        prey.push(Needle::key("a data key", &dek));
    }
    assert_nothing(&machine, &prey, &[]);
}

#[test]
fn the_same_search_finds_the_canaries_when_encryption_is_off() {
    let machine = machine();
    let prey = work(&machine, &["--encryption-key-provider", "none"]);
    let found = Hunt::over(&machine, &[]).find(&prey);
    for canary in load::CANARIES {
        let places: Vec<_> = found
            .iter()
            .filter(|found| found.needle == *canary)
            .collect();
        for tenant in load::TENANTS {
            let file = format!("{tenant}.sqlite3");
            assert!(
                places.iter().any(|found| found.file.starts_with(&file)),
                "{canary} of {tenant} in {places:?}"
            );
        }
        // In the databases, and nowhere else: plaintext on the disk is no leave to log it.
        assert!(
            places.iter().all(|found| found.file.contains(".sqlite3")),
            "{places:?}"
        );
    }
    // What was written last lies in a WAL still; the table's name is long in its database.
    for canary in &load::CANARIES[..2] {
        let mut places = found.iter().filter(|found| found.needle == *canary);
        assert!(
            places.any(|found| found.file.ends_with("-wal")),
            "{canary} in {found:?}"
        );
    }
    assert!(
        found
            .iter()
            .all(|found| load::CANARIES.contains(&found.needle.as_str())),
        "{found:?}"
    );
}

#[test]
fn the_search_finds_a_key_in_each_form_wherever_it_lies() {
    let machine = machine();
    let key: Vec<u8> = (100..132).collect();
    let prey = [Needle::key("key", &key), Needle::text("canary")];
    let hex = data_encoding::HEXLOWER.encode(&key);
    for (place, planted) in [
        ("tmp/raw", [b"x", &key[..], b"x"].concat()),
        ("tmp/half", key[16..].to_vec()),
        ("server-0.log", hex.clone().into_bytes()),
        ("data/upper", hex.to_uppercase().into_bytes()),
        ("base64", data_encoding::BASE64.encode(&key).into_bytes()),
        ("home/debug", format!("{key:?}").into_bytes()),
        ("data/text", b"a canary\0".to_vec()),
        ("data/wide", b"c\0a\0n\0a\0r\0y\0".to_vec()),
        ("data/canary.tmp", Vec::new()),
    ] {
        let path = machine.path(place);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        assert_eq!(Hunt::over(&machine, &[]).find(&prey), [], "before {place}");
        fs::write(&path, planted).expect("a planted file");
        assert_ne!(Hunt::over(&machine, &[]).find(&prey), [], "{place}");
        fs::remove_file(&path).expect("removed");
    }
}

/// Lets a server work and die, start again, read, work and die; what to hunt for.
fn work(machine: &Machine, arguments: &[&str]) -> Vec<Needle> {
    let access_keys = load::settle(machine, arguments);
    for _ in 0..2 {
        load::work_and_die(machine, arguments, &access_keys);
    }
    let mut prey: Vec<Needle> = load::CANARIES
        .iter()
        .map(|canary| Needle::text(canary))
        .collect();
    prey.push(Needle::text(load::STRAY_CANARY));
    prey.push(Needle::text(load::IDENTITY_CANARY));
    for key in &access_keys {
        let (_, secret) = key.rsplit_once('_').expect("a secret");
        prey.push(Needle::text(secret));
        let raw = data_encoding::BASE32_NOPAD
            .decode(secret.to_uppercase().as_bytes())
            .expect("base32");
        prey.push(Needle::key("an access key", &raw[..32]));
    }
    let token = machine.token();
    let raw = data_encoding::HEXLOWER
        .decode(token.as_bytes())
        .expect("a token in hex");
    prey.push(Needle::key("the admin token", &raw));
    prey
}

/// What is in key files.
fn key_needles(keys: &[PathBuf]) -> impl Iterator<Item = Needle> {
    keys.iter().map(|key| {
        let name = key.file_name().expect("a name").to_string_lossy();
        Needle::key(&name, &fs::read(key).expect("a key file"))
    })
}

fn assert_nothing(machine: &Machine, prey: &[Needle], keys: &[PathBuf]) {
    let prey: Vec<Needle> = prey.iter().cloned().chain(key_needles(keys)).collect();
    let hunt = Hunt::over(machine, keys);
    assert_eq!(hunt.find(&prey), []);
    // The search has seen what it should have seen.
    for seen in [
        ".sqlite3",
        ".sqlite3-wal",
        ".nimbus-enc",
        "nimbus-control.db",
        "server-1.log",
    ] {
        assert!(hunt.bytes_of(seen) > 0, "no bytes of {seen} were searched");
    }
    let log = hunt.bytes_of(".log");
    assert!(
        log > 100_000,
        "the log at the level trace is that long: {log}"
    );
}

/// HKDF-SHA256 (RFC 5869) for one block.
fn hkdf(salt: &[u8], key: &[u8], info: &[u8]) -> Vec<u8> {
    let mac = |key: &[u8], text: &[u8]| {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length");
        mac.update(text);
        mac.finalize().into_bytes().to_vec()
    };
    mac(&mac(salt, key), &[info, &[1]].concat())
}
