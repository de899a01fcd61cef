use std::fs;

use super::{deployment, encryption, health, served, snapshot, status};

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
            "event=\"repair\"",
        ],
    );
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
