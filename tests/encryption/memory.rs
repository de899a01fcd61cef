//! What a copy takes of memory does not grow with what is copied.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nimbus_test_support::Machine;

use super::{as_str, deployment};

const TENANT: &[&str] = &["--provider", "sqlite", "--tenant-id", "alpha"];

/// Runs the command to its end, which must be a good one; the most memory it had at a time.
fn peak(machine: &Machine, arguments: &[&str]) -> u64 {
    let mut command: Command = machine.nimbus(&["encryption"]);
    let errors = fs::File::create(machine.path("errors")).expect("a file");
    command.args(arguments).stdout(Stdio::null()).stderr(errors);
    let mut child = command.spawn().expect("nimbus runs");
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let ended = loop {
        // The kernel keeps the maximum: what is read last counts, and at its end a process gives
        // memory back.
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0) << 10);
        if let Some(ended) = child.try_wait().expect("its status") {
            break ended;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let said = fs::read_to_string(machine.path("errors")).expect("what it said");
    assert!(ended.success(), "{arguments:?}: {said}");
    assert!(peak > 0, "{arguments:?}");
    peak
}

/// A plaintext database of about this size, with an index over all of it.
#[expect(
    clippy::disallowed_methods,
    reason = "the database of somebody who has no Nimbus yet"
)]
fn fill_sqlite(path: &Path, bytes: u64) {
    let database = rusqlite::Connection::open(path).expect("a new database");
    // A row is 2000 bytes in the table and 50 in the index.
    let sql = format!(
        "PRAGMA synchronous = OFF; PRAGMA journal_mode = OFF;
         CREATE TABLE t (id INTEGER PRIMARY KEY, key TEXT, data BLOB); CREATE INDEX by_key ON t (key);
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {})
         INSERT INTO t SELECT i, hex(i * 7919 % 1000003) || '-------------------------------', randomblob(1900) FROM n",
        bytes / 2000
    );
    database.execute_batch(&sql).expect("rows");
    database.close().expect("it closes");
    assert!(fs::metadata(path).expect("it").len() > bytes * 9 / 10);
}

/// The peak of each command on a small database and on a large one.
fn assert_constant(more: u64, small: &[u64], large: &[u64]) {
    assert_eq!(small.len(), large.len());
    let is_constant = |(small, large): (&u64, &u64)| *large < small + more;
    assert!(
        small.iter().zip(large).all(is_constant),
        "in bytes, of the small database {small:?}, of the large one {large:?}"
    );
}

#[test]
fn migrating_rotating_and_exporting_a_tenant_takes_as_much_memory_for_a_large_one_as_for_a_small_one()
 {
    let peaks = |bytes: u64| {
        let machine = deployment(&[], &[]);
        let source = machine.path("alpha.sqlite3");
        fill_sqlite(&source, bytes);
        let path = machine.data_dir().join("alpha.sqlite3");
        let (source, path) = (as_str(&source), as_str(&path));
        let run = |arguments: &[&str]| peak(&machine, &[arguments, TENANT].concat());
        [
            run(&["migrate", "--source", source, "--target", path]),
            run(&["rotate-dek", "--path", path]),
            run(&["export", "--source", path, "--target", "plain"]),
        ]
    };
    // A third of the large one: the proof of a copy has 32 MiB of page cache, which the small one
    // does not fill.
    assert_constant(48 << 20, &peaks(8 << 20), &peaks(160 << 20));
}
