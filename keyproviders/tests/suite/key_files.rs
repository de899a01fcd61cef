//! Key files: what is refused, and that a new one is whole, private and never overwrites.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::common::{file, private_dir};
use nimbus_keyproviders::key_dir::KeyDir;
use nimbus_keyproviders::{KeyFileError, OsRandom, RandomError, SecureRandom, keyfile};

const KEY: [u8; 32] = [0x42; 32];

#[test]
fn accepts_a_private_file_of_32_bytes() {
    let dir = private_dir();
    for mode in [0o400, 0o600] {
        let path = file(dir.path(), &format!("{mode:o}.key"), &KEY, mode);
        let key = keyfile::read(&path).unwrap();
        // HKDF-SHA256(KEY, no salt, "nimbus-enc/1 kek id"), computed with Python's hmac module.
        assert_eq!(key.id().as_str(), KEY_ID);
        assert!(!format!("{key:?}").contains("66, 66"));
    }
}

#[test]
fn rejects_every_other_length_by_what_it_looks_like() {
    let dir = private_dir();
    let read = |bytes: &[u8]| {
        let path = dir.path().join("the.key");
        let _absent_at_first = fs::remove_file(&path);
        let path = file(dir.path(), "the.key", bytes, 0o400);
        keyfile::read(&path).unwrap_err()
    };
    assert!(matches!(read(&[]), KeyFileError::Empty { .. }));
    for length in [1, 31, 33, 43, 63, 66, 1000] {
        let error = read(&vec![7; length]);
        assert!(
            matches!(error, KeyFileError::WrongLength { length: told, .. } if told == length as u64),
            "{error}"
        );
    }
    for line_end in ["", "\n"] {
        let base64 = data_encoding::BASE64.encode(&KEY) + line_end;
        let error = read(base64.as_bytes());
        assert!(
            matches!(error, KeyFileError::LooksLikeBase64 { .. }),
            "{error}"
        );
        assert!(
            error
                .to_string()
                .contains("looks like base64; the file must hold 32 raw bytes")
        );
        let hex = data_encoding::HEXLOWER.encode(&KEY) + line_end;
        let error = read(hex.as_bytes());
        assert!(
            matches!(error, KeyFileError::LooksLikeHex { .. }),
            "{error}"
        );
    }
    assert!(matches!(read(&[0; 32]), KeyFileError::AllZero { .. }));
}

#[test]
fn rejects_what_is_no_file() {
    let dir = private_dir();
    let missing = dir.path().join("missing.key");
    assert!(
        matches!(keyfile::read(&missing).unwrap_err(), KeyFileError::Missing { path } if path == missing)
    );
    let error = keyfile::read(dir.path()).unwrap_err();
    assert!(
        matches!(
            error,
            KeyFileError::NotAFile {
                kind: "directory",
                ..
            }
        ),
        "{error}"
    );
    // Opening a named pipe must neither wait for a writer nor read from one.
    let pipe = dir.path().join("pipe.key");
    let made = std::process::Command::new("mkfifo")
        .arg(&pipe)
        .status()
        .unwrap();
    assert!(made.success());
    let error = keyfile::read(&pipe).unwrap_err();
    assert!(
        matches!(
            error,
            KeyFileError::NotAFile {
                kind: "named pipe",
                ..
            }
        ),
        "{error}"
    );
    let error = keyfile::read(Path::new("/dev/zero")).unwrap_err();
    assert!(
        matches!(error, KeyFileError::NotAFile { kind: "device", .. }),
        "{error}"
    );
}

#[test]
fn rejects_a_file_that_others_can_reach_and_says_the_chmod() {
    let dir = private_dir();
    for mode in [0o440, 0o404, 0o420, 0o402, 0o644, 0o666, 0o410, 0o401] {
        let path = file(dir.path(), &format!("{mode:o}.key"), &KEY, mode);
        let error = keyfile::read(&path).unwrap_err();
        assert!(
            matches!(error, KeyFileError::TooOpen { mode: told, .. } if told == mode),
            "{error}"
        );
        let command = format!("chmod 0400 {}", path.display());
        assert!(error.to_string().contains(&command), "{error}");
        let status = std::process::Command::new("sh")
            .args(["-c", &command])
            .status()
            .unwrap();
        assert!(status.success());
        drop(keyfile::read(&path).unwrap());
    }
}

/// Run as root this gives the file away; as another user it points at a file of somebody else's,
/// which every system has.
#[test]
fn rejects_a_file_of_another_user() {
    let dir = private_dir();
    let path = file(dir.path(), "foreign.key", &KEY, 0o400);
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
        let error = keyfile::read(&path).unwrap_err();
        assert!(
            matches!(
                error,
                KeyFileError::ForeignOwner {
                    owner: 12345,
                    euid: 0,
                    ..
                }
            ),
            "{error}"
        );
        // A `chown` to root would lock out the server that runs as the owner.
        assert!(error.to_string().contains("sudo -u '#12345'"), "{error}");
    } else {
        // Unreadable: the other half of the rule, which root cannot be shown.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        let error = keyfile::read(&path).unwrap_err();
        assert!(matches!(error, KeyFileError::Unreadable { .. }), "{error}");
    }
}

#[test]
fn follows_a_link_and_judges_the_file_behind_it() {
    let dir = private_dir();
    let private = file(dir.path(), "private.key", &KEY, 0o400);
    let open = file(dir.path(), "open.key", &KEY, 0o444);
    for (target, accepted) in [(&private, true), (&open, false)] {
        let link = dir.path().join("link.key");
        let _absent_at_first = fs::remove_file(&link);
        symlink(target, &link).unwrap();
        assert_eq!(
            keyfile::read(&link).is_ok(),
            accepted,
            "{}",
            target.display()
        );
    }
}

#[test]
fn generates_a_private_key_in_private_directories() {
    let dir = private_dir();
    let path = dir.path().join("a/b/master.key");
    let key = keyfile::generate_new(&path, &OsRandom).unwrap();
    assert_eq!(keyfile::read(&path).unwrap().id(), key.id());
    assert_eq!(fs::read(&path).unwrap().len(), 32);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&path), 0o400);
    assert_eq!(mode(&dir.path().join("a")), 0o700);
    assert_eq!(mode(&dir.path().join("a/b")), 0o700);
    let names: Vec<_> = fs::read_dir(dir.path().join("a/b")).unwrap().collect();
    assert_eq!(names.len(), 1, "a temporary name was left: {names:?}");
    let other = keyfile::generate_new(&dir.path().join("a/b/other.key"), &OsRandom).unwrap();
    assert_ne!(other.id(), key.id());
}

#[test]
fn never_overwrites() {
    let dir = private_dir();
    let path = file(dir.path(), "master.key", b"whatever stands here", 0o600);
    let error = keyfile::generate_new(&path, &OsRandom).unwrap_err();
    assert!(matches!(error, KeyFileError::Exists { path: at } if at == path));
    assert_eq!(fs::read(&path).unwrap(), b"whatever stands here");

    // A planted link is neither followed nor replaced.
    let link = dir.path().join("planted.key");
    symlink(dir.path().join("elsewhere"), &link).unwrap();
    let error = keyfile::generate_new(&link, &OsRandom).unwrap_err();
    assert!(matches!(error, KeyFileError::Exists { .. }), "{error}");
    assert!(!dir.path().join("elsewhere").exists());
}

#[test]
fn of_many_at_once_one_makes_the_key() {
    let dir = private_dir();
    let path = dir.path().join("master.key");
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| keyfile::generate_new(&path, &OsRandom)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let mut made = Vec::new();
    for outcome in outcomes {
        match outcome {
            Ok(key) => made.push(key),
            Err(error) => assert!(matches!(error, KeyFileError::Exists { .. }), "{error}"),
        }
    }
    assert_eq!(made.len(), 1);
    assert_eq!(keyfile::read(&path).unwrap().id(), made[0].id());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// Delivers `0` times and then fails.
#[derive(Debug)]
struct Failing(std::sync::atomic::AtomicUsize);

impl SecureRandom for Failing {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), RandomError> {
        use std::sync::atomic::Ordering::SeqCst;
        if self
            .0
            .fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1))
            .is_err()
        {
            return Err(RandomError {
                reason: "injected".into(),
            });
        }
        OsRandom.fill(bytes)
    }
}

#[test]
fn leaves_nothing_behind_when_it_fails() {
    for deliveries in 0..2 {
        let dir = private_dir();
        let path = dir.path().join("master.key");
        let failed = keyfile::generate_new(&path, &Failing(deliveries.into())).unwrap_err();
        assert!(matches!(failed, KeyFileError::Random(_)), "{failed}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn key_dir_must_be_a_private_directory() {
    let dir = private_dir();
    drop(KeyDir::open(dir.path()).unwrap());
    for mode in [0o755, 0o710, 0o770, 0o777] {
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
        let error = KeyDir::open(dir.path()).unwrap_err();
        assert!(
            matches!(
                error,
                KeyFileError::TooOpen {
                    directory: true,
                    ..
                }
            ),
            "{error}"
        );
        assert!(
            error
                .to_string()
                .contains(&format!("chmod 0700 {}", dir.path().display()))
        );
    }
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let path = file(dir.path(), "a-file", b"", 0o400);
    let error = KeyDir::open(path).unwrap_err();
    assert!(
        matches!(error, KeyFileError::NotADirectory { .. }),
        "{error}"
    );
    let error = KeyDir::open(dir.path().join("missing")).unwrap_err();
    assert!(
        matches!(error, KeyFileError::DirectoryMissing { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("mkdir -m 0700 "), "{error}");
}

const KEY_ID: &str = "a8de9fc9c0d86a7f";
