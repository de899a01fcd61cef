//! The core against files in a temporary directory, with a key in memory.

mod mirror;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nimbus_keyproviders::MemoryProvider;
use nimbus_manifests::{Cipher, DekEntry, DekId, Subject, TenantId, WrapContext};

use super::*;
use crate::data_dir::remove_leftovers;

/// A provider that several cores can share, as a restart would.
fn key() -> Arc<MemoryProvider> {
    Arc::new(MemoryProvider::random().unwrap())
}

fn core(key: &Arc<MemoryProvider>) -> Envelope {
    Envelope::new(KeyRing::new(key.clone(), vec![], vec![]))
}

/// The keys of `envelope` after a rotation to `new`.
fn moved(envelope: &Envelope, new: &Arc<MemoryProvider>) -> KeyRing {
    let keys = envelope.keys().unwrap();
    keys.moved_to(new.clone(), Mapped::Stay)
}

fn subject(tenant: &str) -> Subject {
    let tenant: TenantId = tenant.parse().unwrap();
    Subject::sqlite_tenant(&tenant, &format!("{tenant}.sqlite3")).unwrap()
}

/// Creates a file as its opener would, and returns its path.
async fn create(envelope: &Envelope, dir: &Path, tenant: &str) -> PathBuf {
    let path = dir.join(format!("{tenant}.sqlite3"));
    let Prepared::Keyed(file) = envelope
        .prepare(&path, &subject(tenant), Cipher::Sqlcipher4, Intent::Create)
        .await
        .unwrap()
    else {
        panic!("encryption is on")
    };
    assert_eq!(file.stage(), Stage::Initialise);
    std::fs::write(&path, b"ciphertext").unwrap();
    drop(envelope.publish_ready(file).await.unwrap());
    path
}

async fn open(envelope: &Envelope, path: &Path, tenant: &str) -> Result<KeyedFile, EnvelopeError> {
    match envelope
        .prepare(path, &subject(tenant), Cipher::Sqlcipher4, Intent::Open)
        .await?
    {
        Prepared::Keyed(file) => Ok(file),
        Prepared::Plain(_) => panic!("encryption is on"),
    }
}

#[derive(Debug, Default)]
struct MemoryMirror(Mutex<HashMap<Subject, Copies>>);

impl ManifestMirror for MemoryMirror {
    fn put_many(&self, manifests: &[(&Subject, &[u8])]) -> Result<(), MirrorError> {
        for (subject, manifest) in manifests {
            let copies = Copies {
                announced: None,
                settled: Some(manifest.to_vec()),
            };
            self.0.lock().unwrap().insert((*subject).clone(), copies);
        }
        Ok(())
    }

    fn announce(&self, manifests: &[(&Subject, &[u8])]) -> Result<(), MirrorError> {
        for (subject, manifest) in manifests {
            let mut all = self.0.lock().unwrap();
            all.entry((*subject).clone()).or_default().announced = Some(manifest.to_vec());
        }
        Ok(())
    }

    fn get(&self, subject: &Subject) -> Result<Copies, MirrorError> {
        let all = self.0.lock().unwrap();
        Ok(all.get(subject).cloned().unwrap_or_default())
    }

    fn subjects(&self) -> Result<Vec<Subject>, MirrorError> {
        Ok(self.0.lock().unwrap().keys().cloned().collect())
    }

    fn going(&self) -> Result<Vec<TenantId>, MirrorError> {
        Ok(Vec::new())
    }

    fn announced(&self) -> Result<Vec<Subject>, MirrorError> {
        let all = self.0.lock().unwrap();
        let two = all.iter().filter(|(_, copies)| copies.announced.is_some());
        Ok(two.map(|(subject, _)| subject.clone()).collect())
    }

    fn remove(&self, subject: &Subject) -> Result<(), MirrorError> {
        self.0.lock().unwrap().remove(subject);
        Ok(())
    }
}

/// The copies of the manifest of `demo`, the newest first.
fn copies(mirror: &dyn ManifestMirror) -> Vec<Vec<u8>> {
    let copies = mirror.get(&subject("demo")).unwrap();
    copies.all().map(<[u8]>::to_vec).collect()
}

#[tokio::test]
async fn opens_what_it_created_with_the_same_key() {
    let (dir, key) = (tempfile::tempdir().unwrap(), key());
    let path = create(&core(&key), dir.path(), "demo").await;
    let first = open(&core(&key), &path, "demo").await.unwrap();
    let second = open(&core(&key), &path, "demo").await.unwrap();
    assert_eq!(first.stage(), Stage::Ready);
    assert_eq!(first.manifest().revision(), 2);
    assert_eq!(first.cipher_key().expose(), second.cipher_key().expose());
}

#[tokio::test]
async fn writes_manifests_that_only_the_owner_reads_and_leaves_no_temporary_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = create(&core(&key()), dir.path(), "demo").await;
    let mode = std::fs::metadata(manifest_path(&path))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[tokio::test]
async fn finishes_a_creation_under_the_key_it_began_with() {
    let (dir, key) = (tempfile::tempdir().unwrap(), key());
    let path = dir.path().join("demo.sqlite3");
    let mut keys = Vec::new();
    for _attempt in 0..2 {
        let prepared = core(&key)
            .prepare(&path, &subject("demo"), Cipher::Sqlcipher4, Intent::Create)
            .await
            .unwrap();
        let Prepared::Keyed(file) = prepared else {
            panic!("encryption is on")
        };
        assert_eq!(file.stage(), Stage::Initialise);
        keys.push(*file.cipher_key().expose());
    }
    assert_eq!(keys[0], keys[1]);
}

#[tokio::test]
async fn two_creators_at_once_never_end_with_a_key_the_manifest_lacks() {
    let (dir, key) = (tempfile::tempdir().unwrap(), key());
    let path = dir.path().join("demo.sqlite3");
    let attempts = (0..8).map(|_| {
        let (envelope, path) = (core(&key), path.clone());
        tokio::spawn(async move {
            envelope
                .prepare(&path, &subject("demo"), Cipher::Sqlcipher4, Intent::Create)
                .await
        })
    });
    let mut winners = Vec::new();
    for attempt in attempts.collect::<Vec<_>>() {
        // Who loses the race gets an error, or finds the winner's manifest.
        if let Ok(Prepared::Keyed(file)) = attempt.await.unwrap() {
            winners.push(*file.cipher_key().expose());
        }
    }
    let prepared = core(&key)
        .prepare(&path, &subject("demo"), Cipher::Sqlcipher4, Intent::Open)
        .await
        .unwrap();
    let Prepared::Keyed(file) = prepared else {
        panic!("encryption is on")
    };
    assert!(!winners.is_empty());
    assert!(winners.iter().all(|key| key == file.cipher_key().expose()));
}

#[tokio::test]
async fn rejects_another_tenants_manifest() {
    let (dir, key) = (tempfile::tempdir().unwrap(), key());
    let envelope = core(&key);
    let one = create(&envelope, dir.path(), "one").await;
    let two = create(&envelope, dir.path(), "two").await;
    let _bytes = std::fs::copy(manifest_path(&one), manifest_path(&two)).unwrap();
    let error = open(&envelope, &two, "two").await.unwrap_err();
    assert!(
        matches!(error, EnvelopeError::SubjectMismatch { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn rejects_an_edited_manifest() {
    let (dir, key) = (tempfile::tempdir().unwrap(), key());
    let envelope = core(&key);
    let path = create(&envelope, dir.path(), "demo").await;
    let text = std::fs::read_to_string(manifest_path(&path)).unwrap();
    std::fs::write(
        manifest_path(&path),
        text.replace("revision: 2", "revision: 9"),
    )
    .unwrap();
    let error = open(&envelope, &path, "demo").await.unwrap_err();
    assert!(
        matches!(error, EnvelopeError::ManifestTampered { .. }),
        "{error:?}"
    );

    std::fs::write(manifest_path(&path), &text[..text.len() / 2]).unwrap();
    let error = open(&envelope, &path, "demo").await.unwrap_err();
    assert!(
        matches!(error, EnvelopeError::ManifestUnparsable { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn names_the_missing_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = create(&core(&key()), dir.path(), "demo").await;
    let error = open(&core(&key()), &path, "demo").await.unwrap_err();
    let EnvelopeError::NoMatchingKey {
        wrapped_by,
        configured,
        ..
    } = &error
    else {
        panic!("{error:?}")
    };
    assert_eq!((wrapped_by.len(), configured.len()), (1, 1));
    assert_ne!(wrapped_by, configured);
    assert_eq!(error.trouble(), Trouble::KeyUnavailable);
}

#[tokio::test]
async fn accepts_a_previous_key() {
    let (dir, old) = (tempfile::tempdir().unwrap(), key());
    let path = create(&core(&old), dir.path(), "demo").await;
    let envelope = Envelope::new(KeyRing::new(key(), vec![old], vec![]));
    assert_eq!(
        open(&envelope, &path, "demo").await.unwrap().stage(),
        Stage::Ready
    );
}

#[tokio::test]
async fn settles_a_rekey_with_the_key_that_opened() {
    let (dir, key) = (tempfile::tempdir().unwrap(), key());
    let envelope = core(&key);
    for (tenant, opened) in [("one", Opened::First), ("two", Opened::Next)] {
        let path = create(&envelope, dir.path(), tenant).await;
        let file = open(&envelope, &path, tenant).await.unwrap();
        let id = DekId::from_bytes(*b"nextdek!");
        let context = WrapContext {
            subject: file.manifest().subject(),
            file_id: file.manifest().file_id(),
            cipher: Cipher::Sqlcipher4,
            dek_id: id,
        };
        let now = SystemClock.now();
        let keys = envelope.keys().unwrap();
        let generated = envelope.generate(&keys, &context, now).await;
        let (_next, wraps, _lease) = generated.unwrap();
        let entry = DekEntry {
            id,
            created: now,
            wraps,
        };
        let rekeying = KeyedFile {
            manifest: file.manifest().rekeying(entry).unwrap(),
            ..file
        };
        envelope.replace(&path, &rekeying.seal()).unwrap();
        std::fs::write(
            crate::data_dir::beside(&path, crate::data_dir::REKEY),
            b"half a copy",
        )
        .unwrap();

        let file = open(&envelope, &path, tenant).await.unwrap();
        assert!(matches!(file.stage(), Stage::Rekeying { .. }));
        let expected = match opened {
            Opened::First => *file.cipher_key().expose(),
            Opened::Next => *file.next_cipher_key().unwrap().expose(),
        };
        drop(envelope.settle(file, opened).await.unwrap());

        let file = open(&envelope, &path, tenant).await.unwrap();
        assert_eq!(file.stage(), Stage::Ready);
        assert_eq!(*file.cipher_key().expose(), expected);
        assert!(!crate::data_dir::beside(&path, crate::data_dir::REKEY).exists());
    }
}

#[tokio::test]
async fn a_forgotten_key_is_gone() {
    let (dir, key) = (tempfile::tempdir().unwrap(), key());
    let envelope = core(&key);
    let path = create(&envelope, dir.path(), "demo").await;
    envelope.forget(&path).unwrap();
    envelope.forget(&path).unwrap();
    let error = open(&envelope, &path, "demo").await.unwrap_err();
    assert!(
        matches!(error, EnvelopeError::ManifestMissing { .. }),
        "{error:?}"
    );
}

#[test]
fn removes_its_own_leftovers_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(".nimbus-tmp-x1"), "").unwrap();
    std::fs::create_dir(dir.path().join(".nimbus-tmp-dir")).unwrap();
    std::fs::write(dir.path().join("demo.sqlite3"), "").unwrap();
    remove_leftovers(dir.path()).unwrap();
    let mut names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, [".nimbus-tmp-dir", "demo.sqlite3"]);
}
