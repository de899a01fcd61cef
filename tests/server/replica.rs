//! A multi-Region KMS key: what was made in one region is opened in another.

use serde_json::json;

use super::cloud::Cloud;

#[test]
fn a_server_in_another_region_opens_with_the_replica_what_the_primary_wrapped() {
    let mut cloud = Cloud::new();
    let primary = cloud.proxy.replica(&cloud.key, "us-east-1");
    let replica = cloud.proxy.replica(&cloud.key, "eu-west-1");
    let id = primary.rsplit('/').next().expect("an id");
    cloud.key.clone_from(&primary);
    let server = cloud.start();
    server.create("/api/tenants", &json!({"id": "one"}));
    server.insert("one", "things", &json!({"of": "one"}));
    server.stop();
    for name in [&*replica, id, &*primary] {
        let before = cloud.proxy.calls("Decrypt").len();
        let mut command = cloud.command();
        command
            .env("NIMBUS_ENCRYPTION_AWS_REGION", "eu-west-1")
            .env("NIMBUS_ENCRYPTION_AWS_KMS_KEY_ID", name);
        let server = cloud.machine.start_command(command);
        let things = server.get("/api/tenants/one/documents/things");
        assert_eq!(things["data"][0]["of"], "one", "{name}");
        let calls = cloud.proxy.calls("Decrypt").split_off(before);
        assert!(!calls.is_empty());
        for call in calls {
            assert!(call.contains(&replica), "{name}: {call}");
        }
        // It is the same key: nothing is behind, and nothing must be moved.
        let found = server.get("/debug/encryption/status?verify=open");
        assert_eq!(found["summary"]["ok"], 2, "{found}");
        let found = server.get("/debug/encryption/status?verify=none");
        assert_eq!(found["summary"]["ok"], 2, "{found}");
        let doctor = server.get("/debug/doctor").to_string();
        assert!(!doctor.contains("rotate-kek --all --path"), "{doctor}");
        server.stop();
    }
}
