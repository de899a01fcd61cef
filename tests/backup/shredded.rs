use std::fs;
use std::path::PathBuf;

use nimbus_test_support::{Machine, Server, files_under};
use serde_json::json;

use super::{Ran, add, as_str, backup, filled, machine, notes, restore, run, start_on};

/// Each step of a removal, and of a shred before it.
const STEPS: [&str; 6] = [
    "shred::here=return",
    "removal::announced=return",
    "removal::recorded=return",
    "removal::catalogues-removed=return",
    "removal::objects-removed=return",
    // Once before anything, once at the end.
    "removal::announced=1*off->return",
];

fn shred(machine: &Machine, tenant: &str, more: &[&str], failpoints: &str) -> Ran {
    let shred = ["encryption", "shred", "--yes", "--tenant-id", tenant];
    let mut command = machine.nimbus(&[&shred[..], more].concat());
    let _ = command.env("FAILPOINTS", failpoints);
    run(command)
}

/// What the repository holds of files that belong to no tenant of `kept`, by the name of their
/// manifests' objects.
fn objects(machine: &Machine, kind: &str) -> Vec<PathBuf> {
    files_under(&machine.path("repo").join(kind))
}

/// The id of a tenant's file.
pub(super) fn file_id(machine: &Machine, tenant: &str) -> String {
    let path = machine
        .data_dir()
        .join(format!("{tenant}.sqlite3.nimbus-enc"));
    let manifest = fs::read_to_string(path).expect("a manifest");
    let line = manifest.lines().find(|line| line.starts_with("file-id"));
    let id = line.and_then(|line| line.split([' ', ':']).next_back());
    id.expect("its id").to_owned()
}

fn names(machine: &Machine, file_id: &str) -> usize {
    let all = ["keys", "base"].map(|kind| objects(machine, kind)).concat();
    let of = all.iter().filter(|path| as_str(path).contains(file_id));
    of.count()
}

#[test]
fn a_tenant_that_is_shredded_goes_from_the_repository_and_every_other_stays() {
    let machine = machine();
    let server = filled(&machine, &["gone", "stays"]);
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    add(&server, "gone", 2);
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    let (gone, stays) = (file_id(&machine, "gone"), file_id(&machine, "stays"));
    let held = notes(&server, "stays");
    assert!(names(&machine, &gone) >= 3 && names(&machine, &stays) >= 2);
    // Without the repository it is said what is still there.
    let _ = shred(&machine, "gone", &[], "").expect(
        0,
        &["is shredded", "Backup repositories still hold", "--from"],
    );
    assert!(names(&machine, &gone) >= 3);
    let _ = shred(&machine, "gone", &["--from", "repo"], "").expect(
        0,
        &[
            "There is nothing of tenant gone here",
            "its manifests and pages are removed",
            "snapshots 1 to 2",
            "`nimbus backup prune`",
        ],
    );
    assert_eq!(names(&machine, &gone), 0);
    // Nothing to be done is no error.
    let _ = shred(&machine, "gone", &["--from", "repo"], "").expect(0, &[]);
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &["1 tenant"]);
    server.stop();
    let _ = backup(&machine, &["verify", "--from", "repo", "--deep"]).expect(
        0,
        &[
            "shredded, and opens no more: db:sqlite:tenant:gone",
            "all authentic",
        ],
    );
    let _ = restore(&machine, "new", &["--snapshot", "2"])
        .expect(3, &["NOT restored or not proven: gone"]);
    let _ = restore(
        &machine,
        as_str(&machine.data_dir()),
        &["--tenant-id", "gone", "--as-it-was"],
    )
    .expect(1, &["no manifest of tenant gone"]);
    let restored = start_on(&machine, "new", &[]);
    assert_eq!(held, notes(&restored, "stays"));
    restored.stop();
    let log = fs::read_to_string(machine.data_dir().join("nimbus-audit.log")).expect("the log");
    assert!(
        log.contains(r#""event":"shred","outcome":"done""#) && log.contains("in the repository")
    );
}

#[test]
fn a_shred_that_is_killed_goes_on_and_what_is_left_is_told_from_damage() {
    for point in STEPS {
        let machine = machine();
        let server = filled(&machine, &["gone", "stays"]);
        let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
        server.stop();
        let gone = file_id(&machine, "gone");
        let killed = shred(&machine, "gone", &["--from", "repo"], point);
        if point.contains("off") {
            // There is one removal alone.
            let _ = killed.expect(0, &[]);
        } else {
            killed.expect_killed();
        }
        let _ = backup(&machine, &["verify", "--from", "repo"]).expect(0, &["all authentic"]);
        // A snapshot that is made before anybody goes on.
        let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &["1 tenant"]);
        let _ = shred(&machine, "gone", &["--from", "repo"], "").expect(0, &[]);
        assert_eq!(names(&machine, &gone), 0, "{point}");
        let _ =
            backup(&machine, &["verify", "--from", "repo", "--deep"]).expect(0, &["all authentic"]);
    }
}

#[test]
fn a_removal_that_nobody_sealed_and_one_that_is_gone_are_told() {
    let machine = machine();
    let server = filled(&machine, &["gone", "stays"]);
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    server.stop();
    let _ = shred(&machine, "gone", &["--from", "repo"], "").expect(0, &[]);
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    let removal = machine.path("repo/snapshots/0000000002");
    let text = fs::read_to_string(&removal).expect("the removal");
    assert!(text.starts_with("nimbus-removal/1\n"), "{text}");
    let stays = file_id(&machine, "stays");
    let more = text.replacen("\"shredded\":[", &format!("\"shredded\":[\"{stays}\","), 1);
    fs::write(&removal, more).expect("a removal of more");
    let verify = ["verify", "--from", "repo"];
    let _ = backup(&machine, &verify).expect(1, &["snapshots/0000000002", "its MAC is wrong"]);
    fs::remove_file(&removal).expect("the removal goes");
    let _ = backup(&machine, &verify).expect(1, &["snapshots/0000000002 is missing"]);
    fs::write(&removal, text).expect("the removal again");
    let _ = backup(&machine, &verify).expect(0, &["all authentic"]);
}

#[test]
fn a_running_server_shreds_in_repositories_that_it_is_named() {
    let machine = machine();
    let server = filled(&machine, &["gone", "stays"]);
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    let gone = file_id(&machine, "gone");
    let path = "/api/admin/encryption/shred";
    let relative = json!({"tenant_id": "gone", "from": ["repo"]});
    assert_eq!(server.request("POST", path, Some(&relative)).0, 400);
    let nowhere = json!({"tenant_id": "nobody"});
    assert_eq!(server.request("POST", path, Some(&nowhere)).0, 404);
    let _ = shred(&machine, "gone", &["--from", "repo"], "").expect(
        0,
        &["Tenant gone is shredded", "manifests and pages are removed"],
    );
    assert_eq!(names(&machine, &gone), 0);
    server.stop();
}

/// A server that ships to `repo`, with the tenants `gone` and `stays` in it.
fn ships(machine: &Machine) -> Server {
    let server = super::shipping::ships(machine, &[], &[]);
    for tenant in ["gone", "stays"] {
        drop(server.create("/api/tenants", &json!({"id": tenant})));
    }
    super::shipping::begun(&server);
    super::shipping::pass(&server, super::shipping::now_ms());
    server
}

/// `shred`, with `--backup-to repo` in the settings.
fn shred_shipped(machine: &Machine, tenant: &str) -> Ran {
    let shred = ["encryption", "shred", "--yes", "--tenant-id", tenant];
    let mut command = machine.nimbus(&shred);
    let _ = command.env("NIMBUS_BACKUP_TO", "repo");
    run(command)
}

#[test]
fn a_tenant_goes_from_the_repository_that_is_shipped_to_while_the_server_runs_and_while_not() {
    let machine = machine();
    let server = ships(&machine);
    let (gone, stays) = (file_id(&machine, "gone"), file_id(&machine, "stays"));
    assert!(names(&machine, &gone) > 0);
    let _ = shred(&machine, "gone", &[], "")
        .expect(0, &["is shredded", "manifests and pages are removed"]);
    assert_eq!(names(&machine, &gone), 0);
    assert!(names(&machine, &stays) > 0);
    // It ships on.
    super::shipping::pass(&server, super::shipping::now_ms());
    server.stop();
    let _ = shred_shipped(&machine, "stays")
        .expect(0, &["is shredded", "manifests and pages are removed"]);
    assert_eq!(names(&machine, &stays), 0);
    let _ = backup(&machine, &["verify", "--from", "repo"]).expect(0, &["all authentic"]);
}

#[test]
fn a_repository_that_is_not_there_is_named_with_the_command_that_goes_on() {
    let machine = machine();
    ships(&machine).stop();
    let gone = file_id(&machine, "gone");
    let (repo, away) = (machine.path("repo"), machine.path("away"));
    fs::rename(&repo, &away).expect("it is away");
    fs::write(&repo, "no directory").expect("a file in its place");
    let left = format!("LEFT in {}", repo.display());
    let again = format!(
        "encryption shred --tenant-id gone --yes --from {}",
        repo.display()
    );
    let _ = shred_shipped(&machine, "gone").expect(3, &["is shredded", &left, &again]);
    fs::remove_file(&repo).expect("it goes");
    fs::rename(&away, &repo).expect("it is back");
    assert!(names(&machine, &gone) > 0);
    let _ = shred(&machine, "gone", &["--from", "repo"], "").expect(
        0,
        &[
            "nothing of tenant gone here",
            "manifests and pages are removed",
        ],
    );
    assert_eq!(names(&machine, &gone), 0);
}
