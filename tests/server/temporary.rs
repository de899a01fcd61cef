//! What SQLite would keep in memory without a bound: sorts, batches and indexes over documents as
//! large as they may be.

use std::fs;

use nimbus_test_support::Server;
use serde_json::{Value, json};

use super::overload::most_memory;
use super::{assert_error, machine};

/// A canary in every field that is sorted, and so in everything that is written for it.
const CANARY: &str = "a-canary-that-is-sorted";
/// MiB of keys in all.
const DOCUMENTS: u32 = 64;
/// What each piece of work may add to the most that the server had in memory, in MiB. Of all keys
/// once it would be 64.
const MORE: u64 = 48;

/// Documents of nearly a mebibyte, in no order; their ids.
fn fill(server: &Server) -> Vec<String> {
    server.create("/api/tenants", &json!({"id": "demo"}));
    let numbers: Vec<u32> = (0..DOCUMENTS).map(|n| n * 37 % DOCUMENTS).collect();
    let mut ids = Vec::new();
    for part in numbers.chunks(8) {
        let insert = |n: &u32| {
            let text = format!("{n:04} {}", CANARY.repeat(990_000 / CANARY.len()));
            json!({"type": "insert", "table": "large", "fields": {"a": text}})
        };
        let inserts: Vec<Value> = part.iter().map(insert).collect();
        ids.extend(batch(server, &inserts));
    }
    ids
}

fn batch(server: &Server, mutations: &[Value]) -> Vec<String> {
    let body = json!({"mutations": mutations});
    let (status, answer) = server.request("POST", "/api/tenants/demo/batch", Some(&body));
    assert_eq!(status, 200, "{answer}");
    let results = answer["results"].as_array().expect("results").iter();
    let id = |result: &Value| result["id"].as_str().expect("an id").to_owned();
    results.map(id).collect()
}

fn updates(ids: &[String]) -> Vec<Value> {
    let update =
        |id: &String| json!({"type": "update", "table": "large", "id": id, "patch": {"n": 1}});
    ids.iter().map(update).collect()
}

/// The first page in the order of the long field: which documents it has.
fn ordered(server: &Server) -> (u16, Value) {
    let query = json!({"table": "large", "order": {"field": "a"}});
    let body = json!({"query": query, "page_size": 1000});
    server.request("POST", "/api/tenants/demo/query/paginated", Some(&body))
}

#[track_caller]
fn assert_ordered(server: &Server) {
    let (status, page) = ordered(server);
    assert_eq!(status, 200, "{page}");
    let data = page["data"].as_array().expect("documents");
    assert!(data.len() >= 3);
    for (n, document) in data.iter().enumerate() {
        let text = document["a"].as_str().expect("text");
        assert_eq!(text[..4], format!("{n:04}"));
    }
}

fn index(server: &Server) -> (u16, Value) {
    let indexes = json!([{"name": "by_a", "fields": ["a"]}]);
    let schema = json!({"table": "large", "indexes": indexes});
    server.request("PUT", "/api/tenants/demo/schema/large", Some(&schema))
}

/// Files without a name that the server has open in its data directory; what is in them, where they
/// hold the canary.
fn temporary_files(server: &Server, dir: &std::path::Path) -> (usize, u64, bool) {
    let (mut files, mut bytes, mut found) = (0, 0, false);
    let entries = fs::read_dir(format!("/proc/{}/fd", server.pid()));
    for entry in entries.into_iter().flatten().flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let is_nameless = target.to_string_lossy().ends_with(" (deleted)");
        if !target.starts_with(dir) || !is_nameless {
            continue;
        }
        files += 1;
        if let Ok(content) = fs::read(entry.path()) {
            bytes += content.len() as u64;
            let canary = &CANARY.as_bytes()[..12];
            found |= content.windows(canary.len()).any(|window| window == canary);
        }
    }
    (files, bytes, found)
}

#[test]
fn sorts_batches_and_indexes_of_large_documents_take_disk_and_not_memory() {
    let machine = machine();
    // Its own memory would be in the way of what is measured.
    let server = machine.start(&["--page-cache-bytes", "0"]);
    let ids = fill(&server);
    let mut most = most_memory(&server);
    let mut took = |what: &str| {
        let now = most_memory(&server);
        let more = now - most;
        eprintln!("{what}: {more} MiB more");
        assert!(more < MORE, "{what}: {more} MiB more");
        most = now;
    };
    assert_ordered(&server);
    took("a sort");
    let _same = batch(&server, &updates(&ids));
    took("a batch");
    let (status, answer) = index(&server);
    assert_eq!(status, 204, "{answer}");
    took("an index");
    assert_ordered(&server);
    let dir = machine.data_dir();
    assert_eq!(temporary_files(&server, &dir).0, 0);
    server.stop();
}

#[test]
fn nothing_of_a_document_is_read_in_the_temporary_files_of_its_sort_and_none_outlives_a_kill() {
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "SKIPPED: only root sees the open files of a server, which no other process may look into"
        );
        return;
    }
    let machine = machine();
    let server = machine.start(&[]);
    let ids = fill(&server);
    let dir = machine.data_dir();
    let names = |dir| {
        let entries = fs::read_dir(dir).expect("a directory").flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        names.sort();
        names
    };
    let before = names(&dir);
    let (mut seen, mut most) = (0, 0);
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            assert_ordered(&server);
            let _same = batch(&server, &updates(&ids));
            assert_eq!(index(&server).0, 204);
        });
        while !work.is_finished() {
            let (files, bytes, found) = temporary_files(&server, &dir);
            assert!(!found, "plaintext in a temporary file");
            seen = seen.max(files);
            most = most.max(bytes);
        }
        work.join().expect("it worked");
    });
    assert!(seen > 0 && most > 8 << 20, "{seen} files, {most} bytes");
    // Killed in the middle of the work, it leaves nothing behind.
    std::thread::scope(|scope| {
        let _cut_short = scope.spawn(|| {
            let body = json!({"mutations": updates(&ids)});
            let token = machine.token();
            let path = "/api/tenants/demo/batch";
            // Cut short by the kill, it has no answer.
            drop(server.try_request_as(&token, "POST", path, Some(&body)));
        });
        while temporary_files(&server, &dir).0 == 0 {}
        server.send_kill();
    });
    assert_eq!(names(&dir), before);
}

#[test]
fn without_room_for_temporary_files_the_request_is_told_and_the_server_goes_on() {
    let machine = machine();
    let server = machine.start(&[]);
    let ids = fill(&server);
    server.stop();
    // More than any disk has: nothing is let in but what makes room, and no temporary file.
    let server = machine.start(&["--disk-reserve-bytes", "9223372036854775807"]);
    let (status, answer) = ordered(&server);
    let message = assert_error(status, &answer, (507, "rate.resource_exhausted"));
    assert!(message.contains("temporary files"), "{message}");
    let path = format!("/api/tenants/demo/documents/large/{}", ids[0]);
    assert_eq!(server.request("GET", &path, None).0, 200);
    assert_eq!(server.request("DELETE", &path, None).0, 204);
    server.stop();
    let server = machine.start(&["--disk-reserve-bytes", "0"]);
    assert_eq!(ordered(&server).0, 200);
    server.stop();
}
