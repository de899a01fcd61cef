//! SQLite's locks on the files of an open tenant: nothing that the server does takes them away, and
//! what happens when something does.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nimbus::server::{Route, route_table};
use nimbus_test_support::{Machine, Server};
use serde_json::{Value, json};

use super::deploy::{file, with_files};
use super::{assert_error, demo};

/// The kernel lists locks a page at a time: an entry is skipped when another process unlocks
/// between two pages. What is missing in this many listings is not there.
const LOOKS: usize = 50;
const ENCRYPTION: &str = "/api/admin/encryption";
/// What is asked here and does not succeed: for what never was, and for less than it takes.
const REFUSED: [&str; 3] = [
    "GET /api/tenants/{t}/schedule/history/{job}",
    "GET /api/admin/operations/{id}",
    "POST /api/admin/encryption/audit",
];

#[test]
fn every_route_leaves_the_locks_of_an_open_tenant() {
    let (machine, server) = demo();
    let open = Open::new(&machine, &server);
    open.assert_locked("nothing");
    for route in route_table() {
        let line = format!("{} {}", route.method, route.path);
        let _id = open.write();
        open.assert_locked(&line);
        for (path, body) in asked(&route, &machine, &server) {
            let (status, answer) = server.request(route.method.as_str(), &path, body.as_ref());
            assert!(
                status < 400 || REFUSED.contains(&&*line),
                "{line}: {answer}"
            );
            assert!(status < 500, "{line}: {answer}");
            if status == 202 {
                ended(&server, &answer);
            }
            open.assert_locked_if_open(&line);
            let _id = open.write();
            open.assert_locked(&line);
        }
    }
    server.stop();
}

#[test]
fn every_command_beside_an_open_tenant_leaves_its_locks() {
    let (machine, server) = demo();
    let open = Open::new(&machine, &server);
    server.create("/api/tenants", &json!({"id": "other"}));
    server.insert("other", "things", &json!({}));
    let demo = open.database.to_str().expect("UTF-8");
    let data = machine.data_dir();
    let data = data.to_str().expect("UTF-8");
    let renew = [
        "encryption",
        "rotate-dek",
        "--path",
        demo,
        "--provider",
        "sqlite",
        "--tenant-id",
        "demo",
    ];
    let mut commands: Vec<Vec<&str>> = ["none", "unwrap", "open", "pages"]
        .iter()
        .map(|depth| vec!["encryption", "status", "--verify", depth])
        .collect();
    commands.extend([
        vec!["doctor"],
        vec!["usage"],
        vec!["auth", "token"],
        vec!["encryption", "inspect", demo],
        vec!["encryption", "audit", "--verify"],
        vec!["encryption", "audit"],
        vec!["encryption", "repair"],
        vec!["encryption", "rotate-kek", "--path", data, "--all"],
        renew.to_vec(),
        renew.to_vec(),
        vec!["encryption", "rotate-dek", "--path", data, "--all"],
        vec!["encryption", "lock", "--tenant-id", "other"],
        vec!["encryption", "unlock", "--tenant-id", "other"],
        vec![
            "encryption",
            "export",
            "--source",
            demo,
            "--target",
            "plain.sqlite3",
            "--provider",
            "sqlite",
            "--tenant-id",
            "demo",
        ],
        vec!["encryption", "shred", "--tenant-id", "other", "--yes"],
    ]);
    for command in commands {
        let line = command.join(" ");
        let _id = open.write();
        open.assert_locked(&line);
        let ended = machine.run_to_end(machine.nimbus(&command));
        // What wants the directory for itself is refused.
        ended.expect(i32::from(line == "encryption repair"), &[]);
        open.assert_locked_if_open(&line);
        let _id = open.write();
        open.assert_locked(&line);
    }
    server.stop();
}

#[test]
fn what_was_acknowledged_outlives_an_old_sqlite_that_looks_at_the_file() {
    let (machine, server) = demo();
    let mut acknowledged = Vec::new();
    let open = Open::new(&machine, &server);
    for n in 0..10 {
        acknowledged.push(open.write());
        let depth = ["none", "unwrap", "open", "pages"][n % 4];
        let _ = server.get(&format!("/debug/encryption/status?verify={depth}"));
        let _ = server.get("/debug/doctor");
        let wal = inode(&open.wal());
        look_with_sqlite(&open.database);
        assert_eq!(inode(&open.wal()), wal, "the WAL is the one it was");
        acknowledged.push(open.write());
    }
    server.kill();
    let server = machine.start(&[]);
    assert_kept(&server, &acknowledged);
    server.kill();
    // Of a database that nobody has open, the same look takes the WAL away: that is what the locks
    // were for.
    assert!(open_files(&machine).1.exists());
    look_with_sqlite(&open_files(&machine).0);
    assert!(!open_files(&machine).1.exists());
}

#[test]
fn nothing_is_acknowledged_into_a_wal_that_was_removed_or_replaced() {
    for replaced in [false, true] {
        let (machine, server) = demo();
        let open = Open::new(&machine, &server);
        let mut acknowledged: Vec<_> = (0..5).map(|_| open.write()).collect();
        let before = server.get("/api/tenants/demo/documents/locks");
        assert_eq!(before["data"].as_array().map(Vec::len), Some(6));
        fs::remove_file(open.wal()).expect("the WAL is removed");
        if replaced {
            fs::write(open.wal(), "").expect("another is put in its place");
        }
        let document = json!({"table": "locks", "fields": {"refused": true}});
        let insert = || server.request("POST", "/api/tenants/demo/documents", Some(&document));
        let (status, body) = insert();
        let message = assert_error(status, &body, (503, "service.unavailable"));
        assert!(message.contains("demo.sqlite3-wal"), "{message}");
        assert!(
            message.contains("acknowledged before is in the database"),
            "{message}"
        );
        let log = server.log();
        assert!(log.contains("was removed or replaced"), "{log}");
        let (_, metrics) = server.request("GET", "/metrics", None);
        let metrics = metrics.as_str().expect("text");
        assert!(
            metrics.contains("nimbus_tenant_files_replaced_total 1"),
            "{metrics}"
        );
        // It was opened afresh, and goes on.
        acknowledged.push(open.write());
        open.assert_locked("the tenant was opened afresh");
        assert_kept(&server, &acknowledged);
        server.kill();
        let server = machine.start(&[]);
        assert_kept(&server, &acknowledged);
        let status = server.get("/debug/encryption/status?verify=pages");
        assert_eq!(status["summary"]["ok"], 2, "{status}");
        server.stop();
    }
}

/// What each route is asked, so that it does its work. A new one must be added here.
fn asked(route: &Route, machine: &Machine, server: &Server) -> Vec<(String, Option<Value>)> {
    let path = |path: &str| vec![(path.to_owned(), None)];
    let with = |path: &str, body: Value| vec![(path.to_owned(), Some(body))];
    let demo = |rest: &str| format!("/api/tenants/demo/{rest}");
    let document = || server.insert("demo", "things", &json!({"n": 1}));
    let schema = json!({"table": "typed", "fields": [], "indexes": []});
    let mutation = json!({"type": "insert", "table": "things", "fields": {"n": 2}});
    let later = json!({"run_after_ms": 3_600_000, "mutation": mutation});
    let hourly = json!({"type": "interval", "seconds": 3600});
    let cron = json!({"name": "c", "schedule": hourly, "mutation": mutation});
    let app = with_files("app", &[file("index.html", b"hello")]);
    let job = || {
        let made = server.create(&demo("schedule"), &later);
        made["job_id"].as_str().expect("its id").to_owned()
    };
    // A tenant of its own for what takes one away.
    let other = || {
        let (status, answer) =
            server.request("POST", "/api/tenants", Some(&json!({"id": "other"})));
        assert!(status == 201 || status == 409, "{answer}");
        json!({"tenant_id": "other"})
    };
    let files = machine.data_dir();
    match (route.method.as_str(), route.path) {
        ("GET", "/debug/encryption/status") => ["none", "unwrap", "open", "pages"]
            .map(|depth| (format!("{}?verify={depth}", route.path), None))
            .to_vec(),
        (
            "GET",
            "/health" | "/ready" | "/metrics" | "/openapi.json" | "/debug/doctor" | "/debug/usage",
        )
        | ("GET", "/api/tenants" | "/api/admin/encryption/audit")
        | ("POST", "/api/admin/token/rotate") => path(route.path),
        ("GET", "/api/tenants/{t}/documents/{table}") => path(&demo("documents/things")),
        ("GET" | "DELETE", "/api/tenants/{t}/documents/{table}/{id}") => {
            path(&demo(&format!("documents/things/{}", document())))
        }
        ("PATCH", "/api/tenants/{t}/documents/{table}/{id}") => with(
            &demo(&format!("documents/things/{}", document())),
            json!({"patch": {"n": 3}}),
        ),
        ("POST", "/api/tenants/{t}/query") => with(&demo("query"), json!({"table": "things"})),
        ("POST", "/api/tenants/{t}/query/paginated") => {
            let body = json!({"query": {"table": "things"}});
            with(&demo("query/paginated"), body)
        }
        ("PUT", "/api/tenants/{t}/schema/{table}") => with(&demo("schema/typed"), schema),
        ("GET" | "DELETE", "/api/tenants/{t}/schema/{table}") => {
            drop(server.request("PUT", &demo("schema/typed"), Some(&schema)));
            path(&demo("schema/typed"))
        }
        ("GET", "/apps/{t}" | "/apps/{t}/" | "/apps/{t}/{*path}") => {
            drop(server.request("POST", &demo("deploy"), Some(&app)));
            path(
                &route
                    .path
                    .replace("{t}", "demo")
                    .replace("{*path}", "index.html"),
            )
        }
        ("GET", "/api/tenants/{t}/schedule/history/{job}") => {
            path(&demo(&format!("schedule/history/{}", job())))
        }
        ("DELETE", "/api/tenants/{t}/schedule/{job}") => {
            path(&demo(&format!("schedule/{}", job())))
        }
        ("GET", "/api/admin/backups") => {
            let repository = machine.path("repository");
            let body = json!({"to": repository});
            let (_, made) = server.request("POST", route.path, Some(&body));
            ended(server, &made);
            path(&format!("{}?from={}", route.path, repository.display()))
        }
        ("GET", _) if !route.path.contains("{id}") => path(&route.path.replace("{t}", "demo")),
        ("POST", "/api/tenants/{t}/documents") => with(
            &demo("documents"),
            json!({"table": "things", "fields": {"n": 1}}),
        ),
        ("POST", "/api/tenants/{t}/batch") => {
            with(&demo("batch"), json!({"mutations": [mutation]}))
        }
        ("POST", "/api/tenants/{t}/deploy") => with(&demo("deploy"), app),
        ("POST", "/api/tenants/{t}/deploy/{generation}/activate") => {
            path(&demo("deploy/1/activate"))
        }
        ("POST", "/api/tenants/{t}/schedule") => with(&demo("schedule"), later),
        ("POST", "/api/tenants/{t}/crons") => with(&demo("crons"), cron),
        ("DELETE", "/api/tenants/{t}/crons/{name}") => path(&demo("crons/c")),
        ("POST", "/api/tenants") => with(route.path, json!({"id": "another"})),
        ("DELETE", "/api/tenants/{t}") => {
            let _ = other();
            path("/api/tenants/other")
        }
        ("POST", "/api/tenants/{t}/keys") => {
            with(&demo("keys"), json!({"name": "k", "scope": "read"}))
        }
        ("DELETE", "/api/tenants/{t}/keys/{id}") => {
            let key = server.create(&demo("keys"), &json!({"name": "k", "scope": "read"}));
            path(&demo(&format!(
                "keys/{}",
                key["id"].as_str().expect("its id")
            )))
        }
        ("POST", "/api/admin/backups") => {
            with(route.path, json!({"to": machine.path("repository")}))
        }
        ("POST", "/api/admin/backups/verify") => {
            with(route.path, json!({"from": machine.path("repository")}))
        }
        ("POST", "/api/admin/backups/restore") => {
            let from = machine.path("repository");
            with(
                route.path,
                json!({"from": from, "tenant_id": "demo", "as": "restored"}),
            )
        }
        ("POST", "/api/admin/encryption/rotate-kek") => {
            with(route.path, json!({"path": files, "all": true}))
        }
        ("POST", "/api/admin/encryption/rotate-dek") => {
            let one = json!({"path": files.join("demo.sqlite3"), "tenant_id": "demo"});
            [one.clone(), one, json!({"path": files, "all": true})]
                .map(|body| (route.path.to_owned(), Some(body)))
                .to_vec()
        }
        ("POST", "/api/admin/encryption/shred" | "/api/admin/encryption/lock") => {
            with(route.path, other())
        }
        ("POST", "/api/admin/encryption/unlock") => {
            drop(server.request("POST", &format!("{ENCRYPTION}/lock"), Some(&other())));
            with(route.path, other())
        }
        // What it takes from the commands is no matter here.
        ("POST", "/api/admin/encryption/audit") => with(route.path, json!({})),
        ("GET", "/api/admin/operations/{id}") => path("/api/admin/operations/none"),
        (method, path) => panic!("what is {method} {path} asked?"),
    }
}

/// Waits for the end of an operation.
fn ended(server: &Server, begun: &Value) {
    let operation = begun["operation"].as_str().expect("its id");
    let path = format!("/api/admin/operations/{operation}");
    while server.get(&path)["state"] == "running" {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(server.get(&path)["state"], "done", "{}", server.get(&path));
}

/// The tenant `demo`, open in a server.
struct Open<'a> {
    server: &'a Server,
    database: PathBuf,
}

impl<'a> Open<'a> {
    fn new(machine: &Machine, server: &'a Server) -> Self {
        let (database, _wal) = open_files(machine);
        let open = Self { server, database };
        let _id = open.write();
        open
    }

    /// Writes to it, so that it is open. The id of what was acknowledged.
    fn write(&self) -> String {
        self.server.insert("demo", "locks", &json!({}))
    }

    fn wal(&self) -> PathBuf {
        self.database.with_extension("sqlite3-wal")
    }

    /// Whether the server holds locks on the database and its shared memory. SQLite takes these
    /// once, when it opens the file: dropped ones do not come back, so a lock seen once is a lock
    /// kept.
    fn locked(&self) -> bool {
        let shm = self.database.with_extension("sqlite3-shm");
        [&self.database, &shm]
            .iter()
            .all(|file| (0..LOOKS).any(|_| self.locks(file) > 0))
    }

    /// POSIX locks of the server on the file that stands there.
    fn locks(&self, file: &Path) -> usize {
        let Ok(file) = fs::metadata(file) else {
            return 0;
        };
        let (inode, pid) = (format!(":{}", file.ino()), self.server.pid().to_string());
        let locks = fs::read_to_string("/proc/locks").expect("the kernel's locks");
        let is_ours = |line: &&str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.get(1) == Some(&"POSIX")
                && words.get(4) == Some(&pid.as_str())
                && words.get(5).is_some_and(|file| file.ends_with(&inode))
        };
        locks.lines().filter(is_ours).count()
    }

    #[track_caller]
    fn assert_locked(&self, after: &str) {
        assert!(self.locked(), "no locks after: {after}");
    }

    /// A tenant that was closed has no WAL, and needs no locks.
    #[track_caller]
    fn assert_locked_if_open(&self, after: &str) {
        assert!(
            self.locked() || !self.wal().exists(),
            "no locks after: {after}"
        );
    }
}

/// The database of the tenant `demo`, and its WAL.
fn open_files(machine: &Machine) -> (PathBuf, PathBuf) {
    let database = machine.data_dir().join("demo.sqlite3");
    let wal = database.with_extension("sqlite3-wal");
    (database, wal)
}

fn inode(file: &Path) -> u64 {
    fs::metadata(file).expect("it is there").ino()
}

/// What a look at a file with the SQLite of the machine does to it: it has no key, and folds the
/// WAL in where it is let.
fn look_with_sqlite(database: &Path) {
    let script = "\
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
try:
    connection.execute('SELECT count(*) FROM sqlite_master').fetchall()
except sqlite3.DatabaseError:
    pass
connection.close()";
    let looked = Command::new("python3")
        .args(["-c", script])
        .arg(database)
        .status();
    assert!(looked.expect("python3 runs").success());
}

#[track_caller]
fn assert_kept(server: &Server, acknowledged: &[String]) {
    let listed = server.get("/api/tenants/demo/documents/locks");
    let listed = listed["data"].as_array().expect("documents");
    let there = |id: &String| listed.iter().any(|document| document["_id"] == **id);
    for id in acknowledged {
        assert!(there(id), "{id} was acknowledged, and is not in {listed:?}");
    }
}
