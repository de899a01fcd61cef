//! One suite, run against every key provider.

use std::path::Path;
use std::sync::Arc;

use crate::common::{
    Owned, generate, key, kms, kms_config, other_subject, private_dir, same, wrap,
};
use nimbus_keyproviders::key_dir::{self, KeyDir};
use nimbus_keyproviders::master_key_file::MasterKeyFile;
use nimbus_keyproviders::{
    FailureClass, KeyProvider, LocalAlgorithm, MemoryProvider, OsRandom, ProviderError, Unwrapped,
    keyfile,
};
use nimbus_manifests::{Cipher, ProviderKind, Wrap, WrapAlgorithm};
use nimbus_test_support::Moto;

/// What every provider promises. `stranger` is of the same kind and holds another key.
async fn conforms(provider: &Arc<dyn KeyProvider>, stranger: &dyn KeyProvider) {
    provider.check().await.unwrap();
    round_trips(&**provider).await;
    binds_the_wrap_to_its_context(&**provider).await;
    rejects_damaged_wraps(&**provider).await;
    tells_not_mine_from_failed(&**provider, stranger).await;
    takes_over(&**provider, stranger).await;
    serves_many_at_once(provider).await;
    prints_no_secret(&**provider).await;
}

async fn round_trips(provider: &dyn KeyProvider) {
    let owned = Owned::demo();
    let context = owned.context();
    let (dek, made) = generate(provider, &context).await;
    assert_eq!(made.provider, provider.kind());
    assert_eq!(made.key_id, provider.key_id(context.subject).await.unwrap());
    assert!(made.key_id.fits(made.provider) && made.provider.uses(made.algorithm));
    assert!(made.blob.len() <= nimbus_manifests::MAX_WRAPPED_BYTES);
    assert!(same(
        &dek,
        &key(provider.unwrap(&made, &context).await.unwrap())
    ));

    // Wrapped once more it is another blob and the same key; another generate is another key.
    let again = wrap(provider, &dek, &context).await;
    assert_ne!(again.blob, made.blob);
    assert!(same(
        &dek,
        &key(provider.unwrap(&again, &context).await.unwrap())
    ));
    let (other, _) = generate(provider, &context).await;
    assert!(!same(&dek, &other));
}

async fn binds_the_wrap_to_its_context(provider: &dyn KeyProvider) {
    let right = Owned::demo();
    let (_, wrap) = generate(provider, &right.context()).await;
    let file_id = "0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a11".parse().unwrap();
    let dek_id = "4f1c0a9be2d35578".parse().unwrap();
    for wrong in [
        Owned {
            file_id,
            ..right.clone()
        },
        Owned {
            cipher: Cipher::Blocks1,
            ..right.clone()
        },
        Owned {
            dek_id,
            ..right.clone()
        },
        Owned {
            subject: other_subject(),
            ..right.clone()
        },
    ] {
        let failed = provider.unwrap(&wrap, &wrong.context()).await.unwrap_err();
        assert_eq!(failed.class(), FailureClass::Invalid, "{wrong:?}: {failed}");
        assert!(!failed.is_retryable());
    }
}

async fn rejects_damaged_wraps(provider: &dyn KeyProvider) {
    let owned = Owned::demo();
    let context = owned.context();
    let (_, whole) = generate(provider, &context).await;
    let length = whole.blob.len();
    let mut damaged: Vec<Vec<u8>> = [0, 1, length / 2, length - 1]
        .into_iter()
        .map(|kept| whole.blob[..kept].to_vec())
        .collect();
    damaged.push([whole.blob.as_slice(), &[0]].concat());
    // Every byte of a local wrap; of a remote one a sample, since each costs a call.
    let step = if whole.provider == ProviderKind::AwsKms {
        29
    } else {
        1
    };
    for index in (0..length).step_by(step) {
        let mut flipped = whole.blob.clone();
        flipped[index] ^= 0x01;
        damaged.push(flipped);
    }
    for blob in damaged {
        let wrap = Wrap {
            blob,
            ..whole.clone()
        };
        assert!(provider.unwrap(&wrap, &context).await.is_err(), "{wrap:?}");
    }
    let algorithm = WrapAlgorithm::X25519;
    let failed = provider
        .unwrap(&Wrap { algorithm, ..whole }, &context)
        .await
        .unwrap_err();
    assert!(
        matches!(failed, ProviderError::UnsupportedAlgorithm { .. }),
        "{failed}"
    );
}

async fn tells_not_mine_from_failed(provider: &dyn KeyProvider, stranger: &dyn KeyProvider) {
    let owned = Owned::demo();
    let context = owned.context();
    let (_, mine) = generate(provider, &context).await;
    let (_, theirs) = generate(stranger, &context).await;
    let unwrapped = provider.unwrap(&theirs, &context).await.unwrap();
    assert!(
        matches!(unwrapped, Unwrapped::NotMine),
        "another key of the same kind"
    );
    for other in ProviderKind::ALL
        .iter()
        .filter(|kind| **kind != provider.kind())
    {
        let wrap = Wrap {
            provider: *other,
            ..mine.clone()
        };
        let unwrapped = provider.unwrap(&wrap, &context).await.unwrap();
        assert!(matches!(unwrapped, Unwrapped::NotMine), "a wrap by {other}");
    }
}

/// A rotation: the data key of one is wrapped by the other.
async fn takes_over(provider: &dyn KeyProvider, stranger: &dyn KeyProvider) {
    let owned = Owned::demo();
    let context = owned.context();
    let (dek, _) = generate(provider, &context).await;
    let moved = wrap(stranger, &dek, &context).await;
    assert_eq!(
        moved.key_id,
        stranger.key_id(context.subject).await.unwrap()
    );
    assert!(same(
        &dek,
        &key(stranger.unwrap(&moved, &context).await.unwrap())
    ));
}

async fn serves_many_at_once(provider: &Arc<dyn KeyProvider>) {
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let provider = Arc::clone(provider);
            tokio::spawn(async move {
                let owned = Owned::demo();
                let (dek, wrap) = generate(&*provider, &owned.context()).await;
                let again = provider.unwrap(&wrap, &owned.context()).await.unwrap();
                same(&dek, &key(again))
            })
        })
        .collect();
    for task in tasks {
        assert!(task.await.unwrap());
    }
}

async fn prints_no_secret(provider: &dyn KeyProvider) {
    let owned = Owned::demo();
    let (_, wrap) = generate(provider, &owned.context()).await;
    let unwrapped = provider.unwrap(&wrap, &owned.context()).await.unwrap();
    assert_eq!(format!("{unwrapped:?}"), "Key(Dek([REDACTED]))");
    let printed = format!("{provider:#?}");
    for secret in KNOWN_KEYS {
        for form in forms(secret) {
            assert!(!printed.contains(&form), "{printed}");
        }
    }
}

/// The ways in which bytes come out of a `Debug` or a log line.
fn forms(secret: [u8; 32]) -> [String; 4] {
    let list = format!("{secret:?}");
    [
        list.trim_matches(['[', ']']).to_owned(),
        format!("{secret:#?}")
            .trim_matches(['[', ']'])
            .trim()
            .to_owned(),
        data_encoding::HEXLOWER.encode(&secret),
        data_encoding::BASE64.encode(&secret),
    ]
}

const KNOWN_KEYS: [[u8; 32]; 2] = [[0x5A; 32], [0xC3; 32]];

fn memory(index: usize) -> MemoryProvider {
    MemoryProvider::with_key(|bytes| *bytes = KNOWN_KEYS[index])
}

fn master_key_file(dir: &Path, index: usize) -> MasterKeyFile {
    let path = crate::common::file(
        dir,
        &format!("master-{index}.key"),
        &KNOWN_KEYS[index],
        0o400,
    );
    MasterKeyFile::open(path).unwrap()
}

/// A key directory that holds the same key for both subjects of the suite, so that what keeps
/// them apart is the wrap.
fn key_dir(dir: &Path, index: usize) -> KeyDir {
    for subject in [Owned::demo().subject, other_subject()] {
        let path = key_dir::path_for(dir, &subject);
        let name = path.file_name().unwrap().to_str().unwrap();
        drop(crate::common::file(dir, name, &KNOWN_KEYS[index], 0o400));
    }
    KeyDir::open(dir).unwrap()
}

#[tokio::test]
async fn memory_conforms() {
    let provider: Arc<dyn KeyProvider> = Arc::new(memory(0));
    conforms(&provider, &memory(1)).await;
}

#[tokio::test]
async fn memory_with_xchacha_conforms() {
    let algorithm = LocalAlgorithm::XChaCha20Poly1305;
    let provider: Arc<dyn KeyProvider> = Arc::new(memory(0).with_algorithm(algorithm));
    conforms(&provider, &memory(1)).await;
}

#[tokio::test]
async fn master_key_file_conforms() {
    let dir = private_dir();
    let provider: Arc<dyn KeyProvider> = Arc::new(master_key_file(dir.path(), 0));
    conforms(&provider, &master_key_file(dir.path(), 1)).await;
}

#[tokio::test]
async fn key_dir_conforms() {
    let (dir, other) = (private_dir(), private_dir());
    let provider: Arc<dyn KeyProvider> = Arc::new(key_dir(dir.path(), 0));
    conforms(&provider, &key_dir(other.path(), 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aws_kms_conforms() {
    let moto = Moto::start();
    let provider: Arc<dyn KeyProvider> =
        Arc::new(kms(kms_config(moto.url(), &moto.create_key())).await);
    let stranger = kms(kms_config(moto.url(), &moto.create_key())).await;
    conforms(&provider, &stranger).await;
}

/// The same key bytes under another provider's name: the key id matches, the wrap does not.
#[tokio::test]
async fn binds_the_wrap_to_its_provider() {
    let dir = private_dir();
    let keys = key_dir(dir.path(), 0);
    let owned = Owned::demo();
    let context = owned.context();
    let (_, made) = generate(&memory(0), &context).await;
    assert_eq!(made.key_id, keys.key_id(context.subject).await.unwrap());
    let wrap = Wrap {
        provider: ProviderKind::KeyDir,
        ..made
    };
    let failed = keys.unwrap(&wrap, &context).await.unwrap_err();
    assert!(
        matches!(failed, ProviderError::UnwrapFailed { .. }),
        "{failed}"
    );
}

#[tokio::test]
async fn either_algorithm_is_unwrapped_whatever_the_provider_wraps_with() {
    let owned = Owned::demo();
    let context = owned.context();
    let xchacha = memory(0).with_algorithm(LocalAlgorithm::XChaCha20Poly1305);
    let (dek, wrap) = generate(&xchacha, &context).await;
    assert_eq!(wrap.algorithm, WrapAlgorithm::HkdfSha256XChaCha20Poly1305);
    assert!(same(
        &dek,
        &key(memory(0).unwrap(&wrap, &context).await.unwrap())
    ));
    // Under the other algorithm's name it must not open.
    let renamed = Wrap {
        algorithm: WrapAlgorithm::HkdfSha256Aes256Gcm,
        ..wrap
    };
    assert!(memory(0).unwrap(&renamed, &context).await.is_err());
}

#[tokio::test]
async fn key_dir_withholds_what_was_taken_away() {
    let dir = private_dir();
    let subject = Owned::demo().subject;
    let path = key_dir::path_for(dir.path(), &subject);
    let made = keyfile::generate_new(&path, &OsRandom).unwrap();
    let keys = KeyDir::open(dir.path()).unwrap();
    assert_eq!(keys.key_id(&subject).await.unwrap(), *made.id());
    std::fs::remove_file(&path).unwrap();
    let failed = keys.key_id(&subject).await.unwrap_err();
    assert!(
        matches!(&failed, ProviderError::SubjectKeyMissing { path: at, .. } if *at == path),
        "{failed}"
    );
    assert_eq!(failed.class(), FailureClass::Denied);
}

#[tokio::test]
async fn master_key_file_notices_that_the_file_changed() {
    let dir = private_dir();
    let provider = master_key_file(dir.path(), 0);
    provider.check().await.unwrap();
    std::fs::remove_file(provider.path()).unwrap();
    assert_eq!(
        provider.check().await.unwrap_err().class(),
        FailureClass::Denied
    );
    drop(crate::common::file(
        dir.path(),
        "master-0.key",
        &KNOWN_KEYS[1],
        0o400,
    ));
    let failed = provider.check().await.unwrap_err();
    assert!(failed.to_string().contains("now holds key"), "{failed}");
}
