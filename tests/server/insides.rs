//! What fails inside the server is told to the operator and to the log; who holds a tenant's key
//! learns that it failed.

use std::fs;

use serde_json::json;

use super::access_keys::make;
use super::{assert_error, demo};

const LIST: &str = "/api/tenants/demo/documents/notes";

#[test]
fn a_key_does_not_learn_what_is_inside_the_server_and_the_log_says_it() {
    let (machine, server) = demo();
    server.insert("demo", "notes", &json!({"n": 1}));
    let (_id, key) = make(&server, "demo", "write");
    server.stop();
    let root = machine.root().to_str().expect("a plain path").to_owned();
    let manifest = machine.data_dir().join("demo.sqlite3.nimbus-enc");
    let database = machine.data_dir().join("demo.sqlite3");
    let (good_manifest, good_database) = (
        fs::read(&manifest).expect("the manifest"),
        fs::read(&database).expect("the database"),
    );
    let gone = |file| move || fs::remove_file(file).expect("removed");
    let damages: [(&str, &dyn Fn()); 4] = [
        ("encryption.manifest_missing", &gone(&manifest)),
        ("service.storage_corruption", &|| {
            fs::write(&manifest, "nothing").expect("written");
        }),
        ("service.storage_corruption", &gone(&database)),
        ("service.storage_corruption", &|| {
            fs::write(&database, "nothing").expect("written");
        }),
    ];
    for (code, damage) in damages {
        damage();
        let server = machine.start(&[]);
        let body = json!({"table": "notes", "fields": {}});
        for (method, path, body) in [
            ("GET", LIST, None),
            ("POST", "/api/tenants/demo/documents", Some(&body)),
        ] {
            let (status, answer) = server.request_as(&key, method, path, body);
            let message = assert_error(status, &answer, (503, code));
            let all = answer.to_string();
            for inside in [&root, "demo.sqlite3", "nimbus-enc", "master.key"] {
                assert!(!all.contains(inside), "{inside} in {all}");
            }
            let (_, for_operator) = server.request(method, path, body);
            let full = assert_error(503, &for_operator, (503, code));
            assert_ne!(message, full);
            // The log has for the key's request what the operator is told for theirs.
            let id = answer["error"]["requestId"].as_str().expect("an id");
            let log = server.log();
            let mut lines = log.lines().filter(|line| line.contains(id));
            let said = lines.find(|line| line.contains("answered"));
            let said = said.unwrap_or_else(|| panic!("{id} is not in\n{log}"));
            assert!(said.contains(&root), "{said}");
        }
        server.stop();
        fs::write(&manifest, &good_manifest).expect("put back");
        fs::write(&database, &good_database).expect("put back");
    }
}
