//! What commands say of arguments that cannot be meant, and the exit codes of it.

use std::fs;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::{as_str, deployment, encryption, run};

#[test]
fn migrate_says_what_it_is_that_it_does_not_take() {
    let machine = deployment(&[], &[]);
    let plain = machine.path("plain.db");
    fs::write(&plain, "SQLite format 3\0").expect("a file");
    let link = machine.path("link.db");
    std::os::unix::fs::symlink(&plain, &link).expect("a link");
    let pipe = machine.path("pipe.db");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("a pipe");
    let empty = machine.path("empty.db");
    fs::write(&empty, "").expect("a file");
    let folder = machine.path("folder.db");
    fs::create_dir(&folder).expect("a directory");
    for (source, words) in [
        (&link, "symbolic link"),
        (&pipe, "pipe"),
        (&folder, "a directory"),
        (&empty, "has 0 bytes"),
    ] {
        let target = machine.path("out.db");
        let migrate = ["migrate", "--provider", "sqlite", "--tenant-id", "x"];
        let paths = ["--source", as_str(source), "--target", as_str(&target)];
        let _ = encryption(&machine, &[&migrate[..], &paths].concat())
            .expect(1, &[as_str(source), words]);
        assert!(!target.exists());
    }
    let nobody = [
        "migrate",
        "--provider",
        "sqlite",
        "--source",
        as_str(&plain),
    ];
    let _ = encryption(&machine, &nobody).expect(2, &["--tenant-id"]);
}

#[test]
fn a_file_may_be_named_by_its_manifest() {
    let machine = deployment(&["alpha"], &[]);
    let manifest = machine.data_dir().join("alpha.sqlite3.nimbus-enc");
    let target = machine.path("out.sqlite3");
    let export = ["export", "--provider", "sqlite", "--tenant-id", "alpha"];
    let paths = ["--source", as_str(&manifest), "--target", as_str(&target)];
    let _ = encryption(&machine, &[&export[..], &paths].concat()).expect(0, &["PLAINTEXT"]);
    assert!(target.exists());
    let rotate = [
        "rotate-dek",
        "--tenant-id",
        "alpha",
        "--path",
        as_str(&manifest),
    ];
    let _ = encryption(&machine, &rotate).expect(0, &["has a new data key"]);
    let server = machine.start(&[]);
    let _ = encryption(&machine, &rotate).expect(0, &["has a new data key"]);
    server.stop();
}

#[test]
fn all_and_a_directory_go_together_or_it_is_wrong_usage() {
    let machine = deployment(&["alpha"], &[]);
    let data = machine.data_dir();
    let file = data.join("alpha.sqlite3");
    for verb in ["rotate-kek", "rotate-dek"] {
        let _ = encryption(&machine, &[verb, "--path", as_str(&data)]).expect(2, &["--all"]);
        let one = [verb, "--all", "--path", as_str(&file)];
        let _ = encryption(&machine, &one).expect(2, &["no directory", "--all"]);
    }
}

#[test]
fn a_level_with_a_slip_of_the_pen_is_not_taken_for_a_part_of_the_program() {
    let machine = deployment(&[], &[]);
    for (said, refused) in [
        ("debg", true),
        ("info,nimbus", true),
        ("nimbus=debg", true),
        ("info,nimbus::audit=debug", false),
        ("OFF", false),
    ] {
        let mut command = machine.nimbus(&["encryption", "status"]);
        command.env("RUST_LOG", said);
        let ran = run(command);
        let _ = ran.expect(0, &[]);
        let told = ran.err().contains("cannot be understood and is ignored");
        assert_eq!(told, refused, "{said}: {}", ran.err());
    }
}

#[test]
fn a_directory_that_is_not_there_and_a_log_that_is_none_are_named() {
    let machine = deployment(&[], &[]);
    let nowhere = machine.path("nowhere");
    let _ = encryption(&machine, &["repair", "--data-dir", as_str(&nowhere)])
        .expect(1, &[as_str(&nowhere), "does not exist", "--data-dir"]);
    let log = machine.data_dir().join("nimbus-audit.log");
    fs::remove_file(&log).expect("the log");
    fs::create_dir(&log).expect("a directory in its place");
    for arguments in [&["audit"][..], &["audit", "--verify"]] {
        let ran = encryption(&machine, arguments);
        let said = ran
            .expect(
                1,
                &["the audit log in", "nimbus-audit.log is no regular file"],
            )
            .err();
        assert!(!said.contains("cannot write the answer"), "{said}");
    }
}
