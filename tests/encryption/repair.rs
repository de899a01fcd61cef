use std::fs;

use super::{assert_audited, deployment, encryption, health, served, snapshot, status};

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
    let foreign = text.replace(id, "00112233445566ff");
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
    let _ = status(&machine, &["--verify", "pages"], 0);
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
fn refuses_while_the_server_runs_and_without_the_control_file() {
    let machine = deployment(&["alpha"], &[]);
    let server = machine.start(&[]);
    let _ = encryption(&machine, &["repair"]).expect(1, &["in use by process"]);
    server.stop();
    fs::remove_file(machine.data_dir().join("nimbus-control.db")).expect("it is lost");
    let _ = encryption(&machine, &["repair"]).expect(1, &["nimbus-control.db is gone"]);
}
