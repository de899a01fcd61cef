use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use nimbus_test_support::Machine;

use super::{as_str, deployment, encryption, health, identity, served, snapshot, status};

/// A deployment that a recovery identity opens, too, and whose master key is lost and replaced by a
/// new one.
fn lost_and_new() -> Machine {
    let machine = super::machine();
    let recipient = identity(&machine, "recovery.txt");
    super::fill(
        &machine,
        &["alpha", "beta"],
        &["--encryption-recovery-recipient", &recipient],
    );
    fs::remove_file(machine.master_key()).expect("the master key is lost");
    let key = machine.master_key();
    let _ = encryption(&machine, &["keygen", "--master-key-file", as_str(&key)]).expect(0, &[]);
    machine
}

const RECOVER: &[&str] = &["recover", "--path", "data", "--all", "--identity"];

#[test]
fn a_lost_master_key_is_replaced_with_the_identity() {
    let machine = lost_and_new();
    let found = status(&machine, &[], 3);
    assert_eq!(health(&found, "alpha.sqlite3"), "key-unavailable");
    let ran = encryption(&machine, &[RECOVER, &["recovery.txt"]].concat());
    let _ = ran.expect(0, &["3 rewrapped", "0 failed", "master-key-file"]);
    let secret = fs::read_to_string(machine.path("recovery.txt")).expect("the identity");
    let secret = secret.lines().last().expect("its last line");
    assert!(secret.starts_with("AGE-SECRET-KEY-1"));
    assert!(!(ran.out() + &ran.err()).contains(&secret[20..]));
    assert_eq!(
        status(&machine, &["--verify", "pages"], 0)["summary"]["ok"],
        3
    );
    assert_eq!(served(&machine, "alpha")[1]["of"], "alpha");
    // The recovery wraps are still there, for the next time; and the copies in the control file
    // came along.
    fs::remove_file(machine.data_dir().join("beta.sqlite3.nimbus-enc")).expect("a lost sidecar");
    let _ = encryption(&machine, &["repair"]).expect(0, &["put back"]);
    let _ = encryption(&machine, &[RECOVER, &["recovery.txt"]].concat())
        .expect(0, &["0 rewrapped, 3 had it already", "was not needed"]);
}

#[test]
fn a_recovery_that_is_killed_is_finished_by_the_next_run() {
    for passes in 0..3 {
        let machine = lost_and_new();
        let mut killed = machine.nimbus(&["encryption"]);
        killed.args([RECOVER, &["recovery.txt"]].concat()).env(
            "FAILPOINTS",
            format!("manifests::renamed={passes}*off->return"),
        );
        assert_eq!(super::run(killed).0.status.code(), None);
        let _ =
            encryption(&machine, &[RECOVER, &["recovery.txt"]].concat()).expect(0, &["0 failed"]);
        assert_eq!(
            status(&machine, &["--verify", "open"], 0)["summary"]["ok"],
            3
        );
    }
}

#[test]
fn rejects_identities_that_are_none_or_not_the_files() {
    let machine = lost_and_new();
    let _ = identity(&machine, "other.txt");
    let before = snapshot(&machine.data_dir());
    let recover = |identity: &str, words: &[&str]| {
        let _ = encryption(&machine, &[RECOVER, &[identity]].concat()).expect(1, words);
        assert_eq!(before, snapshot(&machine.data_dir()), "{identity}");
    };
    recover("missing.txt", &["missing.txt does not exist", "age-keygen"]);
    recover(
        "other.txt",
        &["no configured key opens", "nimbus-control.db"],
    );
    let with = |name: &str, content: &str, mode: u32| {
        fs::write(machine.path(name), content).expect("a file");
        fs::set_permissions(machine.path(name), fs::Permissions::from_mode(mode))
            .expect("its mode");
    };
    let text = fs::read_to_string(machine.path("recovery.txt")).expect("the identity");
    with("open.txt", &text, 0o644);
    recover("open.txt", &["open.txt", "chmod"]);
    with(
        "public.txt",
        "# a comment\nage1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p\n",
        0o600,
    );
    recover("public.txt", &["holds a recipient"]);
    with(
        "locked.txt",
        "age-encryption.org/v1\n-> scrypt x 18\n",
        0o600,
    );
    recover("locked.txt", &["is encrypted", "age -d"]);
    with("noise.txt", "\nAGE-SECRET-KEY-1NONSENSE\n", 0o600);
    recover("noise.txt", &["line 2 of noise.txt"]);
    with("empty.txt", "# nothing\n", 0o600);
    recover("empty.txt", &["holds no identity"]);
}

#[test]
fn rejects_while_the_server_runs() {
    let machine = deployment(&["alpha"], &[]);
    let server = machine.start(&[]);
    // Before anything is said of the identity, which is not there.
    let _ = encryption(&machine, &[RECOVER, &["recovery.txt"]].concat())
        .expect(1, &["in use by process"]);
    server.stop();
}

/// SECURITY.md says so: anybody can encrypt to a public key, and the recipient stands in every
/// manifest.
#[test]
fn recover_accepts_what_anybody_wrapped_to_the_recipient() {
    let machine = super::machine();
    let recipient = identity(&machine, "recovery.txt");
    let recipient = ["--encryption-recovery-recipient", &recipient];
    super::fill(&machine, &["alpha"], &recipient);
    super::next_second();
    // Somebody without any key of the deployment makes a tenant of the name, wrapped to the same
    // recipient, and puts it there.
    let stranger = super::machine();
    super::fill(&stranger, &["alpha"], &recipient);
    let server = stranger.start(&recipient);
    server.insert("alpha", "notes", &serde_json::json!({"of": "a stranger"}));
    server.stop();
    for name in ["alpha.sqlite3", "alpha.sqlite3.nimbus-enc"] {
        let there = machine.data_dir().join(name);
        let _bytes = fs::copy(stranger.data_dir().join(name), there).expect("a copy");
    }
    // The deployment's own key does not open it. The identity does.
    let found = status(&machine, &["--verify", "unwrap"], 3);
    assert_ne!(health(&found, "alpha.sqlite3"), "ok");
    let _ = encryption(&machine, &[RECOVER, &["recovery.txt"]].concat()).expect(0, &["0 failed"]);
    assert_eq!(served(&machine, "alpha")[2]["of"], "a stranger");
}
