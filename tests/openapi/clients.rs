//! Clients that generators make of `/openapi.json`: each is generated without a warning, compiles,
//! and runs a session against a real server.
//!
//! What the sessions compare is in `typescript/session.ts` and `python/session.py`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use nimbus_test_support::Machine;

/// Where `scripts/test` installed what `variable` names.
fn installed(variable: &str) -> PathBuf {
    std::env::var_os(variable)
        .unwrap_or_else(|| panic!("{variable} is not set: run scripts/test"))
        .into()
}

fn sources(language: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/openapi")
        .join(language)
}

/// Runs a program to its end, which must be a good one.
fn run(command: &mut Command) -> String {
    let ended = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&ended.stdout),
        String::from_utf8_lossy(&ended.stderr)
    );
    assert!(ended.status.success(), "{command:?}\n{said}");
    said
}

/// Has `session` go through against a server on a machine of its own, whose document it is made of.
fn hold(machine: &Machine, session: impl FnOnce(&Path) -> Command) {
    let server = machine.start(&[]);
    let document = machine.path("openapi.json");
    fs::write(&document, server.get("/openapi.json").to_string()).expect("a file");
    let mut session = session(&document);
    session
        .arg(format!("http://{}", server.address()))
        .env("NIMBUS_TEST_TOKEN", machine.token())
        .env("NO_PROXY", "127.0.0.1");
    let said = run(&mut session);
    assert!(said.contains("the session went through"), "{said}");
    assert!(!server.log().contains("panicked"), "{}", server.log());
    server.stop();
}

#[test]
fn a_client_of_openapi_typescript_compiles_strictly_and_runs_a_session() {
    let modules = installed("NIMBUS_TEST_NODE").join("node_modules");
    let machine = Machine::new(env!("CARGO_BIN_EXE_nimbus"));
    let package = machine.path("typescript");
    fs::create_dir(&package).expect("a directory");
    symlink(&modules, package.join("node_modules")).expect("a link");
    for file in ["package.json", "tsconfig.json", "session.ts"] {
        let _bytes = fs::copy(sources("typescript").join(file), package.join(file)).expect(file);
    }
    hold(&machine, |document| {
        let tool = |name: &str| {
            let mut tool = Command::new(modules.join(".bin").join(name));
            tool.current_dir(&package);
            tool
        };
        let _said = run(tool("openapi-typescript")
            .arg(document)
            .args(["--output", "api.d.ts"]));
        let _said = run(tool("tsc").args(["--project", "tsconfig.json"]));
        let mut session = Command::new("node");
        session.arg(package.join("out/session.js"));
        session
    });
}

#[test]
fn a_client_of_openapi_python_client_has_every_operation_and_runs_a_session() {
    let bin = installed("NIMBUS_TEST_VENV").join("bin");
    let machine = Machine::new(env!("CARGO_BIN_EXE_nimbus"));
    let packages = machine.path("python");
    fs::create_dir(&packages).expect("a directory");
    hold(&machine, |document| {
        let mut generate = Command::new(bin.join("openapi-python-client"));
        let _said = run(generate
            .args(["generate", "--fail-on-warning", "--meta", "none", "--path"])
            .arg(document)
            .arg("--config")
            .arg(sources("python").join("generator.yaml"))
            .arg("--output-path")
            .arg(packages.join("nimbus_client")));
        let mut session = Command::new(bin.join("python"));
        session
            .arg(sources("python").join("session.py"))
            .env("PYTHONPATH", &packages)
            .env("PYTHONDONTWRITEBYTECODE", "1");
        session
    });
}
