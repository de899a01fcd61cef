use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::{as_str, deployment, encryption, machine, run};

fn with_mode(path: &std::path::Path, content: &[u8], mode: u32) {
    fs::write(path, content).expect("a key file");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its mode");
}

#[test]
fn makes_keys_that_only_their_owner_reads_and_never_over_an_old_one() {
    let machine = machine();
    let key = machine.path("keys/master.key");
    let made = encryption(&machine, &["keygen", "--master-key-file", as_str(&key)]);
    let _ = made.expect(0, &["Back this key up"]);
    let content = fs::read(&key).expect("the key");
    assert_eq!(content.len(), 32);
    assert_eq!(
        fs::metadata(&key).expect("it").permissions().mode() & 0o777,
        0o400
    );
    let id = made.out();
    let id = id.split_whitespace().next().expect("a key id");
    assert_eq!(id.len(), 16);
    let _ = encryption(&machine, &["keygen", "--master-key-file", as_str(&key)])
        .expect(1, &["already"]);
    assert_eq!(fs::read(&key).expect("the key"), content);

    let _ = encryption(
        &machine,
        &["keygen", "--key-dir", "dir", "--tenant-id", "demo"],
    )
    .expect(0, &[]);
    let name: String = "db:sqlite:tenant:demo:demo.sqlite3"
        .bytes()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert!(machine.path(&format!("dir/{name}.key")).exists());
    let _ = encryption(&machine, &["keygen"]).expect(2, &["--master-key-file"]);
    let _ = encryption(&machine, &["keygen", "--key-dir", "dir"]).expect(2, &[]);
}

#[test]
fn inspects_a_manifest_without_any_key() {
    let machine = deployment(&["alpha"], &[]);
    fs::remove_file(machine.master_key()).expect("no key");
    for file in ["data/alpha.sqlite3", "data/alpha.sqlite3.nimbus-enc"] {
        let _ = encryption(&machine, &["inspect", file]).expect(
            0,
            &[
                "db:sqlite:tenant:alpha:alpha.sqlite3",
                "sqlcipher4",
                "ready",
                "Nothing of this is verified",
            ],
        );
    }
    let json = encryption(
        &machine,
        &["inspect", "--format", "json", "data/alpha.sqlite3"],
    );
    let json = json.expect(0, &[]).json();
    assert_eq!(json["subject"], "db:sqlite:tenant:alpha:alpha.sqlite3");
    assert_eq!(json["verified"], false);
    assert_eq!(
        json["deks"][0]["wraps"][0]["algorithm"],
        "hkdf-sha256+aes-256-gcm"
    );
    let _ = encryption(&machine, &["inspect", "data/beta.sqlite3"])
        .expect(1, &["data/beta.sqlite3 is neither a protected file"]);
    fs::write(machine.path("x.nimbus-enc"), "nimbus-enc/9\n").expect("a newer one");
    let _ =
        encryption(&machine, &["inspect", "x.nimbus-enc"]).expect(1, &["x.nimbus-enc", "newer"]);
}

#[test]
fn says_of_each_bad_key_file_what_is_wrong_and_what_to_run() {
    let machine = deployment(&["alpha"], &[]);
    let key = machine.master_key();
    let good = fs::read(&key).expect("the key");
    let bad = machine.path("bad.key");
    let base64 = [b'A'; 44];
    let hex = [b'a'; 64];
    let cases: &[(&[u8], u32, &[&str])] = &[
        (&[], 0o400, &["bad.key", "empty"]),
        (&good[..31], 0o400, &["bad.key", "31 bytes"]),
        (
            &[good.as_slice(), b"\n"].concat(),
            0o400,
            &["bad.key", "33 bytes"],
        ),
        (&base64, 0o400, &["bad.key", "base64", "32 raw bytes"]),
        (&hex, 0o400, &["bad.key", "hex", "32 raw bytes"]),
        (&good, 0o404, &["bad.key", "chmod"]),
        (&good, 0o440, &["bad.key", "chmod"]),
        (&good, 0o620, &["bad.key", "chmod"]),
    ];
    let export = |path: &std::path::Path| {
        let mut command = machine.nimbus(&[
            "encryption",
            "export",
            "--provider",
            "sqlite",
            "--source",
            "data/alpha.sqlite3",
            "--tenant-id",
            "alpha",
            "--target",
            "out",
        ]);
        command
            .env("NIMBUS_ENCRYPTION_KEY_PROVIDER", "master-key-file")
            .env("NIMBUS_ENCRYPTION_MASTER_KEY_FILE", path);
        run(command)
    };
    for (content, mode, words) in cases {
        drop(fs::remove_file(&bad));
        with_mode(&bad, content, *mode);
        let _ = export(&bad).expect(1, words);
        assert!(!machine.path("out").exists());
    }
    drop(fs::remove_file(&bad));
    let _ = export(&bad).expect(1, &["bad.key"]);
    fs::create_dir(&bad).expect("a directory");
    let _ = export(&bad).expect(1, &["bad.key", "directory"]);
    let _ = export(&key).expect(0, &[]);
}

#[test]
fn rejects_flags_and_settings_that_it_does_not_know_or_that_are_anothers() {
    let machine = deployment(&["alpha"], &[]);
    let _ = encryption(&machine, &["status", "--verbose-please"]).expect(2, &["--verbose-please"]);
    let config = machine.path("nimbus.json");
    let with_config = |content: &str| {
        fs::write(&config, content).expect("a configuration file");
        let mut command = machine.nimbus(&["encryption", "status"]);
        command.env("NIMBUS_CONFIG", &config);
        run(command)
    };
    let _ = with_config(r#"{"persistence": {"data_dri": "x"}}"#)
        .expect(2, &["nimbus.json", "data_dri"]);
    let _ = with_config(r#"{"persistance": {}}"#).expect(2, &["persistance"]);
    let _ = with_config("{").expect(2, &["nimbus.json"]);
    let _ = with_config(r#"{"persistence": {"encryption_key_dir": "x"}}"#)
        .expect(2, &["--encryption-key-dir", "key-dir"]);
    let _ = with_config(r#"{"persistence": {}}"#).expect(0, &[]);
    let mut command = machine.nimbus(&["encryption", "status"]);
    command.env("NIMBUS_ENCRYPTION_KEY_PROVIDER", "vault");
    let _ = run(command).expect(2, &["vault", "NIMBUS_ENCRYPTION_KEY_PROVIDER"]);
}
