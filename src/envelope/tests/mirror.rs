//! Manifests and their copies.

use super::*;

#[tokio::test]
async fn mirrors_ready_manifests_only_and_heals_a_missing_copy() {
    let (dir, key) = (tempfile::tempdir().unwrap(), key());
    let mirror = Arc::new(MemoryMirror::default());
    let envelope = core(&key).with_mirror(mirror.clone(), dir.path());
    let path = dir.path().join("new.sqlite3");
    drop(
        envelope
            .prepare(&path, &subject("new"), Cipher::Sqlcipher4, Intent::Create)
            .await
            .unwrap(),
    );
    assert!(mirror.get(&subject("new")).unwrap().is_empty());

    let path = create(&envelope, dir.path(), "demo").await;
    let sidecar = std::fs::read(manifest_path(&path)).unwrap();
    assert_eq!(copies(&*mirror), [&*sidecar]);

    mirror.remove(&subject("demo")).unwrap();
    let file = open(&envelope, &path, "demo").await.unwrap();
    envelope.refresh_mirror(&file).unwrap();
    assert_eq!(copies(&*mirror), [&*sidecar]);
}

/// A mirror under which the directory of the manifests goes away, once.
#[derive(Debug)]
struct Sabotage {
    mirror: MemoryMirror,
    dir: PathBuf,
}

impl ManifestMirror for Sabotage {
    fn put_many(&self, manifests: &[(&Subject, &[u8])]) -> Result<(), MirrorError> {
        self.mirror.put_many(manifests)
    }

    fn announce(&self, manifests: &[(&Subject, &[u8])]) -> Result<(), MirrorError> {
        drop(std::fs::rename(&self.dir, self.dir.with_extension("away")));
        self.mirror.announce(manifests)
    }

    fn get(&self, subject: &Subject) -> Result<Copies, MirrorError> {
        self.mirror.get(subject)
    }

    fn subjects(&self) -> Result<Vec<Subject>, MirrorError> {
        self.mirror.subjects()
    }

    fn going(&self) -> Result<Vec<TenantId>, MirrorError> {
        self.mirror.going()
    }

    fn announced(&self) -> Result<Vec<Subject>, MirrorError> {
        self.mirror.announced()
    }

    fn remove(&self, subject: &Subject) -> Result<(), MirrorError> {
        self.mirror.remove(subject)
    }
}

#[tokio::test]
async fn a_rewrap_that_cannot_be_written_leaves_no_copy_under_the_new_key() {
    let (root, old, new) = (tempfile::tempdir().unwrap(), key(), key());
    let dir = root.path().join("data");
    std::fs::create_dir(&dir).unwrap();
    let path = create(&core(&old), &dir, "demo").await;
    let before = std::fs::read(manifest_path(&path)).unwrap();
    let mirror = Arc::new(Sabotage {
        mirror: MemoryMirror::default(),
        dir: dir.clone(),
    });
    let envelope = core(&old).with_mirror(mirror.clone(), &dir);
    let rewrapped = envelope
        .rewrap(&path, &moved(&envelope, &new), &Recipients::default())
        .await
        .unwrap()
        .change
        .unwrap();
    assert!(matches!(
        envelope.publish_rewrapped(vec![rewrapped]),
        Err(EnvelopeError::Io { .. })
    ));
    assert_eq!(copies(&*mirror), [before]);
}

#[tokio::test]
async fn a_manifest_that_opens_becomes_the_mirrors_only_copy_unless_it_was_replaced_meanwhile() {
    let (dir, old, new) = (tempfile::tempdir().unwrap(), key(), key());
    let mirror = Arc::new(MemoryMirror::default());
    let envelope = core(&old).with_mirror(mirror.clone(), dir.path());
    let path = create(&envelope, dir.path(), "demo").await;
    let before = std::fs::read(manifest_path(&path)).unwrap();
    // A rotation that is cut short after it was announced.
    let nobody = Recipients::default();
    let target = moved(&envelope, &new);
    let rewrapped = envelope.rewrap(&path, &target, &nobody).await.unwrap();
    let rewrapped = rewrapped.change.unwrap();
    let after = rewrapped.after.as_bytes().to_vec();
    let announce = || mirror.announce(&[(&subject("demo"), &*after)]).unwrap();
    announce();
    assert_eq!(copies(&*mirror), [&*after, &*before]);
    let opened = open(&envelope, &path, "demo").await.unwrap();
    envelope.refresh_mirror(&opened).unwrap();
    assert_eq!(copies(&*mirror), [&*before]);
    announce();
    envelope.settle_mirror(dir.path()).unwrap();
    assert_eq!(copies(&*mirror), [&*before]);
    // And one that ends between the opening and the look at the mirror.
    assert!(
        envelope
            .publish_rewrapped(vec![rewrapped])
            .unwrap()
            .is_empty()
    );
    envelope.refresh_mirror(&opened).unwrap();
    assert_eq!(copies(&*mirror), [&*after]);
    // Where neither copy stands, nobody knows which one will be wanted.
    mirror.put_many(&[(&subject("demo"), &*before)]).unwrap();
    announce();
    std::fs::remove_file(manifest_path(&path)).unwrap();
    envelope.settle_mirror(dir.path()).unwrap();
    assert_eq!(copies(&*mirror), [&*after, &*before]);
}

#[tokio::test]
async fn a_manifest_that_another_operation_changed_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("demo.sqlite3");
    let key = Arc::new(nimbus_keyproviders::MemoryProvider::random().unwrap());
    let envelope = Envelope::new(KeyRing::new(key, vec![], vec![]));
    let subject: Subject = "db:sqlite:tenant:demo:demo.sqlite3".parse().unwrap();
    let prepared = envelope
        .prepare(&path, &subject, Cipher::Sqlcipher4, Intent::Create)
        .await
        .unwrap();
    let Prepared::Keyed(file) = prepared else {
        panic!("encryption is on")
    };
    // Somebody else finishes it first, as a rotation would that puts other wraps into it.
    let stale = file.share();
    let _ready = envelope.publish_ready(file).await.unwrap();
    let refused = envelope.publish_ready(stale).await;
    assert!(matches!(
        refused,
        Err(EnvelopeError::ChangedMeanwhile { .. })
    ));
}

/// A directory whose manifests are mirrored.
struct Mirrored {
    dir: tempfile::TempDir,
    key: Arc<MemoryProvider>,
    mirror: Arc<MemoryMirror>,
    envelope: Envelope,
}

impl Mirrored {
    fn new() -> Self {
        let (dir, key) = (tempfile::tempdir().unwrap(), key());
        let mirror = Arc::new(MemoryMirror::default());
        let envelope = core(&key).with_mirror(mirror.clone(), dir.path());
        Self {
            dir,
            key,
            mirror,
            envelope,
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("demo.sqlite3")
    }

    fn manifest(&self) -> Vec<u8> {
        std::fs::read(manifest_path(&self.path())).unwrap()
    }

    fn put(&self, manifest: &[u8]) {
        std::fs::write(manifest_path(&self.path()), manifest).unwrap();
    }

    async fn open(&self) -> Result<KeyedFile, EnvelopeError> {
        open(&self.envelope, &self.path(), "demo").await
    }

    #[track_caller]
    fn assert_older(opened: Result<KeyedFile, EnvelopeError>) {
        assert!(
            matches!(opened, Err(EnvelopeError::ManifestOlder { .. })),
            "{opened:?}"
        );
    }
}

#[tokio::test]
async fn a_replayed_new_manifest_makes_no_empty_file_of_a_lost_one() {
    let town = Mirrored::new();
    let path = town.path();
    let prepared = town
        .envelope
        .prepare(&path, &subject("demo"), Cipher::Sqlcipher4, Intent::Create)
        .await;
    let Prepared::Keyed(file) = prepared.unwrap() else {
        panic!("encryption is on")
    };
    let new = town.manifest();
    std::fs::write(&path, b"ciphertext").unwrap();
    drop(town.envelope.publish_ready(file).await.unwrap());
    // With its file it is the state before the last step of a creation.
    town.put(&new);
    let file = town.open().await.unwrap();
    assert_eq!(file.stage(), Stage::Initialised);
    drop(town.envelope.publish_ready(file).await.unwrap());
    // Without it, something is lost, whatever the caller wants.
    town.put(&new);
    std::fs::remove_file(&path).unwrap();
    for left in [true, false] {
        if !left {
            std::fs::remove_file(manifest_path(&path)).unwrap();
        }
        for intent in [Intent::Open, Intent::Create, Intent::OpenOrCreate] {
            let refused = town
                .envelope
                .prepare(&path, &subject("demo"), Cipher::Sqlcipher4, intent)
                .await;
            assert!(
                matches!(refused, Err(EnvelopeError::Lost { .. })),
                "{refused:?}"
            );
        }
    }
    // A copy elsewhere is none of the mirror's business.
    let elsewhere = tempfile::tempdir().unwrap();
    let path = elsewhere.path().join("demo.sqlite3");
    std::fs::write(manifest_path(&path), &new).unwrap();
    let file = open(&town.envelope, &path, "demo").await.unwrap();
    assert_eq!(file.stage(), Stage::Initialise);
}

#[tokio::test]
async fn an_older_manifest_is_refused_and_not_wrapped_anew() {
    let town = Mirrored::new();
    let path = create(&town.envelope, town.dir.path(), "demo").await;
    let under_old = town.manifest();
    let new = key();
    town.envelope
        .use_keys(KeyRing::new(new.clone(), vec![town.key.clone()], vec![]));
    let nobody = Recipients::default();
    let target = moved(&town.envelope, &new);
    let rewrapped = town.envelope.rewrap(&path, &target, &nobody).await;
    let rewrapped = rewrapped.unwrap().change.unwrap();
    let rewrapped = town.envelope.publish_rewrapped(vec![rewrapped]);
    assert!(rewrapped.unwrap().is_empty());
    let under_new = town.manifest();
    town.put(&under_old);
    Mirrored::assert_older(town.open().await);
    let again = town.envelope.rewrap(&path, &target, &nobody).await;
    assert!(matches!(again, Err(EnvelopeError::ManifestOlder { .. })));
    assert_eq!(copies(&*town.mirror), std::slice::from_ref(&under_new));
    town.put(&under_new);
    drop(town.open().await.unwrap());

    // A whole rekey later, neither of the manifests before it.
    let file = town.open().await.unwrap();
    let file = town.envelope.begin_rekey(file).await.unwrap();
    let rekeying = town.manifest();
    drop(town.envelope.settle(file, Opened::Next).await.unwrap());
    let settled = town.manifest();
    town.put(&under_new);
    Mirrored::assert_older(town.open().await);
    // But the one whose only next step is the copy, as a crash leaves it; and that one under the
    // key alone that the copy keeps.
    town.put(&rekeying);
    let file = town.open().await.unwrap();
    Mirrored::assert_older(town.envelope.settle(file, Opened::First).await);
    assert_eq!(town.manifest(), rekeying);
    let again = town.envelope.rewrap(&path, &target, &nobody).await;
    assert!(matches!(again, Err(EnvelopeError::ManifestOlder { .. })));
    let file = town.open().await.unwrap();
    drop(town.envelope.settle(file, Opened::Next).await.unwrap());
    assert_eq!(town.manifest(), settled);
}

#[tokio::test]
async fn a_crash_between_a_copy_and_its_manifest_leaves_what_opens() {
    let town = Mirrored::new();
    let path = create(&town.envelope, town.dir.path(), "demo").await;
    let ready = town.manifest();
    // The rekey was mirrored, and not published.
    let file = town.open().await.unwrap();
    drop(town.envelope.begin_rekey(file).await.unwrap());
    town.put(&ready);
    let file = town.open().await.unwrap();
    assert_eq!(file.stage(), Stage::Ready);
    // And then a rotation was announced, and not published.
    let new = key();
    let keys = || KeyRing::new(new.clone(), vec![town.key.clone()], vec![]);
    town.envelope.use_keys(keys());
    let nobody = Recipients::default();
    let target = moved(&town.envelope, &new);
    let rewrapped = town.envelope.rewrap(&path, &target, &nobody).await;
    let announced = rewrapped.unwrap().change.unwrap().after.as_bytes().to_vec();
    let announce = || {
        town.mirror
            .announce(&[(&subject("demo"), &*announced)])
            .unwrap();
    };
    announce();
    drop(town.open().await.unwrap());
    // Into a mirror that was made anew, too.
    town.mirror.remove(&subject("demo")).unwrap();
    announce();
    let file = town.open().await.unwrap();
    town.envelope.refresh_mirror(&file).unwrap();
    assert_eq!(copies(&*town.mirror), [ready]);
    // A mirror that is behind, as that of a control file from a backup, follows what opens.
    let file = town.open().await.unwrap();
    let before = copies(&*town.mirror);
    let file = town.envelope.begin_rekey(file).await.unwrap();
    drop(town.envelope.settle(file, Opened::First).await.unwrap());
    town.mirror
        .put_many(&[(&subject("demo"), &*before[0])])
        .unwrap();
    let file = town.open().await.unwrap();
    town.envelope.refresh_mirror(&file).unwrap();
    assert_eq!(copies(&*town.mirror), [town.manifest()]);
}
