use std::fs;

use nimbus_test_support::Machine;

use super::{Ran, as_str, backup, filled, machine, notes, run, start_on};

/// Each step of a rewrap, again and again: several manifests are moved at a time.
const STEPS: [&str; 6] = [
    "rewrap::added=return",
    "rewrap::removed=return",
    "rewrap::added=return",
    "rewrap::removed=return",
    "rewrap::removed=1*off->return",
    "rewrap::removed=return",
];

/// A repository of snapshots from before and after a rotation of the master key, and the new key.
struct Rotated {
    machine: Machine,
    new: String,
    notes: Vec<serde_json::Value>,
}

impl Rotated {
    fn new() -> Self {
        let machine = machine();
        let server = filled(&machine, &["a", "b"]);
        let notes = notes(&server, "a");
        let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
        std::fs::create_dir(machine.path("keys")).expect("a directory");
        let key = machine.path("keys/new.key");
        let new = as_str(&key).to_owned();
        let keygen = ["encryption", "keygen", "--master-key-file", &new];
        let _ = run(machine.nimbus(&keygen)).expect(0, &[]);
        let rotate = [
            "encryption",
            "rotate-kek",
            "--path",
            "data",
            "--all",
            "--new-master-key-file",
            &new,
        ];
        let _ = run(machine.nimbus(&rotate)).expect(0, &[]);
        server.stop();
        Self {
            machine,
            new,
            notes,
        }
    }

    fn with(&self, arguments: &[&str], previous: bool, failpoints: &str) -> Ran {
        let old = self.machine.master_key();
        let mut command = self.machine.nimbus(arguments);
        let _ = command
            .env("NIMBUS_ENCRYPTION_KEY_PROVIDER", "master-key-file")
            .env("NIMBUS_ENCRYPTION_MASTER_KEY_FILE", &self.new)
            .env("FAILPOINTS", failpoints);
        if previous {
            let _ = command.env("NIMBUS_ENCRYPTION_PREVIOUS_MASTER_KEY_FILE", as_str(&old));
        }
        run(command)
    }

    fn rewrap(&self, previous: bool, failpoints: &str) -> Ran {
        self.with(
            &["backup", "rewrap", "--from", "repo"],
            previous,
            failpoints,
        )
    }

    /// Restores the first snapshot with the new key alone, and reads it.
    fn restores(&self) {
        let machine = &self.machine;
        let _ = self
            .with(&["backup", "verify", "--from", "repo", "--deep"], false, "")
            .expect(0, &["all authentic"]);
        let restore = [
            "backup",
            "restore",
            "--from",
            "repo",
            "--data-dir",
            "new",
            "--snapshot",
            "1",
        ];
        let _ = self
            .with(&restore, false, "")
            .expect(0, &["Restored snapshot 1"]);
        let key = [
            "--encryption-key-provider",
            "master-key-file",
            "--encryption-master-key-file",
            &self.new,
        ];
        let restored = start_on(machine, "new", &key);
        assert_eq!(self.notes, notes(&restored, "a"));
        restored.stop();
        fs::remove_dir_all(machine.path("new")).expect("the restored directory goes");
    }
}

#[test]
fn after_a_rewrap_the_old_key_can_be_destroyed_and_every_snapshot_restores() {
    let rotated = Rotated::new();
    let machine = &rotated.machine;
    // What cannot be opened stays, and is named.
    let _ = rotated
        .rewrap(false, "")
        .expect(3, &["NOT moved: keys/", "Do not destroy the key before"]);
    let _ = rotated
        .rewrap(true, "")
        .expect(0, &["3 data keys", "3 wrapped anew, 3 of before removed"]);
    let _ = rotated
        .rewrap(true, "")
        .expect(0, &["0 wrapped anew, 0 of before removed"]);
    fs::remove_file(machine.master_key()).expect("the old key goes");
    rotated.restores();
    // Snapshots go on.
    let _ = rotated
        .with(&["backup", "create", "--to", "repo"], false, "")
        .expect(0, &["Snapshot 2"]);
    rotated.restores();
    let _ = rotated.rewrap(false, "").expect(0, &["0 wrapped anew"]);
    let log = fs::read_to_string(machine.data_dir().join("nimbus-audit.log")).expect("the log");
    assert!(log.contains("the manifests in the repository"), "{log}");
}

#[test]
fn a_kill_at_each_step_of_a_rewrap_leaves_what_opens_and_the_next_goes_through() {
    let rotated = Rotated::new();
    for (run, point) in STEPS.into_iter().enumerate() {
        let ran = rotated.rewrap(true, point);
        // Later there may be nothing left to do.
        match run {
            0 | 1 => ran.expect_killed(),
            _ => assert!(
                matches!(ran.0.status.code(), None | Some(0)),
                "{}",
                ran.said()
            ),
        }
        let verify = ["backup", "verify", "--from", "repo"];
        let _ = rotated
            .with(&verify, true, "")
            .expect(0, &["all authentic"]);
    }
    let _ = rotated.rewrap(true, "").expect(0, &[]);
    fs::remove_file(rotated.machine.master_key()).expect("the old key goes");
    rotated.restores();
}

#[test]
fn a_manifest_that_somebody_put_there_does_not_take_the_place_of_one_that_opens() {
    let rotated = Rotated::new();
    let machine = &rotated.machine;
    // A newer revision, by its own word, whose MAC is nobody's.
    let keys = nimbus_test_support::files_under(&machine.path("repo/keys"));
    for key in &keys {
        let text = fs::read_to_string(key).expect("a manifest");
        let line = text
            .lines()
            .find(|line| line.starts_with("revision"))
            .expect("its revision");
        let forged = text.replacen(
            line,
            &format!("{}999", line.trim_end_matches(|c: char| c.is_ascii_digit())),
            1,
        );
        fs::write(key.with_file_name("f".repeat(64)), forged).expect("a forged manifest");
    }
    let _ = rotated
        .rewrap(true, "")
        .expect(3, &["NOT moved: keys/", "3 wrapped anew"]);
    for key in &keys {
        fs::remove_file(key.with_file_name("f".repeat(64))).expect("it is not ours to remove");
    }
    fs::remove_file(machine.master_key()).expect("the old key goes");
    rotated.restores();
}
