//! What keeps `nimbus start` from starting: one clear error, the right exit code, nothing lost and
//! nothing made.

use std::fs;
use std::net::TcpListener;
use std::process::Command;

use serde_json::json;

use super::{demo, is_root, machine, set_mode, snapshot, tenant_files};

#[test]
fn a_second_server_on_the_same_directory_is_refused_and_the_first_goes_on() {
    let (machine, server) = demo();
    let id = server.insert("demo", "places", &json!({"n": 1}));
    let refused = machine.start_that_ends(&[]);
    let pid = format!("process {}", server.pid());
    refused.expect(1, &["is in use", &pid, "another data directory"]);
    // One control file is not for two servers either.
    let other = machine.path("other-data");
    let control = machine.data_dir();
    let control = ["--control-data-dir", control.to_str().expect("UTF-8")];
    let other = ["--data-dir", other.to_str().expect("UTF-8")];
    let refused = machine.start_that_ends(&[other, control].concat());
    refused.expect(1, &["nimbus-control.db is in use"]);
    assert_eq!(
        server.get(&format!("/api/tenants/demo/documents/places/{id}"))["document"]["n"],
        1
    );
    server.stop();
    machine.start(&[]).stop();
}

#[test]
fn a_port_in_use_is_refused_by_name_and_the_data_stays_as_it_is() {
    let (machine, server) = demo();
    server.stop();
    let before = tenant_files(&machine);
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address");
    let port = address.port().to_string();
    let refused = machine.run_to_end(machine.nimbus(&["start", "--port", &port]));
    refused.expect(1, &[&format!("cannot listen on {address}"), "--port"]);
    assert_eq!(tenant_files(&machine), before);
    // The directory is free again.
    machine.start(&[]).stop();
}

#[test]
fn a_port_in_use_leaves_nothing_behind_on_a_new_machine() {
    let machine = machine();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address");
    let port = address.port().to_string();
    let refused = machine.run_to_end(machine.nimbus(&["start", "--port", &port]));
    refused.expect(1, &[&format!("cannot listen on {address}"), "--port"]);
    assert!(!machine.data_dir().exists());
    assert!(!machine.master_key().exists());
    assert!(!machine.token_file().exists());
}

#[test]
fn the_same_server_started_twice_is_told_whose_the_directory_is() {
    let (machine, server) = demo();
    let (_, port) = server.address().rsplit_once(':').expect("a port");
    let refused = machine.run_to_end(machine.nimbus(&["start", "--port", port]));
    let pid = format!("process {}", server.pid());
    refused.expect(1, &["is in use", &pid]);
    server.stop();
}

#[test]
fn an_address_that_others_reach_needs_leave_and_a_rotated_token() {
    let machine = machine();
    machine
        .start_that_ends(&["--host", "0.0.0.0"])
        .expect(1, &["--allow-network"]);
    assert!(
        !machine.data_dir().exists(),
        "refused before anything is made"
    );
    let network = &["--host", "0.0.0.0", "--allow-network"];
    machine
        .start_that_ends(network)
        .expect(1, &["nimbus auth rotate-admin"]);
    assert!(
        !machine.data_dir().exists(),
        "refused before anything is made"
    );
    let rotate = machine.nimbus(&["auth", "rotate-admin"]);
    machine.run_to_end(rotate).expect(0, &["replaced"]);
    let server = machine.start(network);
    assert!(
        server.address().starts_with("0.0.0.0:"),
        "{}",
        server.address()
    );
    assert_eq!(server.get("/health"), json!({"ok": true}));
    server.stop();
    machine
        .start_that_ends(&["--host", "0.0.0.0"])
        .expect(1, &["--allow-network"]);
}

#[test]
fn flags_that_are_wrong_or_belong_to_another_provider_are_wrong_usage() {
    let machine = machine();
    for (arguments, words) in [
        (&["--no-such-flag"][..], &["--no-such-flag"][..]),
        (
            &["--encryption-key-provider", "rot13"],
            &["rot13", "master-key-file"],
        ),
        (&["--tenant-provider", "dbase"], &["dbase"]),
        (&["--host", "localhost"], &["--host"]),
        (&["--max-open-tenants", "0"], &["--max-open-tenants"]),
        (&["--log-format", "xml"], &["xml"]),
        (
            &[
                "--encryption-key-provider",
                "none",
                "--encryption-master-key-file",
                "k",
            ],
            &["--encryption-master-key-file", "none"],
        ),
        (
            &[
                "--encryption-key-provider",
                "master-key-file",
                "--encryption-key-dir",
                "k",
            ],
            &["--encryption-key-dir", "key-dir"],
        ),
        (
            &["--encryption-aws-kms-key-id", "alias/x"],
            &["--encryption-aws-kms-key-id", "aws-kms"],
        ),
        (
            &["--encryption-aws-region", "eu-west-1"],
            &["--encryption-aws-region", "aws-kms"],
        ),
        (
            &[
                "--encryption-key-provider",
                "none",
                "--encryption-previous-master-key-file",
                "k",
            ],
            &["--encryption-previous"],
        ),
        (
            &["--encryption-key-provider", "aws-kms"],
            &["--encryption-aws-kms-key-id"],
        ),
        (
            &["--encryption-key-provider", "key-dir"],
            &["--encryption-key-dir"],
        ),
        (
            &["--encryption-recovery-recipient", "age1nonsense"],
            &["age1nonsense", "age-keygen"],
        ),
    ] {
        machine.start_that_ends(arguments).expect(2, words);
        assert!(!machine.data_dir().exists(), "{arguments:?} made something");
    }
    machine
        .run_to_end(machine.nimbus(&["strat"]))
        .expect(2, &["start"]);
    let mut command = machine.nimbus(&["start", "--port", "0"]);
    command.env("NIMBUS_ENCRYPTION_KEY_PROVIDER", "rot13");
    machine.run_to_end(command).expect(2, &["rot13"]);
    assert!(!machine.data_dir().exists());
}

#[test]
fn a_configuration_file_that_is_not_right_is_wrong_usage() {
    let machine = machine();
    let path = machine.path("nimbus.json");
    let name = path.to_str().expect("UTF-8").to_owned();
    let start = || machine.start_that_ends(&["--config", &name]);
    start().expect(2, &["nimbus.json", "No such file"]);
    for (text, word) in [
        ("{", "in the middle of an object"),
        ("[]", "nimbus.json"),
        (r#"{"persistence":["x"]}"#, "nimbus.json"),
        (r#"{"persistance":{}}"#, "persistance"),
        (r#"{"persistence":{"data_dri":"x"}}"#, "data_dri"),
        (
            r#"{"persistence":{"max_open_tenants":"many"}}"#,
            "max_open_tenants",
        ),
        (
            r#"{"persistence":{"encryption_key_provider":"rot13"}}"#,
            "rot13",
        ),
        (
            r#"{"persistence":{"encryption_key_provider":"none","encryption_key_dir":"k"}}"#,
            "--encryption-key-dir",
        ),
        (
            r#"{"persistence":{"data_dir":"a","data_dir":"b"}}"#,
            "data_dir",
        ),
    ] {
        fs::write(&path, text).expect("a file");
        start().expect(2, &[word]);
        assert!(!machine.data_dir().exists(), "{text}");
    }
    fs::write(&path, r#"{"persistence":{"max_open_tenants":7}}"#).expect("a file");
    machine.start(&["--config", &name]).stop();
}

#[test]
fn a_data_directory_that_cannot_be_written_is_refused_by_name() {
    let machine = machine();
    // A file stands in its place, or in that of a directory above it.
    fs::write(machine.data_dir(), "a file").expect("a file");
    machine
        .start_that_ends(&[])
        .expect(1, &["data", "--data-dir"]);
    let below = machine.data_dir().join("below");
    machine
        .start_that_ends(&["--data-dir", below.to_str().expect("UTF-8")])
        .expect(1, &["below", "--data-dir"]);
    assert_eq!(fs::read(machine.data_dir()).expect("the file"), b"a file");
    // What is not there cannot be made.
    machine
        .start_that_ends(&["--data-dir", "/proc/nimbus"])
        .expect(1, &["/proc/nimbus", "--data-dir"]);
}

#[test]
fn a_low_soft_limit_on_open_files_is_raised_for_the_tenants_that_may_be_open() {
    let machine = machine();
    let command = machine.nimbus(&["start", "--port", "0"]);
    let mut limited = Command::new("sh");
    limited
        .args(["-c", r#"ulimit -Sn 64 && exec "$0" "$@""#])
        .arg(command.get_program())
        .args(command.get_args())
        .env_clear()
        .envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .current_dir(machine.root());
    let server = machine.start_command(limited);
    for n in 0..40 {
        let tenant = format!("t{n}");
        server.create("/api/tenants", &json!({"id": tenant}));
        server.insert(&tenant, "things", &json!({"n": n}));
    }
    server.stop();
}

#[test]
fn a_data_directory_of_somebody_else_is_refused_by_name() {
    if is_root() {
        // Modes do not bind root: `storage` has the same on a file system that is mounted
        // read-only.
        return;
    }
    let machine = machine();
    fs::create_dir(machine.data_dir()).expect("a directory");
    set_mode(&machine.data_dir(), 0o500);
    let refused = machine.start_that_ends(&[]);
    refused.expect(1, &["nimbus.lock", "Permission denied", "--data-dir"]);
    assert_eq!(snapshot(&machine), []);
}

#[test]
fn a_server_may_write_no_core_file_and_logs_how_it_is_hardened() {
    let machine = machine();
    let server = machine.start(&[]);
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.pid()));
    let limits = limits.expect("a Linux with /proc");
    let core = limits.lines().find(|line| line.starts_with("Max core"));
    let core = core.expect("a limit on core files").split_whitespace();
    assert_eq!(core.skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
    let log = server.log();
    for word in [
        "process hardened",
        "not_dumpable: true",
        "memory_lock_limit",
    ] {
        assert!(log.contains(word), "no {word} in: {log}");
    }
}
