//! Operations of an administrator: what cannot be done is refused at once, and not found out by
//! asking after it.

use serde_json::{Value, json};

use super::{assert_error, demo, snapshot};

#[test]
fn an_operation_that_cannot_be_is_refused_before_it_is_begun() {
    let (machine, server) = demo();
    let data = machine.data_dir();
    let demo = data.join("demo.sqlite3");
    let before = snapshot(&machine);
    let refused = |verb: &str, body: Value, status: u16, code: &str, word: &str| {
        let path = format!("/api/admin/encryption/{verb}");
        let (answered, answer) = server.request("POST", &path, Some(&body));
        let message = assert_error(answered, &answer, (status, code));
        assert!(message.contains(word), "{verb} {body}: {message}");
    };
    let invalid = |verb: &str, body: Value, word: &str| {
        refused(verb, body, 400, "op.invalid_input", word);
    };
    for verb in ["rotate-kek", "rotate-dek"] {
        invalid(verb, json!({}), "no path was given");
        invalid(verb, json!({"path": ""}), "no path was given");
        invalid(verb, json!({"path": "", "all": true}), "no path was given");
    }
    invalid(
        "rotate-kek",
        json!({"path": data.join("no.sqlite3")}),
        "no.sqlite3",
    );
    invalid("rotate-kek", json!({"path": data}), "with --all");
    invalid(
        "rotate-kek",
        json!({"path": demo, "all": true}),
        "no directory",
    );
    invalid(
        "rotate-dek",
        json!({"path": machine.root(), "all": true}),
        "not a file of this server",
    );
    let absent = json!({"path": data.join("no.sqlite3"), "tenant_id": "no"});
    invalid("rotate-dek", absent, "does not exist");
    invalid("rotate-dek", json!({"path": demo}), "--tenant-id");
    invalid(
        "rotate-dek",
        json!({"path": demo, "tenant_id": "other"}),
        "not to tenant other",
    );
    invalid(
        "rotate-dek",
        json!({"path": demo, "tenant_id": "../demo"}),
        "../demo",
    );
    let engine = json!({"path": demo, "tenant_id": "demo", "provider": "redb"});
    invalid("rotate-dek", engine, "--provider sqlite");
    let both = json!({"path": data, "all": true, "tenant_id": "demo"});
    invalid("rotate-dek", both, "not with all");
    for verb in ["shred", "lock", "unlock"] {
        let body = json!({"tenant_id": "nobody"});
        refused(verb, body, 404, "session.tenant_not_found", "nobody");
        invalid(verb, json!({"tenant_id": "../demo"}), "tenant id");
        invalid(verb, json!({"tenant_id": ""}), "tenant id");
    }
    // Nothing was begun, and what stands there serves on.
    let tenants = |files: Vec<(String, usize, u64)>| -> Vec<_> {
        let demo = |file: &(String, usize, u64)| file.0.starts_with("demo");
        files.into_iter().filter(demo).collect()
    };
    assert_eq!(tenants(before), tenants(snapshot(&machine)));
    let (status, answer) = server.request(
        "POST",
        "/api/admin/encryption/rotate-dek",
        Some(&json!({"path": demo, "tenant_id": "demo"})),
    );
    assert_eq!(status, 202, "{answer}");
    server.stop();
}
