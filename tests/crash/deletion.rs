//! The deletion of a tenant: every row of the deletion table in `docs/lifecycle.md`.

use nimbus_test_support::{Machine, whole};
use serde_json::json;

use super::{
    BYSTANDER, Bystander, armed, assert_keeps_documents, identity, machine, names, send_to_death,
    start_armed, start_killed, tenants,
};

/// Point, whether the manifest is there then, and whether the database is.
pub(super) const POINTS: &[(&str, bool, bool)] = &[
    ("tenants::delete::condemned", true, true),
    ("tenants::delete::closed", true, true),
    ("tenants::delete::key-removed", false, true),
    ("tenants::delete::files-removed", false, false),
    ("tenants::delete::recorded", false, false),
    ("tenants::delete::finished", false, false),
];

#[test]
fn a_deletion_killed_anywhere_is_finished_by_the_next_start() {
    for (point, manifest, database) in POINTS {
        eprintln!("killed at {point}");
        let machine = machine();
        let bystander = Bystander::settle(&machine, &[]);
        let old = settle_tenant(&machine);
        let server = start_armed(&machine, &[], &armed(point, 0));
        // Open, with something in its WAL.
        server.insert(TENANT, "secrets", &json!({"n": 2}));
        send_to_death(&machine, server, "DELETE", PATH, None);
        let left = names(&machine, TENANT);
        assert_eq!(
            left.contains(&format!("{FILE}.nimbus-enc")),
            *manifest,
            "{left:?}"
        );
        assert_eq!(left.contains(&FILE.to_owned()), *database, "{left:?}");
        if !*database {
            assert_eq!(left, [""; 0], "its WAL goes with it");
        }

        assert_gone_and_free(&machine, &bystander, &old);
    }
}

#[test]
fn a_start_killed_while_it_finishes_a_deletion_leaves_it_to_the_next() {
    let machine = machine();
    let bystander = Bystander::settle(&machine, &[]);
    let old = settle_tenant(&machine);
    let server = start_armed(&machine, &[], &armed("tenants::delete::condemned", 0));
    send_to_death(&machine, server, "DELETE", PATH, None);
    for point in ["key-removed", "files-removed", "recorded", "finished"] {
        start_killed(
            &machine,
            &[],
            &armed(&format!("tenants::delete::{point}"), 0),
        );
    }
    assert_gone_and_free(&machine, &bystander, &old);
}

#[test]
fn a_plaintext_deletion_that_was_killed_is_finished_by_the_next_start() {
    const PLAINTEXT: &[&str] = &["--encryption-key-provider", "none"];
    for (point, _, _) in POINTS {
        eprintln!("killed at {point}");
        let machine = machine();
        let bystander = Bystander::settle(&machine, PLAINTEXT);
        let server = start_armed(&machine, PLAINTEXT, &armed(point, 0));
        server.create("/api/tenants", &json!({"id": TENANT}));
        send_to_death(&machine, server, "DELETE", PATH, None);
        let server = machine.start(PLAINTEXT);
        assert_eq!(tenants(&server), [BYSTANDER]);
        assert_eq!(names(&machine, TENANT), [""; 0]);
        bystander.assert_undisturbed(&machine, &server);
        server.stop();
    }
}

/// What a tenant of the same name must not come into.
struct Old {
    identity: (String, String),
    access_key: String,
}

/// Makes the tenant with a document and an access key.
fn settle_tenant(machine: &Machine) -> Old {
    let server = machine.start(&[]);
    server.create("/api/tenants", &json!({"id": TENANT}));
    server.insert(TENANT, "secrets", &json!({"n": 1}));
    let body = json!({"name": "an application", "scope": "write"});
    let made = server.create(&format!("{PATH}/keys"), &body);
    server.stop();
    Old {
        identity: identity(machine, FILE).expect("its manifest"),
        access_key: made["key"].as_str().expect("a key").to_owned(),
    }
}

/// The next start finishes the deletion; a tenant of that name then meets neither old key nor old
/// document.
fn assert_gone_and_free(machine: &Machine, bystander: &Bystander, old: &Old) {
    let server = machine.start(&[]);
    assert_eq!(tenants(&server), [BYSTANDER]);
    assert_eq!(names(machine, TENANT), [""; 0]);
    let (status, _) = server.request("GET", &format!("{PATH}/documents/secrets"), None);
    assert_eq!(status, 404);
    let with_old_key = || {
        let path = format!("{PATH}/documents/secrets");
        server.request_as(&old.access_key, "GET", &path, None).0
    };
    assert_eq!(with_old_key(), 401);
    bystander.assert_undisturbed(machine, &server);

    server.create("/api/tenants", &json!({"id": TENANT}));
    let new = identity(machine, FILE).expect("its manifest");
    assert_ne!(new.0, old.identity.0, "another file");
    assert_ne!(new.1, old.identity.1, "another key");
    assert_eq!(
        with_old_key(),
        401,
        "the old key opens nothing of the new tenant"
    );
    assert_eq!(
        server.get(&format!("{PATH}/documents/secrets")),
        whole("data", json!([]))
    );
    assert_keeps_documents(machine, &[], server, TENANT);
}

const TENANT: &str = "doomed";
const FILE: &str = "doomed.sqlite3";
const PATH: &str = "/api/tenants/doomed";
