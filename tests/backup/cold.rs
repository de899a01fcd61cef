//! Copies without a repository, as docs/backup.md says.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use nimbus_test_support::{Machine, Server};
use serde_json::json;

use super::{Ran, add, filled, machine, notes, run, start_on};

const PAGE: &str = include_str!("../../docs/backup.md");

/// The commands of a section below `## Cold copies`.
fn commands(title: &str) -> &'static str {
    let section = PAGE
        .split("\n### ")
        .find(|section| section.starts_with(title));
    let section = section.unwrap_or_else(|| panic!("no section {title:?}"));
    let block = section.split("```sh\n").nth(1).expect("its commands");
    block.split("```").next().expect("their end")
}

/// Runs them as an operator's shell does, where the data directory is `data`.
fn shell(machine: &Machine, commands: &str) -> Ran {
    let bin = machine.path("bin");
    if !bin.exists() {
        fs::create_dir(&bin).expect("a directory of commands");
        symlink(env!("CARGO_BIN_EXE_nimbus"), bin.join("nimbus")).expect("nimbus in it");
    }
    let path = std::env::var("PATH").expect("a PATH");
    let mut shell = Command::new("bash");
    let _ = shell
        .args(["-euxc", commands])
        .current_dir(machine.root())
        .env_clear();
    for (name, value) in machine.nimbus(&[]).get_envs() {
        if let Some(value) = value {
            let _ = shell.env(name, value);
        }
    }
    let _ = shell.env("PATH", format!("{}:{path}", bin.display()));
    run(shell)
}

#[test]
fn an_archive_of_a_stopped_deployment_restores_and_proves() {
    for is_killed in [false, true] {
        let machine = machine();
        let server = filled(&machine, &["a", "demo"]);
        let before = notes(&server, "demo");
        match is_killed {
            // Its WAL holds what was acknowledged.
            true => server.kill(),
            false => server.stop(),
        }
        let _ = shell(&machine, commands("A stopped deployment")).expect(0, &["ok"]);
        // Nothing of it is in the clear, and no key is in it.
        let archive = fs::read(machine.path("cold.tar")).expect("the archive");
        let key = fs::read(machine.master_key()).expect("the key");
        for secret in [super::CANARY.as_bytes(), &key] {
            let mut windows = archive.windows(secret.len());
            assert!(!windows.any(|window| window == secret));
        }
        let restored = start_on(&machine, "elsewhere/data", &[]);
        assert_eq!(notes(&restored, "demo"), before);
        add(&restored, "demo", 1);
        restored.stop();
    }
}

#[test]
fn a_tenant_in_plaintext_is_copied_by_sqlite3_while_it_is_written() {
    let machine = machine();
    let plain = ["--encryption-key-provider", "none"];
    let server = machine.start(&plain);
    drop(server.create("/api/tenants", &json!({"id": "demo"})));
    add(&server, "demo", 20);
    let before = notes(&server, "demo").len();
    let written = |server: &Server| {
        for _ in 0..30 {
            add(server, "demo", 1);
        }
    };
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| written(&server));
        let copied = shell(&machine, commands("A deployment in plaintext"));
        let _ = copied.expect(0, &["ok"]);
        writer.join().expect("the writer");
    });
    let after = notes(&server, "demo").len();
    server.stop();
    let restored = start_on(&machine, "elsewhere", &plain);
    let found = notes(&restored, "demo").len();
    assert!(
        (before..=after).contains(&found),
        "{before} {found} {after}"
    );
    add(&restored, "demo", 1);
    restored.stop();
}
