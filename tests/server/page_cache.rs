//! The page cache over the wire: it is on by default and says what it does, can be turned off,
//! stays off where the library is another, and hides no damage on the disk.

use std::fs;

use nimbus_test_support::{Machine, Server};
use serde_json::{Value, json};

use super::machine;
use super::metrics::scrape;

fn started(machine: &Machine, arguments: &[&str]) -> Server {
    let server = machine.start(arguments);
    if server.request("GET", THINGS, None).0 == 404 {
        server.create("/api/tenants", &json!({"id": "demo"}));
        for n in 0..300 {
            let text = format!("{n:0500}");
            server.insert("demo", "things", &json!({"n": n, "text": text}));
        }
    }
    server
}

/// All documents, or the code of the error.
fn all(server: &Server) -> Result<usize, (u16, String)> {
    let query = json!({"table": "things", "limit": 1000});
    let (status, answer) = server.request("POST", "/api/tenants/demo/query", Some(&query));
    match answer["data"].as_array() {
        Some(documents) => Ok(documents.len()),
        None => Err((status, code(&answer))),
    }
}

fn code(answer: &Value) -> String {
    answer["error"]["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// Limit, bytes, hits and misses.
fn stats(machine: &Machine, server: &Server) -> [f64; 4] {
    let (_text, values) = scrape(machine, server);
    ["bytes_limit", "bytes", "hits_total", "misses_total"]
        .map(|name| values[&format!("nimbus_page_cache_{name}")])
}

#[test]
fn is_on_by_default_and_serves_what_a_commit_made_readers_forget() {
    let machine = machine();
    let server = started(&machine, &[]);
    assert!(server.log().contains("the page cache is on"));
    let [limit, bytes, ..] = stats(&machine, &server);
    assert!(
        limit > 0.0 && bytes > 0.0 && bytes <= limit,
        "{limit} {bytes}"
    );
    assert_eq!(all(&server), Ok(300));
    let [.., hits, misses] = stats(&machine, &server);
    server.insert("demo", "things", &json!({"n": 300}));
    assert_eq!(all(&server), Ok(301));
    let [.., hits_after, misses_after] = stats(&machine, &server);
    assert!(hits_after > hits + 30.0, "{hits} {hits_after}");
    assert_eq!(misses_after, misses, "what was written is there already");
    let (status, _none) = server.request("DELETE", "/api/tenants/demo", None);
    assert_eq!(status, 204);
    assert_eq!(stats(&machine, &server)[1], 0.0);
    server.stop();
}

#[test]
fn can_be_turned_off_and_has_a_least_size() {
    let machine = machine();
    let server = started(&machine, &["--page-cache-bytes", "0"]);
    assert_eq!(all(&server), Ok(300));
    assert_eq!(stats(&machine, &server), [0.0; 4]);
    assert!(server.log().contains("the page cache is off"));
    server.stop();
    let refused = machine.start_that_ends(&["--page-cache-bytes", "4KiB"]);
    refused.expect(2, &["--page-cache-bytes must be 0, or at least 1MiB"]);
    // With less room than there are pages it works, too.
    let server = started(&machine, &["--page-cache-bytes", "1MiB"]);
    for _again in 0..3 {
        assert_eq!(all(&server), Ok(300));
    }
    let [limit, bytes, ..] = stats(&machine, &server);
    assert!(bytes <= limit, "{bytes} {limit}");
    server.stop();
}

#[test]
fn stays_off_and_says_so_where_its_self_test_fails() {
    let machine = machine();
    let mut command = machine.nimbus(&["start", "--port", "0"]);
    command.env("FAILPOINTS", "page_cache::lost=return");
    let server = machine.start_command(command);
    let said = server.log();
    assert!(
        said.contains("the page cache is off") && said.contains("as expected"),
        "{said}"
    );
    server.create("/api/tenants", &json!({"id": "demo"}));
    for n in 0..3 {
        server.insert("demo", "things", &json!({"n": n}));
    }
    assert_eq!(all(&server), Ok(3));
    assert_eq!(stats(&machine, &server), [0.0; 4]);
    server.stop();
}

#[test]
fn needs_no_memory_where_nothing_is_encrypted() {
    let machine = machine();
    let server = started(&machine, &["--encryption-key-provider", "none"]);
    assert_eq!(all(&server), Ok(300));
    assert_eq!(stats(&machine, &server), [0.0; 4]);
    server.stop();
}

/// What is answered when pages of an open tenant are damaged, although they were read before.
fn after_damage(page_cache: &str) -> Vec<Result<usize, (u16, String)>> {
    let machine = machine();
    // Stopped once, so that everything is in the file.
    started(&machine, &[]).stop();
    let server = started(&machine, &["--page-cache-bytes", page_cache]);
    assert_eq!(all(&server), Ok(300));
    let path = machine.data_dir().join("demo.sqlite3");
    let mut file = fs::read(&path).expect("the database");
    let pages = file.len() / 4096;
    for page in pages / 3..pages * 2 / 3 {
        file[page * 4096 + 1000] ^= 1;
    }
    fs::write(&path, file).expect("the database");
    // The commit has the readers forget the pages that they hold themselves.
    let body = json!({"table": "things", "fields": {"n": 300}});
    let (status, answer) = server.request("POST", "/api/tenants/demo/documents", Some(&body));
    let inserted = if status == 201 {
        Ok(1)
    } else {
        Err((status, code(&answer)))
    };
    vec![inserted, all(&server), all(&server)]
}

#[test]
fn hides_no_damage_of_pages_that_it_has() {
    let without = after_damage("0");
    assert!(without[1].is_err(), "{without:?}");
    assert_eq!(after_damage("64MiB"), without);
}

const THINGS: &str = "/api/tenants/demo/documents/things";
