//! Tenants whose customers hold their KMS keys, and rotations of the key of all others.

use std::fs;
use std::thread;
use std::time::Duration;

use nimbus_test_support::{Ended, Server};
use serde_json::{Value, json};

use super::cloud::Cloud;

/// `acme` under a key of its own, `other` under the shared one.
struct Scene {
    cloud: Cloud,
    own: String,
    new: String,
}

impl Scene {
    fn new() -> Self {
        let cloud = Cloud::new();
        let (own, new) = (cloud.moto.create_key(), cloud.moto.create_key());
        Self { cloud, own, new }
    }

    /// Starts with a key map of these tenants, all under the customer's key.
    fn start(&self, mapped: &[&str]) -> Server {
        let keys: serde_json::Map<String, Value> = mapped
            .iter()
            .map(|tenant| ((*tenant).to_owned(), json!(self.own)))
            .collect();
        let map = self.cloud.machine.path("keys.json");
        fs::write(&map, Value::from(keys).to_string()).expect("the key map");
        let map = map.to_str().expect("UTF-8");
        self.cloud
            .start_with(&["--encryption-aws-kms-key-map", map])
    }

    fn rotate(&self, more: &[&str]) -> Ended {
        let data = self.cloud.machine.data_dir();
        let mut command = self
            .cloud
            .with_settings(&["encryption", "rotate-kek", "--all"]);
        command
            .arg("--path")
            .arg(data)
            .args(["--new-aws-kms-key-id", &self.new])
            .args(["--new-aws-region", "us-east-1"])
            .args(["--new-aws-endpoint-url", self.cloud.proxy.url()])
            .args(more);
        self.cloud.machine.run_to_end(command)
    }

    fn audit(&self) -> String {
        let log = self.cloud.machine.find("nimbus-audit.log");
        fs::read_to_string(log).expect("the audit log")
    }
}

fn wrapped_by(server: &Server, tenant: &str) -> String {
    let files = server.get("/debug/encryption/status")["files"].take();
    let name = format!("{tenant}.sqlite3");
    let mut files = files.as_array().expect("files").iter();
    let file = files.find(|file| file["path"] == name).expect("it");
    file["wraps"][0]["key_id"]
        .as_str()
        .expect("a key")
        .to_owned()
}

fn make(server: &Server, tenants: &[&str]) {
    for tenant in tenants {
        server.create("/api/tenants", &json!({"id": tenant}));
        server.insert(tenant, "things", &json!({"of": tenant}));
    }
}

#[test]
fn a_rotation_leaves_tenants_of_the_key_map_under_their_own_keys() {
    let scene = Scene::new();
    let server = scene.start(&["acme", "later"]);
    make(&server, &["acme", "other"]);
    let said = scene.rotate(&[]);
    said.expect(
        0,
        &["2 rewrapped, 1 had it already, 0 failed", "1 of them stay"],
    );
    assert_eq!(wrapped_by(&server, "acme"), scene.own);
    assert_eq!(wrapped_by(&server, "other"), scene.new);
    // What is made afterwards goes by the map, too.
    make(&server, &["later", "another"]);
    assert_eq!(wrapped_by(&server, "later"), scene.own);
    assert_eq!(wrapped_by(&server, "another"), scene.new);
    assert!(!scene.audit().contains("--move-mapped"));
    // And a second rotation of the same server: nothing is left to move.
    scene
        .rotate(&[])
        .expect(0, &["0 rewrapped, 5 had it already", "2 of them stay"]);
    let one = scene.cloud.machine.data_dir().join("acme.sqlite3");
    let request = json!({"path": one, "new_aws_kms_key_id": scene.new, "new_aws_region": "us-east-1",
        "new_aws_endpoint_url": scene.cloud.proxy.url()});
    let rotated = operate(&server, &request);
    assert_eq!(rotated["kept"], 1, "{rotated}");
    assert_eq!(wrapped_by(&server, "acme"), scene.own);
    server.stop();
}

#[test]
fn a_tenant_that_got_its_own_key_later_moves_to_that_one_and_not_to_the_new() {
    let scene = Scene::new();
    let server = scene.start(&[]);
    make(&server, &["acme", "other"]);
    server.stop();
    let server = scene.start(&["acme"]);
    assert_eq!(wrapped_by(&server, "acme"), scene.cloud.key);
    scene
        .rotate(&[])
        .expect(0, &["3 rewrapped, 0 had it already", "1 of them stay"]);
    assert_eq!(wrapped_by(&server, "acme"), scene.own);
    assert_eq!(wrapped_by(&server, "other"), scene.new);
    server.stop();
}

#[test]
fn a_mapped_tenant_moves_when_that_is_said_and_the_audit_log_says_so() {
    let scene = Scene::new();
    let server = scene.start(&["acme"]);
    make(&server, &["acme", "other"]);
    scene
        .rotate(&["--move-mapped"])
        .expect(0, &["3 rewrapped, 0 had it already"]);
    assert_eq!(wrapped_by(&server, "acme"), scene.new);
    let log = scene.audit();
    let said: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("--move-mapped"))
        .collect();
    assert!(
        said.iter().all(|line| line.contains("tenant:acme:")),
        "{said:?}"
    );
    for outcome in ["begun", "done"] {
        let outcome = format!("\"outcome\":\"{outcome}\"");
        assert!(said.iter().any(|line| line.contains(&outcome)), "{said:?}");
    }
    server.stop();
    let data = scene.cloud.machine.data_dir();
    let mut nowhere = scene
        .cloud
        .with_settings(&["encryption", "rotate-kek", "--all"]);
    nowhere.arg("--path").arg(data).arg("--move-mapped");
    scene
        .cloud
        .machine
        .run_to_end(nowhere)
        .expect(2, &["--move-mapped goes with a new key"]);
}

fn operate(server: &Server, request: &Value) -> Value {
    let route = "/api/admin/encryption/rotate-kek";
    let (status, begun) = server.request("POST", route, Some(request));
    assert_eq!(status, 202, "{begun}");
    let operation = begun["operation"].as_str().expect("an id");
    loop {
        let mut answer = server.get(&format!("/api/admin/operations/{operation}"));
        if answer["state"] != "running" {
            assert_eq!(answer["state"], "done", "{answer}");
            return answer["result"].take();
        }
        thread::sleep(Duration::from_millis(5));
    }
}
