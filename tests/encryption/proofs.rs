//! No wrap stands in a manifest that was not opened: KMS keys that encrypt and do not decrypt,
//! endpoints that answer something else.

use std::fs;
use std::process::Command;

use nimbus_manifests::SealedManifest;
use nimbus_test_support::{Fault, FaultProxy, Machine, Moto};
use serde_json::json;

use super::{Ran, as_str, deployment, encryption, identity, run, status};

/// A KMS, and a proxy before it that makes it a bad one.
struct Kms {
    moto: Moto,
    proxy: FaultProxy,
    key: String,
}

impl Kms {
    fn new() -> Self {
        let moto = Moto::start();
        Self {
            proxy: FaultProxy::in_front_of(moto.url()),
            key: moto.create_key(),
            moto,
        }
    }

    /// The ways in which a key that wraps may not give back what it wrapped: the action that is
    /// meddled with, how, and a word of the message.
    fn one_way(&self) -> Vec<(&'static str, Fault, &'static str)> {
        let plaintext = data_encoding::BASE64.encode(&[7; 32]);
        let wrong = json!({"KeyId": self.key, "Plaintext": plaintext}).to_string();
        let other = self.moto.create_key();
        vec![
            (
                "Decrypt",
                Fault::error(400, "AccessDeniedException", "not authorized"),
                "kms:Decrypt",
            ),
            ("Decrypt", Fault::Reply(wrong), "gave another key"),
            (
                "Encrypt",
                Fault::Rewrite(self.key.clone(), other.clone()),
                "unwrapping it was refused",
            ),
            (
                "GenerateDataKey",
                Fault::Rewrite(self.key.clone(), other),
                "unwrapping it was refused",
            ),
            ("Decrypt", Fault::Reset, "cannot be reached"),
        ]
    }

    /// Credentials, and nothing that selects the key.
    fn reachable(mut command: Command) -> Command {
        command
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test");
        command
    }

    /// The settings that select the key.
    fn selected(&self, command: Command) -> Command {
        let mut command = Self::reachable(command);
        command
            .env("NIMBUS_ENCRYPTION_KEY_PROVIDER", "aws-kms")
            .env("NIMBUS_ENCRYPTION_AWS_KMS_KEY_ID", &self.key)
            .env("NIMBUS_ENCRYPTION_AWS_REGION", "us-east-1")
            .env("NIMBUS_ENCRYPTION_AWS_ENDPOINT_URL", self.proxy.url());
        command
    }

    fn rotate(&self, machine: &Machine) -> Ran {
        let mut command = Self::reachable(machine.nimbus(&["encryption", "rotate-kek"]));
        command
            .args(["--path", "data", "--all", "--new-aws-kms-key-id", &self.key])
            .args(["--new-aws-region", "us-east-1"])
            .args(["--new-aws-endpoint-url", self.proxy.url()]);
        run(command)
    }
}

/// Every manifest, by its name.
fn manifests(machine: &Machine) -> Vec<(String, String)> {
    let mut found: Vec<_> = fs::read_dir(machine.data_dir())
        .expect("the data directory")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|end| end == "nimbus-enc"))
        .map(|path| {
            (
                as_str(&path).to_owned(),
                fs::read_to_string(&path).expect("a manifest"),
            )
        })
        .collect();
    found.sort();
    found
}

#[test]
fn a_rotation_to_a_key_that_gives_nothing_back_changes_nothing() {
    let kms = Kms::new();
    let machine = deployment(&["alpha", "beta"], &[]);
    let before = manifests(&machine);
    assert_eq!(before.len(), 3);
    for online in [false, true] {
        let server = online.then(|| {
            machine.start_command(Kms::reachable(machine.nimbus(&["start", "--port", "0"])))
        });
        // A rotation makes no data keys.
        let faults = kms.one_way().into_iter();
        for (action, fault, word) in faults.filter(|(action, ..)| *action != "GenerateDataKey") {
            kms.proxy.inject(action, fault);
            let _ = kms
                .rotate(&machine)
                .expect(1, &["nothing was changed", word]);
            kms.proxy.clear();
            assert_eq!(manifests(&machine), before, "{action} {word}");
        }
        if let Some(server) = server {
            // What is made now is under the old key, as all the rest.
            server.create("/api/tenants", &json!({"id": "gamma"}));
            server.stop();
        }
    }
    assert_eq!(
        status(&machine, &["--verify", "pages"], 0)["summary"]["ok"],
        4
    );
    let _ = kms.rotate(&machine).expect(0, &["4 rewrapped"]);
}

#[test]
fn a_file_whose_new_wrap_fails_its_proof_keeps_the_old_one() {
    let kms = Kms::new();
    let machine = deployment(&["alpha", "beta"], &[]);
    let before = manifests(&machine);
    let denied = Fault::error(400, "AccessDeniedException", "not authorized");
    kms.proxy.inject_for("Decrypt", "tenant:beta:", denied);
    let words = [
        "2 rewrapped, 0 had it already, 1 failed",
        "beta.sqlite3",
        "kms:Decrypt",
    ];
    let _ = kms.rotate(&machine).expect(1, &words);
    let after = manifests(&machine);
    let unchanged = before.iter().filter(|manifest| after.contains(manifest));
    assert!(
        unchanged
            .map(|(path, _)| path)
            .all(|path| path.contains("beta"))
    );
    let mut both = kms.selected(machine.nimbus(&["encryption", "status", "--verify", "open"]));
    both.env(
        "NIMBUS_ENCRYPTION_PREVIOUS_MASTER_KEY_FILE",
        machine.master_key(),
    );
    // Alone the new key does not open it, and the old one still does.
    kms.proxy.clear();
    let _ = run(both).expect(0, &["3 files, 3 ok"]);
    assert_eq!(
        super::health(&status(&machine, &[], 3), "beta.sqlite3"),
        "ok"
    );
}

#[test]
fn a_recovery_to_a_key_that_gives_nothing_back_changes_nothing() {
    let kms = Kms::new();
    let machine = super::machine();
    let recipient = identity(&machine, "recovery.txt");
    let arguments = ["--encryption-recovery-recipient", &recipient];
    super::fill(&machine, &["alpha"], &arguments);
    let before = manifests(&machine);
    let recover = || {
        let command = machine.nimbus(&["encryption", "recover", "--path", "data", "--all"]);
        let mut command = kms.selected(command);
        command.args(["--identity", "recovery.txt"]);
        run(command)
    };
    for (action, fault, word) in kms.one_way() {
        if action == "GenerateDataKey" {
            continue;
        }
        kms.proxy.inject(action, fault);
        let _ = recover().expect(1, &["nothing was changed", word]);
        kms.proxy.clear();
        assert_eq!(manifests(&machine), before, "{action} {word}");
    }
    assert_eq!(
        status(&machine, &["--verify", "open"], 0)["summary"]["ok"],
        2
    );
    let _ = recover().expect(0, &["2 rewrapped"]);
    let look = kms.selected(machine.nimbus(&["encryption", "status", "--verify", "open"]));
    let _ = run(look).expect(0, &["2 files, 2 ok"]);
}

#[test]
fn a_recovery_replaces_a_wrap_that_names_the_key_and_does_not_open() {
    let kms = Kms::new();
    let machine = super::machine();
    let recipient = identity(&machine, "recovery.txt");
    let mut start = kms.selected(machine.nimbus(&["start", "--port", "0"]));
    start.args(["--encryption-recovery-recipient", &recipient]);
    let server = machine.start_command(start);
    server.create("/api/tenants", &json!({"id": "alpha"}));
    server.stop();
    // As an earlier release may have left it: the wrap in the manifest is one that KMS does not
    // open.
    let manifest = machine.data_dir().join("alpha.sqlite3.nimbus-enc");
    let sealed = SealedManifest::parse(&fs::read(&manifest).expect("it")).expect("a manifest");
    let blob = data_encoding::BASE64.encode(&sealed.claims().deks()[0].wraps[0].blob);
    let no = Fault::error(400, "InvalidCiphertextException", "");
    kms.proxy.inject_for("Decrypt", &blob, no);
    let look = || {
        let command = machine.nimbus(&["encryption", "status", "--verify", "open"]);
        run(kms.selected(command))
    };
    let _ = look().expect(3, &["alpha.sqlite3"]);
    let recover = || {
        let command = machine.nimbus(&["encryption", "recover", "--path", "data", "--all"]);
        let mut command = kms.selected(command);
        command.args(["--identity", "recovery.txt"]);
        run(command)
    };
    let _ = recover().expect(0, &["1 rewrapped, 1 had it already, 0 failed"]);
    let _ = look().expect(0, &["2 files, 2 ok"]);
    let _ = recover().expect(0, &["0 rewrapped, 2 had it already, 0 failed"]);
}

#[test]
fn nothing_is_created_under_a_key_that_gives_nothing_back() {
    let kms = Kms::new();
    let machine = super::machine();
    for (action, fault, word) in kms.one_way() {
        if action == "Encrypt" {
            continue;
        }
        kms.proxy.inject(action, fault);
        let start = kms.selected(machine.nimbus(&["start", "--port", "0"]));
        machine.run_to_end(start).expect(1, &[word]);
        kms.proxy.clear();
        assert_eq!(manifests(&machine), [], "{action} {word}");
    }
    let server = machine.start_command(kms.selected(machine.nimbus(&["start", "--port", "0"])));
    for (action, fault, word) in kms.one_way() {
        if action == "Encrypt" {
            continue;
        }
        kms.proxy.inject_for(action, "tenant:alpha:", fault);
        let made = server.request("POST", "/api/tenants", Some(&json!({"id": "alpha"})));
        kms.proxy.clear();
        assert!((500..600).contains(&made.0), "{action} {word} {made:?}");
        assert_eq!(manifests(&machine).len(), 1, "{action} {word}");
    }
    // A tenant that was denied a moment ago is asked for again after a second.
    let mut made = 0;
    while made != 201 {
        made = server
            .request("POST", "/api/tenants", Some(&json!({"id": "alpha"})))
            .0;
    }
    server.stop();
}

#[test]
fn a_new_data_key_that_does_not_come_back_leaves_the_old_one() {
    let kms = Kms::new();
    let machine = super::machine();
    let server = machine.start_command(kms.selected(machine.nimbus(&["start", "--port", "0"])));
    server.create("/api/tenants", &json!({"id": "alpha"}));
    server.insert("alpha", "notes", &json!({"of": "alpha"}));
    server.stop();
    let before = manifests(&machine);
    let elsewhere = Fault::Rewrite(kms.key.clone(), kms.moto.create_key());
    kms.proxy.inject("GenerateDataKey", elsewhere);
    let renew = || {
        let mut command = kms.selected(machine.nimbus(&["encryption"]));
        command.args(super::RENEW_ALPHA);
        run(command)
    };
    let _ = renew().expect(
        1,
        &[
            "does not give the data key back",
            "unwrapping it was refused",
        ],
    );
    kms.proxy.clear();
    assert_eq!(manifests(&machine), before);
    let look = || {
        let look = kms.selected(machine.nimbus(&["encryption", "status", "--verify", "pages"]));
        let _ = run(look).expect(0, &["2 files, 2 ok"]);
    };
    look();
    let _ = renew().expect(0, &[]);
    look();
    assert_ne!(manifests(&machine), before);
}

#[test]
fn data_keys_do_not_pass_the_network_in_the_clear() {
    let machine = deployment(&["alpha"], &[]);
    let before = manifests(&machine);
    let rotate = |endpoint: &str| {
        let named = [
            "--new-aws-kms-key-id",
            "alias/nimbus",
            "--new-aws-endpoint-url",
            endpoint,
        ];
        encryption(
            &machine,
            &[&["rotate-kek", "--path", "data", "--all"], &named[..]].concat(),
        )
    };
    let words = ["--new-aws-endpoint-url", "in the clear", "https://"];
    let _ = rotate("http://kms.example").expect(2, &words);
    let _ = rotate("kms.example").expect(2, &["--new-aws-endpoint-url", "no scheme"]);
    let mut start = Kms::reachable(machine.nimbus(&["start", "--port", "0"]));
    start.args(["--encryption-key-provider", "aws-kms"]).args([
        "--encryption-aws-kms-key-id",
        "alias/nimbus",
        "--encryption-aws-endpoint-url",
        "http://192.0.2.1:5000",
    ]);
    let ended = machine.run_to_end(start);
    ended.expect(2, &["--encryption-aws-endpoint-url", "in the clear"]);
    // Where the standard chain names it, too.
    let mut start = Kms::reachable(machine.nimbus(&["start", "--port", "0"]));
    start
        .args(["--encryption-key-provider", "aws-kms"])
        .args(["--encryption-aws-kms-key-id", "alias/nimbus"])
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ENDPOINT_URL_KMS", "http://192.0.2.1:5000");
    machine
        .run_to_end(start)
        .expect(1, &["AWS_ENDPOINT_URL_KMS", "in the clear"]);
    assert_eq!(manifests(&machine), before);
}
