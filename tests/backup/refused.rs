use std::fs;

use super::{as_str, backup, backup_with, filled, machine, restore, start_on};

#[test]
fn places_that_would_lose_or_give_away_the_backup_are_refused() {
    let machine = machine();
    let server = filled(&machine, &["a"]);
    let inside = machine.data_dir().join("backup");
    let beside = machine
        .master_key()
        .parent()
        .expect("its directory")
        .to_owned();
    let below = beside.join("some/where");
    let around = beside.parent().expect("its directory").to_owned();
    for (to, words) in [
        (as_str(&inside), "lie one in the other"),
        (as_str(machine.root()), "lie one in the other"),
        (as_str(&beside), "lies beside the key"),
        (as_str(&below), "lies beside the key"),
        (as_str(&around), "lies beside the key"),
        ("gs://bucket", "only s3:// is known"),
        ("s3://B", "a bucket's name"),
    ] {
        let ran = backup(&machine, &["create", "--to", to]);
        assert!(
            !ran.0.status.success() && ran.said().contains(words),
            "{to}: {}",
            ran.said()
        );
        let body = serde_json::json!({"to": to});
        let (status, answer) = server.request("POST", "/api/admin/backups", Some(&body));
        assert!(
            status == 400 && answer.to_string().contains(words),
            "{to}: {answer}"
        );
    }
    let body = serde_json::json!({"to": "relative"});
    assert_eq!(
        server.request("POST", "/api/admin/backups", Some(&body)).0,
        400
    );
    server.stop();
    assert!(!inside.exists());
}

#[test]
fn what_is_no_repository_of_this_deployment_is_refused_with_one_clear_error() {
    let machine = machine();
    filled(&machine, &["a"]).stop();
    fs::create_dir(machine.path("mine")).expect("a directory");
    fs::write(machine.path("mine/letter"), "dear").expect("a file");
    let _ = backup(&machine, &["create", "--to", "mine"]).expect(1, &["is not empty", "letter"]);
    let _ = backup(&machine, &["list", "--from", "nowhere"]).expect(1, &["cannot look into"]);
    fs::create_dir(machine.path("empty")).expect("a directory");
    let _ = backup(&machine, &["list", "--from", "empty"]).expect(1, &["is no repository"]);
    let _ = backup(
        &machine,
        &["restore", "--from", "empty", "--data-dir", "new"],
    )
    .expect(1, &["is no repository"]);

    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    let _ =
        restore(&machine, "new", &["--snapshot", "7"]).expect(1, &["has no snapshot 7", "1 to 1"]);
    let _ = restore(&machine, "data", &[]).expect(1, &["is not empty"]);
    // A server is there, and another restoration.
    let server = machine.start(&[]);
    let _ = restore(&machine, "data", &[]).expect(1, &["is not empty"]);
    server.stop();
    fs::create_dir(machine.path("busy")).expect("a directory");
    fs::write(machine.path("busy/nimbus.lock"), "").expect("a lock file");
    let held = fs::File::open(machine.path("busy/nimbus.lock")).expect("the lock");
    held.lock().expect("it is locked");
    let _ = restore(&machine, "busy", &[]).expect(1, &["busy"]);
    drop(held);
    let _ = restore(&machine, "busy", &[]).expect(0, &["Restored"]);
    // Before the first and after the last: which there are is said.
    for at in ["2001-01-01T00:00:00Z", "2999-01-01T00:00:00Z"] {
        let _ = restore(&machine, "new", &["--at", at])
            .expect(1, &["cannot be restored to", "it has snapshot 1 of 20"]);
        let data = machine.data_dir();
        let one = ["--tenant-id", "a", "--as", "c", "--at", at];
        let _ = restore(&machine, as_str(&data), &one)
            .expect(1, &["cannot be restored to", "it has snapshot 1 of 20"]);
    }
    let _ = restore(&machine, "new", &["--at", "yesterday"]).expect(2, &["RFC 3339"]);
    // Another deployment, under the same key.
    let other = start_on(&machine, "other", &[]);
    other.stop();
    let mine = [("NIMBUS_DATA_DIR", "other")];
    let _ = backup_with(&machine, &["create", "--to", "repo"], &mine)
        .expect(1, &["belongs to another deployment"]);
    // Another key.
    let key = machine.path("keys/another.key");
    fs::create_dir(machine.path("keys")).expect("a directory");
    let keygen = ["encryption", "keygen", "--master-key-file", as_str(&key)];
    let _ = super::run(machine.nimbus(&keygen)).expect(0, &[]);
    let stranger = [
        ("NIMBUS_ENCRYPTION_KEY_PROVIDER", "master-key-file"),
        ("NIMBUS_ENCRYPTION_MASTER_KEY_FILE", as_str(&key)),
    ];
    // Nothing of it is damaged: which key is missing is said.
    for (arguments, code) in [
        (&["verify", "--from", "repo"][..], 3),
        (&["restore", "--from", "repo", "--data-dir", "new"], 1),
    ] {
        let ran = backup_with(&machine, arguments, &stranger);
        let _ = ran.expect(code, &["master-key-file"]);
        let said = ran.said();
        assert!(!said.to_lowercase().contains("damage"), "{said}");
        assert!(!said.contains("all authentic"), "{said}");
    }
    assert!(!machine.path("new").exists());
    // Without any key it is restored, and nothing is proven.
    let _ = backup_with(
        &machine,
        &[
            "restore",
            "--from",
            "repo",
            "--data-dir",
            "new",
            "--verify",
            "none",
        ],
        &stranger,
    )
    .expect(0, &["Nothing was proven"]);
    start_on(&machine, "new", &[]).stop();

    let beginning = machine.path("repo/nimbus-repository");
    let text = fs::read_to_string(&beginning).expect("its beginning");
    fs::write(&beginning, text.replace("repository/1", "repository/2")).expect("a newer one");
    let _ = backup(&machine, &["create", "--to", "repo"])
        .expect(1, &["newer nimbus", "nimbus-repository/2"]);
    fs::write(&beginning, "what").expect("another thing");
    let _ = backup(&machine, &["list", "--from", "repo"]).expect(1, &["is damaged"]);
    fs::remove_file(&beginning).expect("it goes");
    for arguments in [&["create", "--to", "repo"], &["list", "--from", "repo"]] {
        let _ = backup(&machine, arguments).expect(1, &["`nimbus-repository` is missing"]);
    }
}

#[test]
fn plaintext_is_told_what_to_do_instead() {
    let machine = machine();
    let off = ["--encryption-key-provider", "none"];
    machine.start(&off).stop();
    let settings = [("NIMBUS_ENCRYPTION_KEY_PROVIDER", "none")];
    let _ = backup_with(&machine, &["create", "--to", "repo"], &settings)
        .expect(1, &["in plaintext", ".backup"]);
    assert!(!machine.path("repo").exists());
}
