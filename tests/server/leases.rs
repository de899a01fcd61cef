//! Keys in KMS that are taken back under a running server, and KMS out of reach.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use nimbus_test_support::{Fault, Server};
use serde_json::{Value, json};

use super::assert_error;
use nimbus_test_support::until;

use super::cloud::Cloud;

fn things(tenant: &str) -> String {
    format!("/api/tenants/{tenant}/documents/things")
}

fn populate(server: &Server, tenants: &[&str]) {
    for tenant in tenants {
        server.create("/api/tenants", &json!({"id": tenant}));
        server.insert(tenant, "things", &json!({"of": tenant}));
    }
}

fn code(server: &Server, tenant: &str) -> (u16, String) {
    let (status, answer) = server.request("GET", &things(tenant), None);
    let code = answer["error"]["code"].as_str().unwrap_or_default();
    (status, code.to_owned())
}

fn serves(server: &Server, tenant: &str) -> bool {
    let (status, answer) = server.request("GET", &things(tenant), None);
    status == 200 && answer["data"][0]["of"] == json!(tenant)
}

fn ready(server: &Server) -> (u16, Value) {
    server.request("GET", "/ready", None)
}

#[test]
fn a_disabled_key_closes_what_it_opened_and_gives_it_back_when_enabled() {
    let cloud = Cloud::new();
    let server = cloud.start_with(&["--encryption-key-lease", "2s"]);
    populate(&server, &["one", "two"]);
    cloud.disable(&cloud.key);
    // Nobody asks for them: the lease alone closes them.
    until("both are closed by the lease", || {
        let log = server.log();
        log.matches("its lease was not renewed").count() == 3
    });
    let log = cloud.machine.find("nimbus-audit.log");
    let log = fs::read_to_string(log).expect("the audit log");
    for subject in ["tenant:one:", "tenant:two:", "nimbus-control.db"] {
        let mut lines = log.lines().filter(|line| line.contains("\"revocation\""));
        assert!(lines.any(|line| line.contains(subject)), "{subject}: {log}");
    }
    for tenant in ["one", "two"] {
        let (status, answer) = server.request("GET", &things(tenant), None);
        assert_error(status, &answer, (503, "encryption.key_revoked"));
        assert!(answer.to_string().contains("enable-key"), "{answer}");
    }
    // The control file is under the same key: what needs it waits, and /ready says so.
    let (status, state) = ready(&server);
    assert_eq!((status, &state["ready"]), (503, &json!(false)));
    let control = state["checks"]["control_file"]["error"].to_string();
    assert!(control.contains("disabled"), "{state}");
    assert_eq!(state["leases"]["files"], 0);
    assert_eq!(state["leases"]["keys_in_trouble"][0]["state"], "revoked");
    let (status, answer) = server.request("POST", "/api/tenants", Some(&json!({"id": "three"})));
    assert_error(status, &answer, (503, "encryption.key_revoked"));
    cloud.proxy.clear();
    for tenant in ["one", "two"] {
        until("it is served again", || serves(&server, tenant));
    }
    until("the server is ready", || ready(&server).0 == 200);
    populate(&server, &["three"]);
    server.stop();
}

#[test]
fn an_access_key_is_not_revoked_in_silence_while_the_control_file_is_withheld() {
    let cloud = Cloud::new();
    let server = cloud.start_with(&["--encryption-key-lease", "1s"]);
    populate(&server, &["one"]);
    let keys = "/api/tenants/one/keys";
    let make = |name: &str| {
        let made = server.create(keys, &json!({"name": name, "scope": "read"}));
        let text = |field: &str| made[field].as_str().expect("a text").to_owned();
        (text("id"), text("key"))
    };
    let (before, during) = (make("before"), make("during"));
    // What any valid key may ask, whether its tenant opens or not.
    let answered =
        |server: &Server, key: &str| server.request_as(key, "GET", "/openapi.json", None).0;
    let revoke = |id: &str| server.request("DELETE", &format!("{keys}/{id}"), None);
    assert_eq!(revoke(&before.0).0, 204);
    cloud.disable(&cloud.key);
    until("the control file is closed", || {
        !ready(&server).1["checks"]["control_file"]["error"].is_null()
    });
    let (status, answer) = revoke(&during.0);
    let message = assert_error(status, &answer, (503, "encryption.key_revoked"));
    assert!(message.contains("nimbus-control.db"), "{message}");
    let (status, answer) =
        server.request("POST", keys, Some(&json!({"name": "new", "scope": "read"})));
    assert_error(status, &answer, (503, "encryption.key_revoked"));
    // What was not done is not said to be: the one still counts, and the other stays revoked.
    assert_eq!(answered(&server, &during.1), 200);
    assert_eq!(answered(&server, &before.1), 401);
    cloud.proxy.clear();
    until("the server is ready", || ready(&server).0 == 200);
    let listed = server.get(keys)["keys"].take();
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!(answered(&server, &during.1), 200);
    assert_eq!(answered(&server, &before.1), 401);
    assert_eq!(revoke(&during.0).0, 204);
    assert_eq!(answered(&server, &during.1), 401);
    server.stop();
    let server = cloud.start();
    for (_id, key) in [&before, &during] {
        assert_eq!(answered(&server, key), 401);
    }
    server.stop();
}

#[test]
fn a_revoked_key_is_not_asked_by_every_request() {
    let cloud = Cloud::new();
    let server = cloud.start_with(&["--encryption-key-lease", "1s"]);
    populate(&server, &["one"]);
    cloud.disable(&cloud.key);
    until("it is closed", || {
        code(&server, "one").1 == "encryption.key_revoked"
    });
    let before = cloud.proxy.calls("Decrypt").len();
    let started = std::time::Instant::now();
    for _again in 0..300 {
        assert_eq!(code(&server, "one").1, "encryption.key_revoked");
    }
    let asked = cloud.proxy.calls("Decrypt").len() - before;
    let seconds = usize::try_from(started.elapsed().as_secs()).expect("few");
    assert!(asked <= seconds + 2, "{asked} calls in {seconds} s");
}

#[test]
fn a_policy_that_denies_one_tenant_stops_that_one_alone() {
    let cloud = Cloud::new();
    let server = cloud.start_with(&["--encryption-key-lease", "1s"]);
    populate(&server, &["one", "two"]);
    let denied = Fault::error(400, "AccessDeniedException", "by the key policy");
    cloud
        .proxy
        .inject_for("Decrypt", "db:sqlite:tenant:one:", denied);
    until("it is closed", || {
        code(&server, "one").1 == "encryption.key_revoked"
    });
    assert!(serves(&server, "two"));
    assert_eq!(ready(&server).0, 200);
    cloud.proxy.clear();
    until("it is served again", || serves(&server, "one"));
}

#[test]
fn an_unreachable_kms_is_ridden_out_for_the_grace_and_then_closes() {
    let cloud = Cloud::new();
    let server = cloud.start_with(&["--encryption-key-lease", "1s"]);
    populate(&server, &["one", "closed"]);
    // Closed and opened again it would need KMS.
    server.stop();
    let server = cloud.start_with(&[
        "--encryption-key-lease",
        "1s",
        "--encryption-key-grace",
        "1h",
    ]);
    assert!(serves(&server, "one"));
    let renewals = || cloud.proxy.calls("Decrypt").len();
    cloud.proxy.inject_always(Fault::Reset);
    let before = renewals();
    until("renewals have failed", || {
        renewals() > before + 5 && server.log().contains("does not answer")
    });
    assert!(serves(&server, "one"));
    assert_eq!(code(&server, "closed").1, "encryption.key_unavailable");
    let (_status, state) = ready(&server);
    let trouble = &state["leases"]["keys_in_trouble"][0];
    assert_eq!(trouble["state"], "unavailable");
    assert!(
        trouble["served_for_seconds"]
            .as_u64()
            .is_some_and(|left| left > 3000),
        "{state}"
    );
    cloud.proxy.clear();
    until("the outage is over", || serves(&server, "closed"));
    server.stop();

    let server = cloud.start_with(&[
        "--encryption-key-lease",
        "1s",
        "--encryption-key-grace",
        "0s",
    ]);
    assert!(serves(&server, "one"));
    cloud
        .proxy
        .inject_always(Fault::error(500, "KMSInternalException", "try again"));
    until("the grace is over", || {
        code(&server, "one").1 == "encryption.key_unavailable"
    });
    // Restarted during the outage it does not start, and says why.
    server.kill();
    cloud.start_that_ends().expect(1, &["KMS"]);
    cloud.proxy.clear();
    assert!(serves(&cloud.start(), "one"));
}

#[test]
fn clocks_that_are_apart_revoke_nobody() {
    let cloud = Cloud::new();
    let server = cloud.start_with(&["--encryption-key-lease", "1s"]);
    populate(&server, &["one"]);
    let renewals = || cloud.proxy.calls("Decrypt").len();
    for message in [
        "Signature not yet current: 20261129T031500Z is still later than 20261129T030730Z (20261129T030230Z + 5 min.)",
        "Signature expired: 20261129T030000Z is now earlier than 20261129T030730Z (20261129T031230Z - 5 min.)",
    ] {
        let apart = Fault::error(400, "InvalidSignatureException", message);
        cloud.proxy.inject("Decrypt", apart);
        let before = renewals();
        until("renewals have failed", || renewals() > before + 3);
        assert!(serves(&server, "one"));
        let (_status, state) = ready(&server);
        let trouble = &state["leases"]["keys_in_trouble"][0];
        assert_eq!(trouble["state"], "unavailable", "{state}");
        cloud.proxy.clear();
        until("the clocks agree again", || {
            ready(&server).1["leases"]["keys_in_trouble"] == json!([])
        });
    }
    assert!(serves(&server, "one"));
    server.stop();
    let log = fs::read_to_string(cloud.machine.find("nimbus-audit.log")).expect("the audit log");
    assert!(!log.contains("\"revocation\""), "{log}");
}

#[test]
fn a_start_asks_for_the_control_file_alone_and_a_tenant_once_when_it_is_first_used() {
    let cloud = Cloud::new();
    let server = cloud.start();
    let tenants: Vec<String> = (0..20).map(|number| format!("t{number}")).collect();
    populate(
        &server,
        &tenants.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    server.stop();
    let decrypts = || cloud.proxy.calls("Decrypt").len();
    let before = decrypts();
    let server = cloud.start();
    assert_eq!(decrypts(), before + 1);
    for again in 0..3 {
        for tenant in &tenants {
            assert!(serves(&server, tenant), "{again}");
        }
    }
    assert_eq!(decrypts(), before + 1 + tenants.len());
}

#[test]
fn the_holder_of_a_tenants_own_key_stops_that_tenant_alone() {
    let cloud = Cloud::new();
    let own = cloud.moto.create_key();
    let map = cloud.machine.path("keys.json");
    let write = |keys: &Value| fs::write(&map, keys.to_string()).expect("the key map");
    write(&json!({"acme": own, "not-yet-there": own}));
    let path = map.to_str().expect("UTF-8");
    let arguments = [
        "--encryption-key-lease",
        "1s",
        "--encryption-aws-kms-key-map",
        path,
    ];
    let server = cloud.start_with(&arguments);
    populate(&server, &["acme", "other"]);
    let wrapped_by = |server: &Server, tenant: &str| {
        let files = server.get("/debug/encryption/status")["files"].take();
        let files = files.as_array().expect("files").clone();
        let name = format!("{tenant}.sqlite3");
        let file = files.iter().find(|file| file["path"] == name).expect("it");
        file["wraps"][0]["key_id"]
            .as_str()
            .expect("a key")
            .to_owned()
    };
    assert_eq!(wrapped_by(&server, "acme"), own);
    assert_eq!(wrapped_by(&server, "other"), cloud.key);
    cloud.disable(&own);
    until("it is closed", || {
        code(&server, "acme").1 == "encryption.key_revoked"
    });
    assert!(serves(&server, "other"));
    assert_eq!(ready(&server).0, 200, "a tenant's trouble is its own");
    cloud.proxy.clear();
    until("it is served again", || serves(&server, "acme"));
    server.stop();

    // One that gets a key of its own later is under the old one until it is moved.
    let later = cloud.moto.create_key();
    write(&json!({"acme": own, "other": later}));
    let server = cloud.start_with(&arguments);
    assert!(serves(&server, "acme") && serves(&server, "other"));
    assert_eq!(wrapped_by(&server, "other"), cloud.key);
    let data = cloud.machine.data_dir();
    let rotate = [
        "encryption",
        "rotate-kek",
        "--all",
        "--path",
        data.to_str().expect("UTF-8"),
    ];
    cloud
        .machine
        .run_to_end(cloud.with_settings(&rotate))
        .expect(0, &[]);
    assert_eq!(wrapped_by(&server, "other"), later);
    assert_eq!(wrapped_by(&server, "acme"), own);
    // Open all the time, it now hangs on the new key.
    cloud.disable(&cloud.key);
    cloud.disable(&later);
    until("it is closed", || {
        code(&server, "other").1 == "encryption.key_revoked"
    });
    assert!(serves(&server, "acme"));
}

#[test]
fn shred_can_disable_the_key_that_was_the_tenants_alone() {
    let cloud = Cloud::new();
    let (own, shared) = (cloud.moto.create_key(), cloud.moto.create_key());
    let map = cloud.machine.path("keys.json");
    let keys = json!({"acme": own, "two": shared, "three": shared});
    fs::write(&map, keys.to_string()).expect("the key map");
    let server = cloud.start_with(&["--encryption-aws-kms-key-map", map.to_str().expect("UTF-8")]);
    populate(&server, &["acme", "two", "three"]);
    let state = |key: &str| {
        let reply = cloud
            .moto
            .kms("us-east-1", "DescribeKey", &json!({"KeyId": key}));
        reply["KeyMetadata"]["KeyState"]
            .as_str()
            .expect("a state")
            .to_owned()
    };
    let shred = |tenant: &str, more: &[&str]| {
        let arguments = [
            &["encryption", "shred", "--yes", "--tenant-id", tenant],
            more,
        ]
        .concat();
        cloud.machine.run_to_end(cloud.with_settings(&arguments))
    };
    shred("two", &["--disable-kms-key"]).expect(0, &["no KMS key of its own", "rotate-kek"]);
    assert_eq!(state(&shared), "Enabled");
    shred("acme", &["--disable-kms-key"])
        .expect(0, &["is disabled", "schedule-key-deletion", &own]);
    assert_eq!(state(&own), "Disabled");
    // The last one under a key that two had: the map still names both.
    shred("three", &[]).expect(0, &["rotate-kek"]);
    server.stop();
}

/// Within the lease and this, whatever happens, nothing is served under a key that was denied.
const MARGIN: Duration = Duration::from_secs(5);

#[test]
fn a_denial_is_noticed_in_time_beside_a_key_that_does_not_answer_and_for_each_of_many_files() {
    const LEASE: Duration = Duration::from_secs(12);
    let cloud = Cloud::new();
    let (silent, many) = (cloud.moto.create_key(), cloud.moto.create_key());
    let names: Vec<String> = (0..60).map(|number| format!("m{number}")).collect();
    let mut keys: BTreeMap<&str, &str> = names.iter().map(|name| (&**name, &*many)).collect();
    keys.insert("silent", &silent);
    let map = cloud.machine.path("keys.json");
    fs::write(&map, json!(keys).to_string()).expect("the key map");
    let server = cloud.start_with(&[
        "--encryption-key-lease",
        "12s",
        "--encryption-aws-kms-key-map",
        map.to_str().expect("UTF-8"),
    ]);
    populate(&server, &["silent"]);
    populate(
        &server,
        &names.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    cloud.proxy.inject_for("Decrypt", &silent, Fault::Hang);
    let asked = || {
        let calls = cloud.proxy.calls("Decrypt");
        calls.iter().filter(|call| call.contains(&*silent)).count()
    };
    let before = asked();
    until("the silent key is asked", || asked() > before);

    // One of many, by a policy that looks at the encryption context.
    let denied = Fault::error(400, "AccessDeniedException", "by the key policy");
    let subject = "db:sqlite:tenant:m59:";
    cloud.proxy.inject_for("Decrypt", subject, denied);
    let closed = |what: &str, count: usize, since: Instant| {
        until(what, || {
            let log = server.log();
            log.matches("its lease was not renewed").count() == count
        });
        let took = since.elapsed();
        assert!(took < LEASE + MARGIN, "{what}: {took:?}");
    };
    closed("one file is closed", 1, Instant::now());
    assert_eq!(code(&server, "m59").1, "encryption.key_revoked");
    assert!(serves(&server, "m0") && serves(&server, "m58"));

    // All of them, by the key itself.
    cloud.disable(&many);
    closed("all files are closed", 60, Instant::now());
    for name in ["m0", "m30", "m58"] {
        assert_eq!(code(&server, name).1, "encryption.key_revoked");
    }
    assert!(serves(&server, "silent"), "silence is ridden out");
    server.stop();
}

#[test]
fn without_its_keeper_a_lease_ends_all_the_same() {
    let cloud = Cloud::new();
    let mut command = cloud.command();
    command
        .args(["--encryption-key-lease", "1s"])
        .env("FAILPOINTS", "leases::keep=8*off->panic");
    let server = cloud.machine.start_command(command);
    populate(&server, &["one"]);
    until("the keeper is gone", || {
        ready(&server).1["checks"]["background"]["error"].is_string()
    });
    cloud.disable(&cloud.key);
    let denied = Instant::now();
    until("nothing is served", || code(&server, "one").0 == 503);
    assert!(denied.elapsed() < Duration::from_secs(1) + MARGIN);
    // It is closed by whoever asks for it, and the key asked for.
    until("the provider's answer is told", || {
        code(&server, "one").1 == "encryption.key_revoked"
    });
    cloud.proxy.clear();
    until("it is served again", || serves(&server, "one"));
}
