//! Servers whose keys are a directory of key files, or lie in AWS KMS (moto, over the wire).

use std::fs;

use nimbus_test_support::{Fault, Machine, whole};
use serde_json::json;

use nimbus_test_support::until;

use super::cloud::Cloud;
use super::{assert_error, machine, set_mode, snapshot, tenant_files};

fn things(tenant: &str) -> String {
    format!("/api/tenants/{tenant}/documents/things")
}

/// A machine whose control file and these tenants have a key file each.
fn key_dir(tenants: &[&str]) -> (Machine, String) {
    let machine = machine();
    let dir = machine.path("keys").to_str().expect("UTF-8").to_owned();
    let keygen = |whose: [&str; 2]| {
        let command = machine.nimbus(&[
            "encryption",
            "keygen",
            "--key-dir",
            &dir,
            whose[0],
            whose[1],
        ]);
        machine.run_to_end(command).expect(0, &["Back this key up"]);
    };
    keygen(["--subject", "db:redb:control:nimbus-control.db"]);
    for tenant in tenants {
        keygen(["--tenant-id", tenant]);
    }
    (machine, dir)
}

#[test]
fn a_key_directory_serves_tenants_over_restarts() {
    let (machine, dir) = key_dir(&["one", "two"]);
    let arguments = &[
        "--encryption-key-provider",
        "key-dir",
        "--encryption-key-dir",
        &dir,
    ];
    let server = machine.start(arguments);
    for tenant in ["one", "two"] {
        server.create("/api/tenants", &json!({"id": tenant}));
        server.insert(tenant, "things", &json!({"of": tenant}));
    }
    let before = [server.get(&things("one")), server.get(&things("two"))];
    server.stop();
    let server = machine.start(arguments);
    assert_eq!(
        [server.get(&things("one")), server.get(&things("two"))],
        before
    );
    assert_eq!(server.get("/ready")["ready"], json!(true));
}

#[test]
fn a_tenant_whose_key_file_is_withheld_is_refused_alone() {
    let (machine, dir) = key_dir(&["one", "two"]);
    let arguments = &[
        "--encryption-key-provider",
        "key-dir",
        "--encryption-key-dir",
        &dir,
    ];
    let server = machine.start(arguments);
    for tenant in ["one", "two"] {
        server.create("/api/tenants", &json!({"id": tenant}));
        server.insert(tenant, "things", &json!({"of": tenant}));
    }
    // A tenant without a key file is not created, and no key is made for it.
    let keys = fs::read_dir(&dir).expect("the keys").count();
    let (status, answer) = server.request("POST", "/api/tenants", Some(&json!({"id": "three"})));
    let message = assert_error(status, &answer, (503, "encryption.key_revoked"));
    let said = format!("{message} {}", answer["error"]["detail"]);
    assert!(said.contains(&dir) && said.contains("keygen"), "{said}");
    assert_eq!(fs::read_dir(&dir).expect("the keys").count(), keys);
    assert_eq!(
        server.get("/api/tenants"),
        whole("tenants", json!(["one", "two"]))
    );
    let before = server.get(&things("one"));
    server.stop();

    let name: String = "db:sqlite:tenant:one:one.sqlite3"
        .bytes()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let key = machine.path("keys").join(name + ".key");
    let away = machine.path("withheld.key");
    fs::rename(&key, &away).expect("the key is withheld");
    let server = machine.start(arguments);
    let (status, answer) = server.request("GET", &things("one"), None);
    assert_error(status, &answer, (503, "encryption.key_revoked"));
    assert_eq!(server.get(&things("two"))["data"][0]["of"], "two");
    fs::rename(&away, &key).expect("and given back");
    assert_eq!(server.get(&things("one")), before);
}

#[test]
fn a_key_directory_that_is_not_right_stops_the_start() {
    let (machine, dir) = key_dir(&[]);
    let arguments = &[
        "--encryption-key-provider",
        "key-dir",
        "--encryption-key-dir",
        &dir,
    ];
    machine.start(arguments).stop();
    let before = snapshot(&machine);
    set_mode(&machine.path("keys"), 0o755);
    machine
        .start_that_ends(arguments)
        .expect(1, &[&dir, "chmod 0700"]);
    set_mode(&machine.path("keys"), 0o700);
    let nowhere = &[
        "--encryption-key-provider",
        "key-dir",
        "--encryption-key-dir",
        "nowhere",
    ];
    machine
        .start_that_ends(nowhere)
        .expect(1, &["nowhere", "does not exist"]);
    let key = fs::read_dir(&dir)
        .expect("the keys")
        .next()
        .expect("a key")
        .expect("an entry")
        .path();
    let away = machine.path("withheld.key");
    fs::rename(&key, &away).expect("the control file's key is withheld");
    machine
        .start_that_ends(arguments)
        .expect(1, &["nimbus-control.db", ".key"]);
    assert_eq!(snapshot(&machine), before);
    fs::rename(&away, &key).expect("and given back");
    machine.start(arguments).stop();
}

#[test]
fn a_kms_key_serves_tenants_over_restarts_with_one_call_a_file() {
    let cloud = Cloud::new();
    let server = cloud.start();
    let tenants = ["one", "two", "three"];
    for tenant in tenants {
        server.create("/api/tenants", &json!({"id": tenant}));
        server.insert(tenant, "things", &json!({"of": tenant}));
    }
    let before = tenants.map(|tenant| server.get(&things(tenant)));
    server.stop();
    assert_eq!(
        cloud.proxy.calls("GenerateDataKey").len(),
        4,
        "the control file's and the tenants'"
    );
    let calls = cloud.proxy.calls("Decrypt").len();

    let server = cloud.start();
    assert_eq!(
        server.get("/api/tenants")["tenants"]
            .as_array()
            .map(Vec::len),
        Some(3)
    );
    assert_eq!(
        cloud.proxy.calls("Decrypt").len(),
        calls + 1,
        "a start unwraps the control file's key alone"
    );
    assert_eq!(tenants.map(|tenant| server.get(&things(tenant))), before);
    let context = cloud.proxy.calls("Decrypt").pop().expect("a call");
    assert!(
        context.contains("db:sqlite:tenant:three:three.sqlite3") && context.contains(&cloud.key),
        "{context}"
    );
    assert!(!cloud.machine.master_key().exists());
}

#[test]
fn a_kms_key_that_is_denied_or_out_of_reach_is_told_apart() {
    let cloud = Cloud::new();
    let server = cloud.start();
    server.create("/api/tenants", &json!({"id": "one"}));
    server.insert("one", "things", &json!({"n": 1}));
    let before = server.get(&things("one"));
    server.stop();

    let server = cloud.start();
    for (fault, code) in [
        (
            Fault::error(400, "DisabledException", "the key is disabled"),
            "encryption.key_revoked",
        ),
        (
            Fault::error(400, "AccessDeniedException", "not authorized"),
            "encryption.key_revoked",
        ),
        (
            Fault::error(500, "KMSInternalException", "try again"),
            "encryption.key_unavailable",
        ),
    ] {
        cloud.proxy.inject("Decrypt", fault);
        // A second may pass before KMS is asked again after the last no.
        until(code, || {
            let (status, answer) = server.request("GET", &things("one"), None);
            status == 503 && answer["error"]["code"] == json!(code)
        });
        cloud.proxy.clear();
        assert_eq!(
            server.request("GET", "/ready", None).1["tenants_in_trouble"],
            json!({"one": code})
        );
    }
    until("healed without a restart", || {
        server.request("GET", &things("one"), None) == (200, before.clone())
    });
    server.stop();

    let kept = snapshot(&cloud.machine);
    cloud.proxy.inject(
        "Decrypt",
        Fault::error(400, "DisabledException", "the key is disabled"),
    );
    cloud
        .start_that_ends()
        .expect(1, &["nimbus-control.db", "enable-key"]);
    cloud.proxy.clear();
    cloud.proxy.inject(
        "DescribeKey",
        Fault::error(400, "NotFoundException", "no such key"),
    );
    cloud.start_that_ends().expect(1, &[&cloud.key]);
    cloud.proxy.clear();
    assert_eq!(snapshot(&cloud.machine), kept);
    assert_eq!(cloud.start().get(&things("one")), before);
}

#[test]
fn a_tenant_is_not_created_when_kms_gives_no_key() {
    let cloud = Cloud::new();
    let server = cloud.start();
    let denied = Fault::error(400, "AccessDeniedException", "not authorized");
    cloud.proxy.inject("GenerateDataKey", denied);
    // The control file has work of its own: the end of the audit log, what is due.
    let before = tenant_files(&cloud.machine);
    let (status, answer) = server.request("POST", "/api/tenants", Some(&json!({"id": "one"})));
    assert_error(status, &answer, (503, "encryption.key_revoked"));
    assert_eq!(tenant_files(&cloud.machine), before);
    assert_eq!(server.get("/api/tenants"), whole("tenants", json!([])));
    cloud.proxy.clear();
    server.create("/api/tenants", &json!({"id": "one"}));
}
