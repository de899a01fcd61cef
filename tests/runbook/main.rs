//! `docs/runbook.md`, followed to the letter: each section's commands are run on a deployment that
//! was damaged as its title says.

#![expect(
    clippy::disallowed_methods,
    reason = "a test reads and damages files by hand"
)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use nimbus_test_support::{Disk, Machine, Moto};
use serde_json::{Value, json};

const PAGE: &str = include_str!("../../docs/runbook.md");

/// The commands of one section; the title is that of the page.
fn commands(title: &str) -> String {
    let section = PAGE
        .split("\n## ")
        .find(|section| section.lines().next() == Some(title))
        .unwrap_or_else(|| panic!("no section {title:?}"));
    let blocks: Vec<&str> = section
        .split("```sh\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(!blocks.is_empty(), "{title} has commands");
    blocks.concat()
}

/// What the page says must end well after each procedure.
fn proof() -> String {
    let introduction = PAGE.split("\n## ").next().expect("an introduction");
    let block = introduction
        .split("```sh\n")
        .nth(2)
        .expect("its second block");
    block.split("```").next().expect("its end").to_owned()
}

/// A stopped deployment with a tenant `demo`, a backup, a copy of its key and a recovery identity.
struct Deployment {
    machine: Machine,
    settings: Vec<(&'static str, String)>,
    documents: Value,
    /// Whether the section ends with a start, which makes what the proof looks at.
    starts_first: bool,
}

impl Deployment {
    fn new(settings: Vec<(&'static str, String)>) -> Self {
        let machine = Machine::new(env!("CARGO_BIN_EXE_nimbus"));
        fs::create_dir(machine.path("bin")).expect("a directory of commands");
        symlink(env!("CARGO_BIN_EXE_nimbus"), machine.path("bin/nimbus")).expect("nimbus in it");
        fs::create_dir(machine.path("safe")).expect("a safe");
        let identity = machine.path("safe/recovery.txt");
        let made = Command::new("age-keygen").arg("-o").arg(&identity).output();
        assert!(made.expect("age-keygen").status.success());
        let shown = Command::new("age-keygen").arg("-y").arg(&identity).output();
        let recipient = String::from_utf8(shown.expect("age-keygen").stdout).expect("a recipient");

        let mut deployment = Self {
            machine,
            settings,
            documents: Value::Null,
            starts_first: false,
        };
        let mut start = deployment.nimbus(&["start", "--port", "0"]);
        start.args(["--encryption-recovery-recipient", recipient.trim()]);
        let server = deployment.machine.start_command(start);
        server.create("/api/tenants", &json!({"id": "demo"}));
        for n in 0..3 {
            server.insert("demo", "notes", &json!({"n": n}));
        }
        deployment.documents = server.get("/api/tenants/demo/documents/notes");
        server.stop();
        let _ = deployment.run("mkdir backup && cp -a data backup/data");
        if deployment.machine.master_key().exists() {
            let _ = fs::copy(
                deployment.machine.master_key(),
                deployment.machine.path("safe/master.key"),
            )
            .expect("a copy of the key");
        }
        deployment
    }

    fn nimbus(&self, arguments: &[&str]) -> Command {
        let mut command = self.machine.nimbus(arguments);
        command
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .envs(self.settings.iter().cloned());
        command
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.machine.path(name)
    }

    /// Runs commands as an operator's shell does, and gives the settings that they left in its
    /// environment.
    fn run(&self, commands: &str) -> Vec<(String, String)> {
        let path = std::env::var("PATH").expect("a PATH");
        // The environment is that of the binary's own fixture.
        let fixture = self.nimbus(&[]);
        let mut shell = Command::new("bash");
        shell
            .args(["-euc", &format!("{commands}\nenv")])
            .current_dir(self.machine.root())
            .env_clear();
        for (name, value) in fixture.get_envs() {
            if let Some(value) = value {
                shell.env(name, value);
            }
        }
        shell.env("PATH", format!("{}:{path}", self.path("bin").display()));
        let ran = shell.output().expect("bash");
        let said = String::from_utf8_lossy(&ran.stdout).into_owned();
        assert!(
            ran.status.success(),
            "{commands}\n{said}\n{}",
            String::from_utf8_lossy(&ran.stderr)
        );
        said.lines()
            .filter_map(|line| line.split_once('='))
            .filter(|(name, _)| name.starts_with("NIMBUS_"))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    /// Follows a section, and shows that everything is there and whole.
    fn follow(self, title: &str) {
        if self.starts_first {
            let _ = self.run(&commands(title));
            let _ = self.run("! nimbus encryption status && ! nimbus doctor");
            self.machine
                .start_command(self.nimbus(&["start", "--port", "0"]))
                .stop();
        }
        let commands = match self.starts_first {
            true => String::new(),
            false => commands(title),
        };
        let settings = self.run(&format!("{commands}{}", proof()));
        let mut start = self.nimbus(&["start", "--port", "0"]);
        start.envs(settings.iter().map(|(name, value)| (name, value)));
        let server = self.machine.start_command(start);
        assert_eq!(
            server.get("/api/tenants/demo/documents/notes"),
            self.documents,
            "{title}"
        );
        server.insert("demo", "notes", &json!({"n": "after"}));
        server.stop();
    }
}

fn remove(path: &Path) {
    fs::remove_file(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

#[test]
fn the_master_key_is_lost() {
    let deployment = Deployment::new(vec![]);
    remove(&deployment.machine.master_key());
    let _ = deployment.run(&commands_of_the_introduction());
    deployment.follow("The master key is lost, and there is a copy");

    let deployment = Deployment::new(vec![]);
    remove(&deployment.machine.master_key());
    remove(&deployment.path("safe/master.key"));
    deployment.follow("The master key is lost, and there is a recovery identity");
}

/// The first look, which must not fail whatever is wrong.
fn commands_of_the_introduction() -> String {
    let introduction = PAGE.split("\n## ").next().expect("an introduction");
    let block = introduction
        .split("```sh\n")
        .nth(1)
        .expect("its first block");
    block.split("```").next().expect("its end").to_owned()
}

#[test]
fn the_master_key_was_seen_by_someone() {
    Deployment::new(vec![]).follow("The master key was seen by someone");
}

#[test]
fn the_kms_key_is_lost() {
    let moto = Moto::start();
    let (lost, new) = (moto.create_key(), moto.create_key());
    let alias = json!({"AliasName": "alias/nimbus-new", "TargetKeyId": new});
    moto.kms("us-east-1", "CreateAlias", &alias);
    let deployment = Deployment::new(vec![
        ("NIMBUS_ENCRYPTION_KEY_PROVIDER", "aws-kms".to_owned()),
        ("NIMBUS_ENCRYPTION_AWS_KMS_KEY_ID", lost),
        ("NIMBUS_ENCRYPTION_AWS_REGION", "us-east-1".to_owned()),
        ("NIMBUS_ENCRYPTION_AWS_ENDPOINT_URL", moto.url().to_owned()),
    ]);
    // The settings name the new key alone: for the wraps of the old one that is as if it were gone.
    deployment.follow("The KMS key is lost");
}

#[test]
fn a_manifest_is_lost_damaged_or_another_files() {
    for damage in [
        "rm data/demo.sqlite3.nimbus-enc",
        "echo scrambled > data/demo.sqlite3.nimbus-enc",
    ] {
        let deployment = Deployment::new(vec![]);
        let _ = deployment.run(damage);
        deployment.follow("A manifest is lost, damaged, or another file's");
    }
}

#[test]
fn the_control_file_is_lost() {
    for lost in ["nimbus-control.db", "nimbus-control.db.nimbus-enc"] {
        let deployment = Deployment::new(vec![]);
        remove(&deployment.path("data").join(lost));
        deployment.follow("The control file is lost, or its manifest");

        let mut deployment = Deployment::new(vec![]);
        remove(&deployment.path("data").join(lost));
        deployment.starts_first = true;
        deployment.follow("The control file is lost, and there is no backup of it");
    }
}

#[test]
fn a_tenants_database_is_lost_or_damaged() {
    for damage in [
        "rm data/demo.sqlite3",
        "truncate -s 0 data/demo.sqlite3",
        "cp backup/data/nimbus-control.db data/demo.sqlite3",
    ] {
        let deployment = Deployment::new(vec![]);
        let _ = deployment.run(damage);
        deployment.follow("A tenant's database is lost or damaged");
    }
}

#[test]
fn the_whole_host_is_lost() {
    let deployment = Deployment::new(vec![]);
    let _ = deployment.run("rm -r data home && mkdir home");
    deployment.follow("The whole host is lost");
}

#[test]
fn the_whole_host_is_lost_and_there_is_a_repository() {
    let deployment = Deployment::new(vec![]);
    let _ =
        deployment.run("nimbus backup create --to repo && rm -r data backup home && mkdir home");
    deployment.follow("The whole host is lost, and there is a repository");
}

#[test]
fn a_tenant_was_deleted_by_mistake() {
    let deployment = Deployment::new(vec![]);
    let _ = deployment.run("nimbus backup create --to repo");
    let start = || {
        deployment
            .machine
            .start_command(deployment.nimbus(&["start", "--port", "0"]))
    };
    let server = start();
    let deleted = || server.request("DELETE", "/api/tenants/demo", None).0;
    assert_eq!(deleted(), 204);
    // While the server runs.
    let title = "A tenant was deleted by mistake";
    let _ = deployment.run(&commands(title));
    for tenant in ["demo", "demo-as-it-was"] {
        let documents = server.get(&format!("/api/tenants/{tenant}/documents/notes"));
        assert_eq!(documents, deployment.documents, "{tenant}");
        let deleted = server.request("DELETE", &format!("/api/tenants/{tenant}"), None);
        assert_eq!(deleted.0, 204);
    }
    server.stop();
    // And while it is stopped.
    deployment.follow("A tenant was deleted by mistake");
}

#[test]
fn a_key_that_was_taken_back_and_a_tenant_that_is_stopped_by_hand() {
    // What the lease does by itself is tested beside a KMS that says no; the commands here are
    // those for the operator.
    let deployment = Deployment::new(vec![]);
    deployment.follow("A KMS key was disabled, or access to it denied");
}

#[test]
fn the_audit_log_is_gone_or_not_whole() {
    for damage in [
        "rm data/nimbus-audit.log",
        "sed -i 2d data/nimbus-audit.log",
        "truncate -s -40 data/nimbus-audit.log",
    ] {
        let deployment = Deployment::new(vec![]);
        let _ = deployment.run(&format!(
            "{damage}; ! nimbus encryption audit --verify && ! nimbus doctor"
        ));
        deployment.follow("The audit log is gone, or not whole");
    }
}

#[test]
fn a_server_that_does_not_answer() {
    // What commands say of one that is stopped is tested in tests/server/commands.rs.
    let deployment = Deployment::new(vec![]);
    deployment.follow("A command says that the server does not answer");
}

#[test]
fn a_part_of_the_server_ended_by_a_fault() {
    // The fault itself, and what `/ready` says of it, is tested in tests/server/supervision.rs.
    let deployment = Deployment::new(vec![]);
    deployment.follow("`/ready` says that something of the server ended by a fault");
}

#[test]
fn every_section_is_followed() {
    let titles = PAGE
        .split("\n## ")
        .skip(1)
        .filter_map(|section| section.lines().next());
    let tests = include_str!("main.rs");
    for title in titles {
        // Followed, or its commands run step by step.
        let is_run = ["follow", "commands"]
            .iter()
            .any(|run| tests.contains(&format!("{run}(\"{title}\")")));
        assert!(is_run, "{title}");
    }
}

#[test]
fn commits_are_not_shipped_because_the_repository_is_full() {
    let deployment = Deployment::new(vec![]);
    let Some(disk) = Disk::mount(&deployment.path("repo"), "size=3m") else {
        return;
    };
    let mut start = deployment.nimbus(&["start", "--port", "0", "--backup-to", "repo"]);
    let _ = start.env("NIMBUS_BACKUP_INTERVAL", "1s");
    let server = deployment.machine.start_command(start);
    let standing = || server.get("/ready")["backup"].clone();
    let text = "x".repeat(500_000);
    for n in 0..600 {
        if n < 8 {
            let _ = server.insert("demo", "large", &json!({"n": n, "text": text}));
        }
        if standing()["error"].to_string().contains("it is full") {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(
        standing()["error"]
            .to_string()
            .contains("nimbus backup prune"),
        "{}",
        standing()
    );
    let _ = deployment.run(&commands("Commits are not shipped"));
    disk.remount("size=64m");
    for _try in 0..1200 {
        if standing()["ok"] == true {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(standing()["ok"], true, "{}", standing());
    server.stop();
    let _ = deployment.run("nimbus backup verify --from repo");
}
