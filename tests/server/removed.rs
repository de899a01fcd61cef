//! A database that is removed or replaced under its open tenant.

use std::fs;

use serde_json::json;

use super::{assert_error, demo};

#[test]
fn acknowledges_nothing_that_is_written_to_a_file_that_is_gone() {
    let (machine, server) = demo();
    server.insert("demo", "things", &json!({"n": 1}));
    let database = machine.data_dir().join("demo.sqlite3");
    let kept = machine.path("kept.sqlite3");
    fs::rename(&database, &kept).expect("the database is taken away");
    let document = json!({"table": "things", "fields": {"n": 2}});
    let (status, body) = server.request("POST", "/api/tenants/demo/documents", Some(&document));
    let message = assert_error(status, &body, (503, "service.storage_corruption"));
    assert!(message.contains("demo"), "{message}");
    // From here on the tenant is opened afresh, and what is not there is said to be that.
    for _ in 0..2 {
        let (status, body) = server.request("POST", "/api/tenants/demo/documents", Some(&document));
        assert_error(status, &body, (503, "service.storage_corruption"));
    }
    assert!(!database.exists(), "nothing is made in its place");
    fs::rename(&kept, &database).expect("it is put back");
    server.insert("demo", "things", &json!({"n": 3}));
    let documents = server.get("/api/tenants/demo/documents/things");
    assert_eq!(
        documents["data"][0]["n"], 1,
        "what was acknowledged is there"
    );
    server.stop();
}
