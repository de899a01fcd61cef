use std::fs;
use std::path::PathBuf;

use nimbus_test_support::Machine;
use serde_json::json;

use super::{as_str, assert_audited, deployment, encryption, health, served, snapshot, status};

#[test]
fn puts_lost_manifests_back_and_keeps_what_stood_in_their_place() {
    let machine = deployment(&["alpha", "beta", "gamma"], &[]);
    let manifest = |tenant: &str| {
        machine
            .data_dir()
            .join(format!("{tenant}.sqlite3.nimbus-enc"))
    };
    let before = snapshot(&machine.data_dir());
    fs::remove_file(manifest("alpha")).expect("a lost manifest");
    fs::write(manifest("beta"), "scrambled").expect("a damaged one");
    let ran = encryption(&machine, &["repair"]);
    let _ = ran.expect(
        0,
        &[
            "alpha.sqlite3: its manifest was put back",
            "beta.sqlite3: its",
        ],
    );
    assert_audited(&machine, "repair", "db:sqlite:tenant:alpha:alpha.sqlite3");
    assert!(!ran.out().contains("gamma"));
    let aside = machine
        .data_dir()
        .join("beta.sqlite3.nimbus-enc.set-aside-1");
    assert_eq!(fs::read(&aside).expect("what stood there"), b"scrambled");
    fs::remove_file(aside).expect("it is looked at no more");
    let after = status(&machine, &["--verify", "pages"], 0);
    assert_eq!(after["summary"]["ok"], 4);
    // But for the control file, which was opened, everything is as it was.
    let tenants = |files: Vec<(String, u64)>| -> Vec<_> {
        files
            .into_iter()
            .filter(|(name, _)| name.contains("sqlite3"))
            .collect()
    };
    assert_eq!(tenants(before), tenants(snapshot(&machine.data_dir())));
    let _ = encryption(&machine, &["repair"]).expect(0, &["No manifest is missing"]);
    assert_eq!(served(&machine, "alpha")[0]["of"], "alpha");
}

#[test]
fn puts_manifests_back_that_were_changed_or_are_another_files() {
    let machine = deployment(&["changed", "rewrapped", "swapped", "whole"], &[]);
    let manifest = |tenant: &str| {
        machine
            .data_dir()
            .join(format!("{tenant}.sqlite3.nimbus-enc"))
    };
    let text = |tenant: &str| fs::read_to_string(manifest(tenant)).expect("a manifest");
    let edited = text("changed").replace("revision: 2", "revision: 3");
    fs::write(manifest("changed"), edited).expect("an edited manifest");
    // The first digit of the wrapped key.
    let rewrapped = text("rewrapped");
    let (head, wrap) = rewrapped.split_once("\n ").expect("a wrap");
    let digit = if wrap.starts_with('A') { 'B' } else { 'A' };
    let rewrapped = format!("{head}\n {digit}{}", &wrap[1..]);
    fs::write(manifest("rewrapped"), rewrapped).expect("an edited wrap");
    let _bytes = fs::copy(manifest("whole"), manifest("swapped")).expect("another's manifest");

    let found = status(&machine, &[], 3);
    assert_eq!(found["summary"]["problems"], 3);
    for file in found["files"].as_array().expect("files") {
        let detail = file["detail"]
            .as_str()
            .unwrap_or("`nimbus encryption repair`");
        assert!(detail.contains("`nimbus encryption repair`"), "{detail}");
    }
    let ran = encryption(&machine, &["repair"]);
    let _ = ran.expect(
        0,
        &[
            "changed.sqlite3: its",
            "rewrapped.sqlite3: its",
            "swapped.sqlite3: its",
        ],
    );
    assert!(!ran.out().contains("whole"));
    let after = status(&machine, &["--verify", "pages"], 0);
    assert_eq!(after["summary"]["ok"], 5);
    assert_eq!(served(&machine, "swapped")[0]["of"], "swapped");
}

#[test]
fn leaves_manifests_alone_whose_key_is_not_configured() {
    let machine = deployment(&["alpha"], &[]);
    let manifest = machine.data_dir().join("alpha.sqlite3.nimbus-enc");
    let text = fs::read_to_string(&manifest).expect("a manifest");
    let line = text
        .lines()
        .find(|line| line.starts_with("wrap: "))
        .expect("a wrap");
    let id = line.split(' ').nth(2).expect("a key id");
    // As a rotation would have left it that this control file knows nothing of.
    let foreign = text.replace(id, "00112233445566ff");
    let foreign = foreign.replace("revision: 2", "revision: 3");
    fs::write(&manifest, &foreign).expect("a manifest under another key");
    let _ = encryption(&machine, &["repair"]).expect(0, &["No manifest is missing"]);
    assert_eq!(fs::read_to_string(&manifest).expect("as it was"), foreign);
}

#[test]
fn says_what_is_left_to_do_when_the_control_files_manifest_is_lost() {
    let machine = deployment(&["alpha"], &[]);
    let control = machine.data_dir().join("nimbus-control.db");
    let manifest = machine.data_dir().join("nimbus-control.db.nimbus-enc");
    fs::remove_file(&manifest).expect("it is lost");
    let ran = encryption(&machine, &["repair"]);
    let said = ran
        .expect(1, &["move the control file and its manifest away"])
        .err();
    assert!(!said.contains("encryption repair"), "{said}");
    fs::remove_file(control).expect("moved away");
    assert_eq!(served(&machine, "alpha")[0]["of"], "alpha");
    status(&machine, &["--verify", "pages"], 0);
}

#[test]
fn puts_none_back_beside_nothing_or_for_a_tenant_that_was_deleted() {
    let machine = deployment(&["alpha", "beta", "gone"], &[]);
    let server = machine.start(&[]);
    let (code, _) = server.request("DELETE", "/api/tenants/gone", None);
    assert_eq!(code, 204);
    server.stop();
    let data = machine.data_dir();
    fs::remove_file(data.join("alpha.sqlite3")).expect("a lost database");
    fs::write(data.join("alpha.sqlite3.nimbus-enc"), "scrambled").expect("and its manifest");
    fs::write(data.join("beta.sqlite3"), b"SQLite format 3\0").expect("plaintext");
    fs::remove_file(data.join("beta.sqlite3.nimbus-enc")).expect("a lost manifest");
    let ran = encryption(&machine, &["repair"]);
    let _ = ran.expect(
        3,
        &[
            "alpha.sqlite3: the database is gone",
            "beta.sqlite3: the database is plaintext",
        ],
    );
    assert!(!ran.out().contains("put back"), "{}", ran.out());
    let found = status(&machine, &[], 3);
    assert_eq!(health(&found, "beta.sqlite3"), "plaintext");
    assert!(!data.join("gone.sqlite3.nimbus-enc").exists());
}

#[test]
fn rejects_while_the_server_runs_and_without_the_control_file() {
    let machine = deployment(&["alpha"], &[]);
    let server = machine.start(&[]);
    let _ = encryption(&machine, &["repair"]).expect(1, &["in use by process"]);
    server.stop();
    fs::remove_file(machine.data_dir().join("nimbus-control.db")).expect("it is lost");
    let _ = encryption(&machine, &["repair"]).expect(1, &["nimbus-control.db is gone"]);
}

/// The database and the manifest of alpha.
fn pair(machine: &Machine) -> [(PathBuf, Vec<u8>); 2] {
    ["alpha.sqlite3", "alpha.sqlite3.nimbus-enc"].map(|name| {
        let path = machine.data_dir().join(name);
        let content = fs::read(&path).expect("a file of alpha");
        (path, content)
    })
}

fn put([database, manifest]: &[(PathBuf, Vec<u8>); 2]) {
    for (path, content) in [database, manifest] {
        fs::write(path, content).expect("a file of alpha");
    }
}

#[test]
fn an_older_manifest_under_a_key_that_was_given_up_is_refused_and_the_newest_put_back() {
    let machine = deployment(&["alpha"], &[]);
    let [_, (manifest, old)] = pair(&machine);
    let key = machine.path("new.key");
    let _ = encryption(&machine, &["keygen", "--master-key-file", as_str(&key)]).expect(0, &[]);
    let rotate = ["rotate-kek", "--path", "data", "--all"];
    let to_new = [&rotate[..], &["--new-master-key-file", "new.key"]].concat();
    let _ = encryption(&machine, &to_new).expect(0, &["2 rewrapped", "0 failed"]);
    let old_key = machine.path("old.key");
    fs::rename(machine.master_key(), &old_key).expect("the old key is put by");
    fs::rename(key, machine.master_key()).expect("the new one is in its place");
    let [_, (_, newest)] = pair(&machine);

    // Whoever has the old key still has everything, if this opened.
    fs::write(&manifest, &old).expect("replayed");
    let accepting = ["--encryption-previous-master-key-file", as_str(&old_key)];
    let server = machine.start(&accepting);
    let path = "/api/tenants/alpha/documents/notes";
    let (code, answer) = server.request("GET", path, None);
    assert_eq!(
        (code, &answer["error"]["code"]),
        (503, &json!("service.storage_corruption")),
        "{answer}"
    );
    assert!(answer.to_string().contains("older"), "{answer}");
    let found = server.get("/debug/encryption/status?verify=none");
    assert_eq!(health(&found, "alpha.sqlite3"), "manifest-corrupt");
    server.stop();
    let with_old = |arguments: &[&str]| {
        let mut command = machine.nimbus(&["encryption"]);
        command
            .args(arguments)
            .env("NIMBUS_ENCRYPTION_PREVIOUS_MASTER_KEY_FILE", &old_key);
        super::run(command)
    };
    // Written anew it would be the newest.
    let _ = with_old(&rotate).expect(1, &["1 failed", "is an older one"]);
    let renew = [
        "rotate-dek",
        "--path",
        "data/alpha.sqlite3",
        "--tenant-id",
        "alpha",
    ];
    let renew = [&renew[..], &["--provider", "sqlite"]].concat();
    let _ = with_old(&renew).expect(1, &["is an older one"]);
    let found = with_old(&["status", "--format", "json"])
        .expect(3, &[])
        .json();
    assert_eq!(health(&found, "alpha.sqlite3"), "manifest-corrupt");
    assert_eq!(fs::read(&manifest).expect("it"), old, "nobody touched it");

    let _ =
        encryption(&machine, &["repair"]).expect(0, &["alpha.sqlite3: its manifest was put back"]);
    assert_eq!(fs::read(&manifest).expect("it"), newest);
    assert_eq!(served(&machine, "alpha")[0]["of"], "alpha");
}

#[test]
fn a_database_and_its_manifest_from_before_a_new_data_key_are_taken_back_only_when_told_to() {
    let machine = deployment(&["alpha", "beta"], &[]);
    let backup = pair(&machine);
    let renew = ["rotate-dek", "--path", "data", "--all"];
    let _ = encryption(&machine, &renew).expect(0, &["has a new data key"]);
    let newest = pair(&machine);
    put(&backup);
    let found = status(&machine, &[], 3);
    assert_eq!(health(&found, "alpha.sqlite3"), "manifest-corrupt");
    let words = ["does not open the database", "--accept-older alpha"];
    let _ = encryption(&machine, &["repair"]).expect(3, &words);
    assert_eq!(pair(&machine), backup, "as it was");
    // Where the copy opens the database nothing older is accepted: the copy is put back.
    fs::write(&newest[0].0, &newest[0].1).expect("the newer database");
    let accept = ["repair", "--accept-older", "alpha"];
    let _ = encryption(&machine, &accept).expect(0, &["alpha.sqlite3: its manifest was put back"]);
    assert_eq!(pair(&machine), newest);
    let aside = "alpha.sqlite3.nimbus-enc.set-aside-1";
    fs::remove_file(machine.data_dir().join(aside)).expect("what stood there");
    put(&backup);
    let _ = encryption(&machine, &accept).expect(
        0,
        &["alpha.sqlite3: the older manifest and its database are accepted"],
    );
    assert_audited(&machine, "restore", "db:sqlite:tenant:alpha:alpha.sqlite3");
    status(&machine, &["--verify", "pages"], 0);
    assert_eq!(served(&machine, "alpha")[0]["of"], "alpha");
    // From then on the newer one is only another newer one.
    put(&newest);
    status(&machine, &["--verify", "pages"], 0);
    assert_eq!(served(&machine, "alpha")[0]["of"], "alpha");
    put(&backup);
    assert_eq!(
        health(&status(&machine, &[], 3), "alpha.sqlite3"),
        "manifest-corrupt"
    );
}

#[test]
fn a_rekey_that_ended_is_not_undone_by_what_a_crash_in_it_had_left() {
    let machine = deployment(&["alpha", "beta"], &[]);
    let [database, _] = pair(&machine);
    let renew = ["encryption", "rotate-dek", "--provider", "sqlite"];
    let renew = [&renew[..], &["--path", "data/alpha.sqlite3"]].concat();
    let renew = [&renew[..], &["--tenant-id", "alpha"]].concat();
    let mut command = machine.nimbus(&renew);
    command.env("FAILPOINTS", "rekey::renamed=return");
    machine.run_to_end(command).expect_killed();
    let [_, rekeying] = pair(&machine);
    assert_eq!(served(&machine, "alpha")[0]["of"], "alpha");
    let newest = pair(&machine);
    assert_ne!(newest[1], rekeying);
    // The manifest of the crash with its database is a crash's; with the one from before it is an
    // older one.
    put(&[newest[0].clone(), rekeying.clone()]);
    assert_eq!(served(&machine, "alpha")[0]["of"], "alpha");
    assert_eq!(pair(&machine)[1], newest[1]);
    put(&[database, rekeying]);
    let found = status(&machine, &["--verify", "open"], 3);
    assert_eq!(health(&found, "alpha.sqlite3"), "manifest-corrupt");
    let words = ["does not open the database", "--accept-older alpha"];
    let _ = encryption(&machine, &["repair"]).expect(3, &words);
    put(&newest);
    assert_eq!(served(&machine, "alpha")[0]["of"], "alpha");
}

#[test]
fn one_that_cannot_be_read_is_not_replaced_and_does_not_end_it() {
    let machine = deployment(&["alpha", "beta"], &[]);
    let manifest = |tenant: &str| {
        let name = format!("{tenant}.sqlite3.nimbus-enc");
        machine.data_dir().join(name)
    };
    fs::remove_file(manifest("alpha")).expect("lost");
    fs::create_dir(manifest("alpha")).expect("what no read answers for");
    fs::write(manifest("beta"), "scrambled").expect("a damaged one");
    let words = ["alpha.sqlite3: ", "beta.sqlite3: its manifest was put back"];
    let ran = encryption(&machine, &["repair", "--accept-older", "nobody"]);
    let _ = ran.expect(3, &[&words[..], &["nobody.sqlite3: "]].concat());
    assert!(manifest("alpha").is_dir(), "as it was");
    assert_eq!(served(&machine, "beta")[0]["of"], "beta");
}

#[test]
fn says_of_a_tenant_whose_files_are_gone_that_they_are() {
    let machine = deployment(&["alpha", "beta"], &[]);
    for (path, _) in pair(&machine) {
        fs::remove_file(path).expect("lost");
    }
    let _ = encryption(&machine, &["repair"]).expect(3, &["alpha.sqlite3: the database is gone"]);
    assert_eq!(served(&machine, "beta")[0]["of"], "beta");
}

#[test]
fn what_has_no_copy_is_named_with_what_helps_and_status_does_not_send_there() {
    let machine = deployment(&["alpha", "beta", "gamma", "whole"], &[]);
    let data = machine.data_dir();
    let rename = |from: &str, to: &str| {
        fs::rename(data.join(from), data.join(to)).expect("a new name");
    };
    // Both files of one under a new name; a database alone under one; and a manifest that cannot be
    // read under one.
    for suffix in ["", ".nimbus-enc"] {
        rename(
            &format!("alpha.sqlite3{suffix}"),
            &format!("renamed.sqlite3{suffix}"),
        );
    }
    rename("beta.sqlite3", "alone.sqlite3");
    rename("gamma.sqlite3", "noise.sqlite3");
    fs::write(data.join("noise.sqlite3.nimbus-enc"), "scrambled").expect("a damaged one");
    let before = snapshot(&data);

    let found = status(&machine, &[], 3);
    for (name, expected, helps) in [
        (
            "renamed",
            "subject-mismatch",
            "the name alpha.sqlite3 again",
        ),
        ("alone", "manifest-missing", "its old name again"),
        ("noise", "manifest-corrupt", "from a backup"),
    ] {
        let path = format!("{name}.sqlite3");
        assert_eq!(health(&found, &path), expected);
        let files = found["files"].as_array().expect("files");
        let file = files.iter().find(|file| file["path"] == path.as_str());
        let detail = file.expect("the file")["detail"]
            .as_str()
            .expect("a detail");
        assert!(detail.contains(helps), "{detail}");
        assert!(detail.contains("no copy of it"), "{detail}");
        assert!(!detail.contains("encryption repair"), "{detail}");
    }
    let ran = encryption(&machine, &["repair"]);
    let said = ran.expect(
        3,
        &[
            "renamed.sqlite3: ",
            "the name alpha.sqlite3 again",
            "--tenant-id alpha",
            "alone.sqlite3: ",
            "noise.sqlite3: ",
            "alpha.sqlite3: the database is gone",
        ],
    );
    let said = said.out() + &said.err();
    assert!(!said.contains("set-aside"), "nothing was: {said}");
    assert!(!said.contains("No manifest is missing"), "{said}");
    assert!(!said.contains("whole"), "{said}");
    let tenants = |files: Vec<(String, u64)>| -> Vec<_> {
        let of_tenants = |(name, _): &(String, u64)| name.contains("sqlite3");
        files.into_iter().filter(of_tenants).collect()
    };
    assert_eq!(tenants(before), tenants(snapshot(&data)), "as they were");

    // What was said to help, done.
    for suffix in ["", ".nimbus-enc"] {
        rename(
            &format!("renamed.sqlite3{suffix}"),
            &format!("alpha.sqlite3{suffix}"),
        );
    }
    rename("alone.sqlite3", "beta.sqlite3");
    rename("noise.sqlite3", "gamma.sqlite3");
    fs::remove_file(data.join("noise.sqlite3.nimbus-enc")).expect("removed");
    fs::write(data.join("beta.sqlite3.nimbus-enc"), "scrambled").expect("a damaged one");
    let _ = encryption(&machine, &["repair"])
        .expect(0, &["kept as", "beta.sqlite3.nimbus-enc.set-aside-1"]);
    fs::remove_file(data.join("beta.sqlite3.nimbus-enc.set-aside-1")).expect("it was kept");
    status(&machine, &["--verify", "pages"], 0);
}

#[test]
fn a_newer_manifest_whose_key_cannot_be_had_is_not_said_not_to_open_the_database() {
    let machine = deployment(&["alpha"], &[]);
    let [_, (manifest, old)] = pair(&machine);
    let new = machine.path("new.key");
    let _ = encryption(&machine, &["keygen", "--master-key-file", as_str(&new)]).expect(0, &[]);
    let rotate = ["rotate-kek", "--path", "data/alpha.sqlite3"];
    let rotate = [&rotate[..], &["--new-master-key-file", "new.key"]].concat();
    let _ = encryption(&machine, &rotate).expect(0, &["1 rewrapped"]);
    let [_, (_, newest)] = pair(&machine);
    fs::write(&manifest, &old).expect("replayed");
    let words = ["its key cannot be had", "no configured key opens"];
    let ran = encryption(&machine, &["repair"]);
    let said = ran.expect(3, &words).out();
    assert!(!said.contains("does not open the database"), "{said}");
    assert_eq!(fs::read(&manifest).expect("it"), old, "as it was");
    // With that key it is judged.
    let mut command = machine.nimbus(&["encryption", "repair"]);
    command.env("NIMBUS_ENCRYPTION_PREVIOUS_MASTER_KEY_FILE", &new);
    let _ = super::run(command).expect(0, &["its manifest was put back"]);
    assert_eq!(fs::read(&manifest).expect("it"), newest);
}
