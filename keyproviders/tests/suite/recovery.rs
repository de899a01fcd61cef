//! Recovery wraps, opened with stock `age` and no code of ours.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nimbus_keyproviders::recovery::{Recipient, RecipientError};
use nimbus_keyproviders::{Dek, OsRandom};
use nimbus_manifests::{ProviderKind, Wrap, WrapAlgorithm};
use sha2::{Digest, Sha256};

use crate::common::{Owned, now, private_dir};

#[test]
fn stock_age_opens_the_wrap() {
    let dir = private_dir();
    let (identity, recipient) = identity(dir.path(), "one.txt");
    let owned = Owned::demo();
    let dek = Dek::generate(&OsRandom).unwrap();
    let wrapped = recipient.wrap(&dek, &owned.context(), now()).unwrap();
    assert_eq!(wrapped.provider, ProviderKind::Age);
    assert_eq!(wrapped.key_id.as_str(), recipient.to_string());
    assert_eq!(wrapped.algorithm, WrapAlgorithm::X25519);
    assert!(wrapped.key_id.fits(wrapped.provider));

    let plaintext = decrypt(&identity, &wrapped).expect("age opens it");
    assert_eq!(plaintext.len(), 64);
    let context = owned
        .context()
        .encode(ProviderKind::Age, recipient.key_id());
    assert_eq!(plaintext[..32], Sha256::digest(&context)[..]);
    // The second half is the DEK: what is derived from it by the format's rule is what the DEK
    // derives.
    let mut derived = [0; 32];
    hkdf::Hkdf::<Sha256>::new(Some(owned.file_id.as_bytes()), &plaintext[32..])
        .expand(b"nimbus-enc/1 data", &mut derived)
        .unwrap();
    assert_eq!(&derived, dek.cipher_key(&owned.file_id).expose());
}

#[test]
fn each_wrap_is_for_its_recipient_only() {
    let dir = private_dir();
    let (_, recipient) = identity(dir.path(), "one.txt");
    let (stranger, _) = identity(dir.path(), "two.txt");
    let owned = Owned::demo();
    let dek = Dek::generate(&OsRandom).unwrap();
    let one = recipient.wrap(&dek, &owned.context(), now()).unwrap();
    let two = recipient.wrap(&dek, &owned.context(), now()).unwrap();
    assert_ne!(one.blob, two.blob, "file key and nonce are fresh each time");
    assert!(decrypt(&stranger, &one).is_err());
}

/// The second reader: the age library, which also shows that the framing made here is canonical.
#[test]
fn the_age_library_opens_the_wrap() {
    let identity = age::x25519::Identity::generate();
    let recipient: Recipient = identity.to_public().to_string().parse().unwrap();
    let dek = Dek::generate(&OsRandom).unwrap();
    let wrapped = recipient
        .wrap(&dek, &Owned::demo().context(), now())
        .unwrap();
    assert_eq!(age::decrypt(&identity, &wrapped.blob).unwrap().len(), 64);
    for index in 0..wrapped.blob.len() {
        let mut flipped = wrapped.blob.clone();
        flipped[index] ^= 1;
        assert!(age::decrypt(&identity, &flipped).is_err(), "byte {index}");
    }
}

#[test]
fn rejects_what_is_no_recipient() {
    let secret = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX";
    let error = secret.parse::<Recipient>().unwrap_err();
    assert_eq!(error, RecipientError::SecretKey);
    assert!(
        !error.to_string().contains("GFPYY"),
        "an identity must not reach a log"
    );
    assert_eq!(
        secret.to_lowercase().parse::<Recipient>().unwrap_err(),
        RecipientError::SecretKey
    );
    for around in [
        format!(" {secret}"),
        format!("# public key: age1x\n{secret}\n"),
    ] {
        let error = around.parse::<Recipient>().unwrap_err();
        assert_eq!(error, RecipientError::SecretKey);
    }
    for other in [
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN",
        "age1yubikey1q0000",
    ] {
        let error = other.parse::<Recipient>().unwrap_err();
        assert!(matches!(error, RecipientError::NotX25519 { .. }), "{error}");
    }
    let public = age::x25519::Identity::generate().to_public().to_string();
    let mut mistyped = public.clone().into_bytes();
    mistyped[20] = if mistyped[20] == b'q' { b'p' } else { b'q' };
    let mistyped = String::from_utf8(mistyped).unwrap();
    for wrong in [
        "",
        "age1",
        "é",
        "age1ääääääääää",
        &public[..public.len() - 1],
        &mistyped,
    ] {
        let error = wrong.parse::<Recipient>().unwrap_err();
        assert!(
            matches!(error, RecipientError::Invalid { .. }),
            "{wrong}: {error}"
        );
    }
    for point in LOW_ORDER {
        let error = point.parse::<Recipient>().unwrap_err();
        assert!(matches!(error, RecipientError::LowOrder { .. }), "{error}");
    }
    let capitals: Recipient = public.to_uppercase().parse().unwrap();
    assert_eq!(
        capitals.key_id().as_str(),
        public,
        "one spelling in the manifest"
    );
}

/// A new identity made by stock `age-keygen`, and the recipient it names.
fn identity(dir: &Path, name: &str) -> (PathBuf, Recipient) {
    let path = dir.join(name);
    let made = tool("age-keygen")
        .arg("-o")
        .arg(&path)
        .stderr(Stdio::null())
        .status();
    assert!(
        made.unwrap_or_else(|error| panic!("{MISSING}: {error}"))
            .success()
    );
    let text = fs::read_to_string(&path).unwrap();
    let public = text
        .lines()
        .find_map(|line| line.strip_prefix("# public key: "))
        .unwrap();
    (path, public.parse().unwrap())
}

/// What `age -d` makes of the wrap, or what it says against it.
fn decrypt(identity: &Path, wrapped: &Wrap) -> Result<Vec<u8>, String> {
    let mut age = tool("age")
        .args(["-d", "-i"])
        .arg(identity)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{MISSING}: {error}"));
    age.stdin.take().unwrap().write_all(&wrapped.blob).unwrap();
    let output = age.wait_with_output().unwrap();
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn tool(name: &str) -> Command {
    Command::new(name)
}

const MISSING: &str = "this test opens a wrap with stock age: install the Debian package `age`";

/// The points of order 1, 2, 4 and 8, each spelled with the highest bit clear and set.
const LOW_ORDER: [&str; 14] = [
    "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq5cu47z",
    "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqzqqsuwj9m",
    "age1qyqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqj7vrya",
    "age1qyqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqzqqk67yly",
    "age1anlllllllllllllllllllllllllllllllllllllllllllllllals4n2t7m",
    "age1anllllllllllllllllllllllllllllllllllllllllllllllllls3hcv9z",
    "age1ahlllllllllllllllllllllllllllllllllllllllllllllllalsn46ayy",
    "age1ahlllllllllllllllllllllllllllllllllllllllllllllllllsh3g6la",
    "age1amlllllllllllllllllllllllllllllllllllllllllllllllalselrwrv",
    "age1amlllllllllllllllllllllllllllllllllllllllllllllllllsam3fc4",
    "age1ur4h5lpmgxu2u9jku0a0r87ydtdqnr0tnsetrlvxvgz3vh6fhqqqzyt4v9",
    "age1ur4h5lpmgxu2u9jku0a0r87ydtdqnr0tnsetrlvxvgz3vh6fhzqqxqejhu",
    "age1t7wft09r2zxzfvwsk92eeql0tvzyghxytqwgapkcyf8dm5ylz9ts6wm9s8",
    "age1t7wft09r2zxzfvwsk92eeql0tvzyghxytqwgapkcyf8dm5ylz8ts72fzt7",
];
