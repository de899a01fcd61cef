//! Trouble with the master key or the control file stops the start with one clear error, and loses
//! nothing: no new key is ever made.

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};

use nimbus_test_support::{Machine, files_under};
use serde_json::{Value, json};

use super::{is_root, machine, set_mode, snapshot};

const THINGS: &str = "/api/tenants/demo/documents/things";

/// A machine with a tenant and documents, its server stopped.
struct House {
    machine: Machine,
    documents: Value,
    key: Vec<u8>,
}

impl House {
    fn new() -> Self {
        let machine = machine();
        let server = machine.start(&[]);
        server.create("/api/tenants", &json!({"id": "demo"}));
        server.insert("demo", "things", &json!({"n": 1}));
        let documents = server.get(THINGS);
        server.stop();
        let key = fs::read(machine.master_key()).expect("the master key");
        Self {
            machine,
            documents,
            key,
        }
    }

    /// With the key in this state a start ends with code 1 and these words, and changes nothing;
    /// with the key back, all is there.
    #[track_caller]
    fn rejects_key(&self, words: &[&str], damage: impl FnOnce(&Path)) {
        let key = self.machine.master_key();
        fs::remove_file(&key).expect("the key is taken away");
        damage(&key);
        let before = snapshot(&self.machine);
        let kept = keys(&self.machine);
        let path = key.to_str().expect("UTF-8");
        // By default, and said in so many words.
        for arguments in [&[][..], &["--encryption-key-provider", "master-key-file"]] {
            let words = [&[path], words].concat();
            self.machine.start_that_ends(arguments).expect(1, &words);
        }
        assert_eq!(snapshot(&self.machine), before);
        assert_eq!(keys(&self.machine), kept, "no key is made or changed");
        if fs::symlink_metadata(&key).is_ok() {
            fs::remove_file(&key)
                .or_else(|_| fs::remove_dir(&key))
                .expect("what stood there");
        }
        write_key(&key, &self.key, 0o400);
        self.assert_whole();
    }

    /// With the control file in this state a start ends with code 1 and these words, and changes
    /// nothing; with the files back, all is there.
    #[track_caller]
    fn rejects_control(&self, words: &[&str], damage: impl FnOnce(&Path, &Path)) {
        let control = self.machine.find("nimbus-control.db");
        let manifest = self.machine.find("nimbus-control.db.nimbus-enc");
        let whole = (
            fs::read(&control).expect("it"),
            fs::read(&manifest).expect("its manifest"),
        );
        damage(&control, &manifest);
        let before = snapshot(&self.machine);
        let words = [&["nimbus-control.db"], words].concat();
        self.machine.start_that_ends(&[]).expect(1, &words);
        assert_eq!(snapshot(&self.machine), before);
        fs::write(&control, whole.0).expect("the control file is back");
        fs::write(&manifest, whole.1).expect("its manifest is back");
        self.assert_whole();
    }

    #[track_caller]
    fn assert_whole(&self) {
        let server = self.machine.start(&[]);
        assert_eq!(server.get(THINGS), self.documents);
        server.stop();
    }
}

#[test]
fn a_lost_master_key_is_never_replaced_by_a_new_one() {
    let house = House::new();
    house.rejects_key(&["put", "back"], |_| {});
    house.rejects_key(&["put", "back"], |key| {
        symlink("nowhere", key).expect("a dangling link")
    });
    // Nor when the whole directory is gone.
    let dir = house.machine.path("home/.local/share/nimbus/keys");
    let away = house.machine.path("away");
    fs::rename(&dir, &away).expect("taken away");
    let before = snapshot(&house.machine);
    house.machine.start_that_ends(&[]).expect(
        1,
        &[
            "master.key is missing",
            "encrypted files",
            "put the key back",
        ],
    );
    assert_eq!(snapshot(&house.machine), before);
    assert!(!dir.exists());
    fs::rename(&away, &dir).expect("and put back");
    house.assert_whole();
}

#[test]
fn a_lost_master_key_is_not_replaced_either_when_the_manifests_are_lost_too() {
    let house = House::new();
    for file in files_under(&house.machine.data_dir()) {
        if file.extension().is_some_and(|kind| kind == "nimbus-enc") {
            fs::remove_file(file).expect("a lost manifest");
        }
    }
    let key = house.machine.master_key();
    fs::remove_file(&key).expect("a lost key");
    house
        .machine
        .start_that_ends(&[])
        .expect(1, &["master.key is missing", "encrypted files"]);
    assert!(!key.exists());
}

#[test]
fn a_master_key_of_the_wrong_form_is_refused_with_the_way_to_mend_it() {
    let house = House::new();
    for (bytes, words) in [
        (0, &["is empty", "backup"][..]),
        (31, &["31 bytes", "32"]),
        (33, &["33 bytes", "32"]),
        (44, &["44 bytes", "base64 -d"]),
        (64, &["64 bytes", "xxd -r -p"]),
        (100_000, &["100000 bytes", "32"]),
    ] {
        house.rejects_key(words, |key| write_key(key, &vec![b'a'; bytes], 0o400));
    }
    house.rejects_key(&["only zeros"], |key| write_key(key, &[0; 32], 0o400));
    house.rejects_key(&["directory", "32 raw bytes"], |key| {
        fs::create_dir(key).expect("a directory")
    });
}

#[test]
fn a_master_key_that_others_can_reach_is_refused_with_the_chmod_to_run() {
    let house = House::new();
    let content = house.key.clone();
    for mode in [0o644, 0o440, 0o404, 0o620] {
        let chmod = format!("chmod 0400 {}", house.machine.master_key().display());
        house.rejects_key(&[&chmod], |key| write_key(key, &content, mode));
    }
    if is_root() {
        house.rejects_key(&["uid 65534", "sudo -u '#65534'"], |key| {
            write_key(key, &content, 0o400);
            chown(key, Some(65534), None).expect("another owner");
        });
    } else {
        house.rejects_key(&["cannot be opened"], |key| write_key(key, &content, 0o000));
    }
}

#[test]
fn another_master_key_opens_nothing_and_changes_nothing() {
    let house = House::new();
    house.rejects_key_by_control(&[7; 32]);
}

impl House {
    fn rejects_key_by_control(&self, other: &[u8]) {
        let key = self.machine.master_key();
        fs::remove_file(&key).expect("the key is taken away");
        write_key(&key, other, 0o400);
        let before = snapshot(&self.machine);
        let refused = self.machine.start_that_ends(&[]);
        refused.expect(
            1,
            &[
                "no configured key opens",
                "nimbus-control.db",
                "--encryption-previous",
            ],
        );
        assert_eq!(snapshot(&self.machine), before);
        fs::remove_file(&key).expect("the other key");
        write_key(&key, &self.key, 0o400);
        self.assert_whole();
    }
}

#[test]
fn a_key_that_lies_with_the_data_is_refused() {
    let machine = machine();
    let key = machine.data_dir().join("master.key");
    let key = key.to_str().expect("UTF-8");
    let refused = machine.start_that_ends(&["--encryption-master-key-file", key]);
    refused.expect(
        1,
        &["lies in the data directory", "--encryption-master-key-file"],
    );
    assert!(!Path::new(key).exists());
}

#[test]
fn a_damaged_control_file_stops_the_start_and_stays_as_it_is() {
    let house = House::new();
    house.rejects_control(&["backup", "move the control file"], |_, manifest| {
        fs::remove_file(manifest).expect("removed")
    });
    house.rejects_control(&["cannot be read"], |_, manifest| {
        fs::write(manifest, "").expect("emptied")
    });
    house.rejects_control(&["MAC"], |_, manifest| {
        let text = fs::read_to_string(manifest).expect("its text");
        fs::write(manifest, text.replacen("revision: 2", "revision: 3", 1)).expect("edited");
    });
    house.rejects_control(&["is gone"], |control, _| {
        fs::remove_file(control).expect("removed")
    });
    house.rejects_control(&["0 bytes"], |control, _| {
        fs::write(control, "").expect("emptied")
    });
    house.rejects_control(&["backup"], |control, _| {
        fs::write(control, vec![7; 100_000]).expect("garbage")
    });
    house.rejects_control(&["backup"], |control, _| {
        let mut content = fs::read(control).expect("it");
        let middle = content.len() / 2;
        content.truncate(middle);
        fs::write(control, content).expect("cut");
    });
    let other = House::new();
    house.rejects_control(&["do not match"], |control, _| {
        let _ = fs::copy(other.machine.find("nimbus-control.db"), control).expect("another one");
    });
    house.rejects_control(&["plaintext"], |control, _| {
        let mut redb = b"redb\x1A\x0A\xA9\x0D\x0A".to_vec();
        redb.resize(8192, 0);
        fs::write(control, redb).expect("a plaintext one");
    });
}

#[test]
fn a_directory_with_encrypted_files_does_not_start_in_plaintext() {
    let house = House::new();
    let before = snapshot(&house.machine);
    let refused = house
        .machine
        .start_that_ends(&["--encryption-key-provider", "none"]);
    refused.expect(
        1,
        &[
            "nimbus-control.db is encrypted",
            "--encryption-key-provider",
        ],
    );
    assert_eq!(snapshot(&house.machine), before);
    house.assert_whole();
}

#[test]
fn a_directory_with_plaintext_files_does_not_start_encrypted_and_gets_no_key() {
    let machine = machine();
    let plaintext = &["--encryption-key-provider", "none"];
    let server = machine.start(plaintext);
    server.create("/api/tenants", &json!({"id": "demo"}));
    let id = server.insert("demo", "things", &json!({"n": 1}));
    assert!(server.log().contains("PLAINTEXT"), "each start warns");
    server.stop();
    let before = snapshot(&machine);
    machine.start_that_ends(&[]).expect(
        1,
        &[
            "plaintext",
            "nimbus encryption migrate",
            "--encryption-key-provider none",
        ],
    );
    assert_eq!(snapshot(&machine), before);
    assert!(!machine.master_key().exists());
    let server = machine.start(plaintext);
    assert!(server.log().contains("PLAINTEXT"), "each start warns");
    assert_eq!(server.get(&format!("{THINGS}/{id}"))["document"]["n"], 1);
}

#[test]
fn the_first_start_says_once_and_loudly_that_it_made_a_key() {
    let machine = machine();
    let server = machine.start(&[]);
    let said = "A new master key was made";
    assert!(
        server.log().contains(said) && server.log().contains("Back it up"),
        "{}",
        server.log()
    );
    assert!(
        server
            .log()
            .contains(machine.master_key().to_str().expect("UTF-8"))
    );
    server.stop();
    let server = machine.start(&[]);
    assert!(!server.log().contains(said));
}

fn write_key(path: &Path, content: &[u8], mode: u32) {
    fs::write(path, content).expect("a key file");
    set_mode(path, mode);
}

/// Whatever lies in the directory of keys, with its content.
fn keys(machine: &Machine) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = machine.path("home/.local/share/nimbus/keys");
    let mut keys: Vec<_> = fs::read_dir(dir)
        .expect("the directory of keys")
        .map(|entry| entry.expect("an entry").path())
        .map(|path| (path.clone(), fs::read(&path).unwrap_or_default()))
        .collect();
    keys.sort();
    keys
}
