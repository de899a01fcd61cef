//! Settings and secrets as platforms hand them over: mounted files, empty variables, odd homes,
//! marks and spaces in texts.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use nimbus_test_support::Machine;

use super::disk::Disk;
use super::{is_root, machine, set_mode};

/// A key file of this mode, of root where the test is run by root.
fn key_in(machine: &Machine, directory: &str, mode: u32) -> PathBuf {
    let directory = machine.path(directory);
    fs::create_dir_all(&directory).expect("a directory");
    let key = directory.join("master");
    fs::write(&key, [7; 32]).expect("a key");
    set_mode(&key, mode);
    key
}

fn with_key(machine: &Machine, key: &PathBuf, environment: &[(&str, &str)]) -> Command {
    let mut command = machine.nimbus(&["start", "--port", "0"]);
    command
        .env("NIMBUS_ENCRYPTION_MASTER_KEY_FILE", key)
        .envs(environment.iter().copied());
    command
}

#[test]
fn a_key_that_others_can_read_on_an_ordinary_file_system_is_refused() {
    let machine = machine();
    for mode in [0o440, 0o444, 0o640, 0o404] {
        let key = key_in(&machine, &format!("keys-{mode:o}"), mode);
        let refused = machine.run_to_end(with_key(&machine, &key, &[]));
        refused.expect(1, &[&format!("mode {mode:04o}"), "chmod 0400"]);
    }
    // Nor is a directory believed that is named and that others can look into.
    let key = key_in(&machine, "credentials", 0o440);
    let directory = machine.path("credentials");
    set_mode(&directory, 0o755);
    let named = ("CREDENTIALS_DIRECTORY", directory.to_str().expect("UTF-8"));
    let refused = machine.run_to_end(with_key(&machine, &key, &[named]));
    refused.expect(1, &["mode 0440"]);
    assert!(!machine.data_dir().join("nimbus-control.db").exists());
}

#[test]
fn a_credential_as_systemd_loads_it_is_taken() {
    if !is_root() {
        eprintln!("SKIPPED: systemd's credentials belong to root, and so must this test");
        return;
    }
    let machine = machine();
    let key = key_in(&machine, "credentials", 0o440);
    let directory = machine.path("credentials");
    set_mode(&directory, 0o550);
    let named = ("CREDENTIALS_DIRECTORY", directory.to_str().expect("UTF-8"));
    machine
        .start_command(with_key(&machine, &key, &[named]))
        .stop();
    // An ordinary file of another place is judged as ever, and so is one that belongs to another
    // user.
    let elsewhere = key_in(&machine, "elsewhere", 0o440);
    let refused = machine.run_to_end(with_key(&machine, &elsewhere, &[named]));
    refused.expect(1, &["mode 0440"]);
    set_mode(&key, 0o444);
    let refused = machine.run_to_end(with_key(&machine, &key, &[named]));
    refused.expect(1, &["mode 0444"]);
}

#[test]
fn a_secret_as_containers_mount_it_is_taken_once_nobody_can_change_it() {
    let machine = machine();
    let Some(disk) = Disk::mount(&machine.path("secrets"), "size=1m,mode=0755") else {
        return;
    };
    // As Docker's 0444; as Kubernetes does it with `fsGroup`, behind its links.
    let key = key_in(&machine, "secrets/..data", 0o444);
    let linked = machine.path("secrets/master");
    symlink("..data/master", &linked).expect("a link");
    let writable = machine.run_to_end(with_key(&machine, &linked, &[]));
    writable.expect(1, &["mode 0444"]);
    disk.remount("ro");
    machine
        .start_command(with_key(&machine, &linked, &[]))
        .stop();
    let doctor = machine.run_to_end({
        let mut command = machine.nimbus(&["doctor"]);
        command.env("NIMBUS_ENCRYPTION_MASTER_KEY_FILE", &linked);
        command
    });
    assert!(!doctor.said.contains("has mode 444"), "{}", doctor.said);
    disk.remount("rw");
    set_mode(&key, 0o464);
    disk.remount("ro");
    let refused = machine.run_to_end(with_key(&machine, &linked, &[]));
    refused.expect(1, &["mode 0464"]);
}

#[test]
fn empty_variables_are_not_set() {
    let machine = machine();
    let mut command = machine.nimbus(&["start", "--port", "0"]);
    for name in [
        "NIMBUS_CONFIG",
        "NIMBUS_CONTROL_DATA_DIR",
        "NIMBUS_TENANT_PROVIDER",
        "NIMBUS_ENCRYPTION_KEY_PROVIDER",
        "NIMBUS_ENCRYPTION_MASTER_KEY_FILE",
        "NIMBUS_ENCRYPTION_KEY_DIR",
        "NIMBUS_ENCRYPTION_AWS_KMS_KEY_ID",
        "NIMBUS_ENCRYPTION_AWS_KMS_KEY_MAP",
        "NIMBUS_ENCRYPTION_AWS_REGION",
        "NIMBUS_ENCRYPTION_AWS_ENDPOINT_URL",
        "NIMBUS_ENCRYPTION_PREVIOUS_MASTER_KEY_FILE",
        "NIMBUS_ENCRYPTION_PREVIOUS_KEY_DIR",
        "NIMBUS_ENCRYPTION_PREVIOUS_AWS_KMS_KEY_ID",
        "NIMBUS_ENCRYPTION_RECOVERY_RECIPIENTS",
        "NIMBUS_ENCRYPTION_KEY_LEASE",
        "NIMBUS_ENCRYPTION_KEY_GRACE",
        "NIMBUS_ENCRYPTION_DEK_MAX_AGE",
        "NIMBUS_MAX_OPEN_TENANTS",
        "NIMBUS_CORS_ALLOW_ORIGINS",
        "NOTIFY_SOCKET",
        "RUST_LOG",
    ] {
        command.env(name, "");
    }
    let server = machine.start_command(command);
    assert!(!server.log().contains("WARN"), "{}", server.log());
    let mut status = machine.nimbus(&["encryption", "status"]);
    status.env("NIMBUS_ENCRYPTION_KEY_PROVIDER", "");
    machine.run_to_end(status).expect(0, &["nimbus-control.db"]);
    server.stop();
    // An empty flag is a mistake.
    machine
        .start_that_ends(&["--max-open-tenants", ""])
        .expect(2, &["--max-open-tenants"]);
    // So is an empty path in the file.
    let config = machine.path("nimbus.json");
    fs::write(&config, r#"{"persistence": {"encryption_key_dir": ""}}"#).expect("a file");
    machine
        .start_that_ends(&["--config", "nimbus.json"])
        .expect(2, &["--encryption-key-dir is ", "empty; leave it out"]);
}

#[test]
fn a_tilde_that_no_shell_replaced_is_named_and_nothing_is_made() {
    let machine = machine();
    let config = machine.path("nimbus.json");
    let tilde = "only a shell replaces `~`";
    for flag in [
        "--data-dir",
        "--control-data-dir",
        "--encryption-master-key-file",
        "--encryption-previous-master-key-file",
        "--tls-cert",
        "--config",
    ] {
        let given = format!("{flag}=~/nimbus");
        machine.start_that_ends(&[&given]).expect(2, &[flag, tilde]);
    }
    for (key, flag) in [
        ("data_dir", "--data-dir"),
        ("encryption_key_dir", "--encryption-key-dir"),
        ("encryption_aws_kms_key_map", "--encryption-aws-kms-key-map"),
    ] {
        fs::write(&config, format!(r#"{{"persistence": {{"{key}": "~/x"}}}}"#)).expect("a file");
        let mut command = machine.nimbus(&["start", "--port", "0", "--config", "nimbus.json"]);
        command.env_remove("NIMBUS_DATA_DIR");
        machine.run_to_end(command).expect(2, &[flag, "~/x", tilde]);
    }
    let mut variable = machine.nimbus(&["start", "--port", "0"]);
    variable.env("NIMBUS_DATA_DIR", "~/nimbus");
    machine
        .run_to_end(variable)
        .expect(2, &["--data-dir", tilde, "NIMBUS_DATA_DIR"]);
    let inspect = machine.nimbus(&["encryption", "inspect", "~someone/x.nimbus-enc"]);
    machine.run_to_end(inspect).expect(2, &[tilde]);
    assert!(!machine.path("~").exists());
    // A name that only begins so further down is a name.
    machine.start(&["--data-dir", "./~data"]).stop();
    assert!(machine.path("~data").exists());
}

const RECIPIENTS: [&str; 2] = [
    "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p",
    "age1lggyhqrw2nlhcxprm67z43rta597azn8gknawjehu9d9dl0jq3yqqvfafg",
];

#[test]
fn lists_have_spaces_and_a_last_comma() {
    let machine = machine();
    let [first, second] = RECIPIENTS;
    let mut command = machine.nimbus(&["start", "--port", "0"]);
    let origins = " https://a.example , https://b.example, ";
    command
        .env(
            "NIMBUS_ENCRYPTION_RECOVERY_RECIPIENTS",
            format!(" {first}, {second} ,"),
        )
        .env("NIMBUS_CORS_ALLOW_ORIGINS", origins)
        .env("NIMBUS_ENCRYPTION_PREVIOUS_MASTER_KEY_FILE", " , ");
    let server = machine.start_command(command);
    let manifest = machine.nimbus(&["encryption", "inspect", "data/nimbus-control.db"]);
    machine.run_to_end(manifest).expect(0, &[first, second]);
    for origin in ["https://a.example", "https://b.example"] {
        let token = machine.token();
        let headers = [("origin", origin)];
        let answer = server.try_request_with(&token, &headers, "GET", "/api/tenants", None);
        assert_eq!(answer.expect("an answer").0, 200, "{origin}");
    }
    server.stop();
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_text() {
    let machine = machine();
    let config = machine.path("nimbus.json");
    fs::write(
        &config,
        "\u{feff}{\"persistence\": {\"max_open_tenants\": 7}}",
    )
    .expect("a file");
    let flags = ["--config", "nimbus.json"];
    machine.start(&flags).stop();
    let token = machine.token();
    let text = fs::read_to_string(machine.token_file()).expect("the token");
    fs::write(machine.token_file(), format!("\u{feff}{text}")).expect("the token");
    let server = machine.start(&flags);
    assert_eq!(
        server.request_as(&token, "GET", "/api/tenants", None).0,
        200
    );
    drop(server);
    let wide: Vec<u8> = "\u{feff}{}"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    fs::write(&config, wide).expect("a file");
    machine
        .start_that_ends(&flags)
        .expect(2, &["nimbus.json", "UTF-16", "UTF-8"]);
}

#[test]
fn a_home_that_is_none_is_named() {
    let machine = machine();
    let with_home = |home: &str, arguments: &[&str]| {
        let mut command = machine.nimbus(arguments);
        command.env("HOME", home).env_remove("XDG_DATA_HOME");
        machine.run_to_end(command)
    };
    let start = ["start", "--port", "0"];
    with_home("home", &start).expect(2, &["home/.local/share", "HOME", "absolute"]);
    with_home("home", &["auth", "token"]).expect(1, &["home/.local/share", "HOME", "absolute"]);
    fs::write(machine.path("file"), "").expect("a file");
    let file = machine.path("file");
    let file = file.to_str().expect("UTF-8");
    let rotate = with_home(file, &["auth", "rotate-admin"]);
    rotate.expect(1, &["HOME and XDG_DATA_HOME"]);
    assert!(!machine.path("home/.local").exists());
    // An empty one is none, and the user's own is taken: `dirs` asks the user database. A relative
    // XDG_DATA_HOME is none, too.
    let mut command = machine.nimbus(&["start", "--port", "0"]);
    command.env("XDG_DATA_HOME", "relative");
    machine.start_command(command).stop();
    assert!(!machine.path("relative").exists());
    assert!(machine.token_file().exists());
}
