//! The hunt reaches into the database that tenants are in: its data directory after a kill, with
//! its WAL or binary log, and a dump. Sealed, nothing of a document is there; not sealed, the same
//! search finds it in each of these places.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use nimbus_test_support::{Machine, MariaDb, Postgres, Server, files_under};
use serde_json::{Value, json};

use super::hunt::{Found, Hunt, Needle};
use super::{key_needles, load};

/// What was found where, of a tenant that a server worked on.
struct Hunted {
    machine: Machine,
    found: Vec<Found>,
    hunt: Hunt,
}

/// Each way in which documents come to be, change and go, and what keeps parts of them.
fn work(machine: &Machine, settings: &[(&str, String)], seal: bool) {
    let start = || -> Server {
        let mut command = machine.nimbus(&["start", "--port", "0"]);
        let _ = command
            .envs(settings.iter().map(|(name, value)| (*name, value)))
            .env("NIMBUS_ENCRYPTION_SEAL_EXTERNAL", seal.to_string())
            .env("RUST_LOG", "trace");
        machine.start_command(command)
    };
    let send = |server: &Server, method: &str, path: &str, body: &Value| {
        let path = format!("/api/tenants/made{path}");
        let (status, answer) = server.request(method, &path, Some(body));
        assert!(
            (200..300).contains(&status),
            "{method} {path}: {status} {answer}"
        );
        answer
    };
    let server = start();
    let _ = server.create("/api/tenants", &json!({"id": "made"}));
    let schema = json!({"table": "t", "indexes": [{"name": load::CANARIES[1], "fields": [load::CANARIES[1]]}]});
    let _ = send(&server, "PUT", "/schema/t", &schema);
    let canary = json!({load::CANARIES[1]: load::CANARIES[0]});
    for n in 0..40 {
        let id = server.insert("made", "t", &load::document(n));
        let path = format!("/documents/t/{id}");
        let patch = json!({"patch": {"more": load::CANARIES[0]}});
        match n % 4 {
            0 => drop(send(&server, "PATCH", &path, &patch)),
            1 => {
                let path = format!("/api/tenants/made{path}");
                assert_eq!(server.request("DELETE", &path, None).0, 204);
            }
            _ => {}
        }
    }
    let insert = json!({"type": "insert", "table": "t", "fields": canary});
    let job = |ms: u64| json!({"run_after_ms": ms, "mutation": insert});
    let _ = send(&server, "POST", "/schedule", &job(0));
    let _ = send(&server, "POST", "/schedule", &job(3_600_000));
    let cron =
        json!({"name": "c", "schedule": {"type": "interval", "seconds": 3600}, "mutation": insert});
    let _ = send(&server, "POST", "/crons", &cron);
    let _ = send(&server, "POST", "/deploy", &load::app(1));
    let once = json!({"table": "t", "fields": canary});
    let sent = server.try_request_with(
        &machine.token(),
        &[("idempotency-key", load::CANARIES[0])],
        "POST",
        "/api/tenants/made/documents",
        Some(&once),
    );
    assert_eq!(sent.expect("an answer").0, 201);
    let query = json!({"table": "t", "filters": [{"field": load::CANARIES[1], "op": "eq", "value": load::CANARIES[0]}]});
    let (status, answer) = server.request("POST", "/api/tenants/made/query", Some(&query));
    assert_eq!(status, 200, "{answer}");
    server.kill();
    // Another server finds it all.
    let server = start();
    let listed = server.list("/api/tenants/made/documents/t", "data", 100);
    assert!(listed.len() >= 31, "{}", listed.len());
    server.kill();
}

fn hunted(
    settings: &[(&str, String)],
    seal: bool,
    dump: impl FnOnce(&Path),
    data: impl FnOnce() -> PathBuf,
) -> Hunted {
    let machine = Machine::new(env!("CARGO_BIN_EXE_nimbus"));
    work(&machine, settings, seal);
    let dumped = machine.path("dump.sql");
    dump(&dumped);
    let data = data();
    let key = machine.master_key();
    let mut files = files_under(&data);
    files.extend(files_under(machine.root()));
    files.retain(|file| *file != key && *file != machine.token_file());
    let hunt = Hunt::over_files(files);
    let mut prey: Vec<Needle> = load::CANARIES[..2]
        .iter()
        .flat_map(|canary| {
            // Bytes in a dump of Postgres are hexadecimal.
            let hex = data_encoding::HEXLOWER.encode(canary.as_bytes());
            [Needle::text(canary), Needle::text(&hex)]
        })
        .collect();
    prey.extend(key_needles(&[key]));
    let found = hunt.find(&prey);
    Hunted {
        machine,
        found,
        hunt,
    }
}

fn in_postgres(seal: bool) -> Hunted {
    let mut engine = Postgres::start();
    let url = engine.url();
    let settings = [
        ("NIMBUS_TENANT_PROVIDER", "postgres".to_owned()),
        ("NIMBUS_POSTGRES_URL", url.clone()),
    ];
    let dump = |to: &Path| {
        run(Postgres::client("psql", &url).args(["--command", "CHECKPOINT"]));
        run(Postgres::client("pg_dump", &url).arg("--file").arg(to));
    };
    let kill = || {
        engine.kill();
        engine.data()
    };
    hunted(&settings, seal, dump, kill)
}

fn in_mariadb(seal: bool) -> Hunted {
    let mut engine = MariaDb::start_logging();
    let settings = [
        ("NIMBUS_TENANT_PROVIDER", "mysql".to_owned()),
        ("NIMBUS_MYSQL_URL", engine.url()),
    ];
    let mut dumping = engine.client("mariadb-dump");
    let (mut flushing, flush) = (
        engine.client("mariadb"),
        "FLUSH TABLES tenant_made.documents FOR EXPORT; UNLOCK TABLES",
    );
    let dump = |to: &Path| {
        // Pages, too, reach the disk before the kill.
        run(flushing.args(["--execute", flush]));
        let _ = dumping
            .args(["--single-transaction", "--all-databases"])
            .stdout(File::create(to).expect("a file"));
        run(&mut dumping);
    };
    let data = engine.data();
    let kill = || {
        engine.kill();
        data
    };
    hunted(&settings, seal, dump, kill)
}

fn run(command: &mut Command) {
    let ended = command.status();
    assert!(ended.expect("it runs").success(), "{command:?}");
}

/// Whether a canary was found in a file whose name begins so.
fn is_in(hunted: &Hunted, begins: &str) -> bool {
    let mut found = hunted.found.iter();
    found.any(|found| found.file.starts_with(begins))
}

#[test]
fn nothing_of_a_sealed_tenant_is_found_in_postgres_its_wal_or_a_dump() {
    let hunted = in_postgres(true);
    assert_eq!(hunted.found, [], "{:?}", hunted.machine.root());
    // The search has seen the dump, and the segments of the WAL.
    for seen in ["dump.sql", "000000010000000000000001", "nimbus-control.db"] {
        assert!(hunted.hunt.bytes_of(seen) > 0, "no bytes of {seen}");
    }
}

#[test]
fn the_same_search_finds_a_tenant_in_postgres_that_is_not_sealed() {
    let hunted = in_postgres(false);
    let tables = |found: &Found| found.file.bytes().all(|byte| byte.is_ascii_digit());
    let is_in_a_table = hunted
        .found
        .iter()
        .any(|found| tables(found) && found.file.len() < 10);
    for (place, there) in [
        ("a table", is_in_a_table),
        ("the WAL", is_in(&hunted, "0000000100000000")),
        ("the dump", is_in(&hunted, "dump.sql")),
    ] {
        assert!(there, "not in {place}: {:?}", hunted.found);
    }
}

#[test]
fn nothing_of_a_sealed_tenant_is_found_in_mariadb_its_binary_log_or_a_dump() {
    let hunted = in_mariadb(true);
    assert_eq!(hunted.found, [], "{:?}", hunted.machine.root());
    for seen in ["dump.sql", "binlog.000001", "ib_logfile0", "documents.ibd"] {
        assert!(hunted.hunt.bytes_of(seen) > 0, "no bytes of {seen}");
    }
}

#[test]
fn the_same_search_finds_a_tenant_in_mariadb_that_is_not_sealed() {
    let hunted = in_mariadb(false);
    for place in ["documents.ibd", "ib_logfile0", "binlog.", "dump.sql"] {
        assert!(is_in(&hunted, place), "not in {place}: {:?}", hunted.found);
    }
}
