//! What `nimbus backup list --tenant-id` says of one tenant.

use serde_json::{Value, json};

use super::shipping::{begun, instant, pass, ships, stamp};
use super::{Ran, add, as_str, backup, filled, machine, restore};

fn text<'a>(range: &'a Value, name: &str) -> &'a str {
    range[name]
        .as_str()
        .unwrap_or_else(|| panic!("{name} in {range}"))
}

#[test]
fn the_times_of_a_tenant_are_its_own() {
    let machine = machine();
    filled(&machine, &["a", "never-shipped"]).stop();
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &["Snapshot 1"]);
    let server = machine.start(&[]);
    let gone = server
        .request("DELETE", "/api/tenants/never-shipped", None)
        .0;
    assert_eq!(gone, 204);
    server.stop();
    let server = ships(&machine, &[], &[]);
    begun(&server);
    let before = instant(&server, &["a"]);
    drop(server.create("/api/tenants", &json!({"id": "late"})));
    add(&server, "late", 3);
    let first = instant(&server, &["late"]);
    pass(&server, first.ms);
    assert_eq!(server.request("DELETE", "/api/tenants/late", None).0, 204);
    pass(&server, instant(&server, &[]).ms);
    let between = instant(&server, &["a"]);
    pass(&server, between.ms);
    drop(server.create("/api/tenants", &json!({"id": "late"})));
    add(&server, "late", 1);
    let second = instant(&server, &["late"]);
    pass(&server, second.ms);
    server.stop();
    let list = |tenant: &str, more: &[&str]| -> Ran {
        let list = ["list", "--from", "repo", "--tenant-id", tenant];
        let ran = backup(&machine, &[&list[..], more].concat());
        let _ = ran.expect(0, &[]);
        ran
    };
    let ranges = |tenant: &str| -> Vec<Value> {
        let listed = list(tenant, &["--format", "json"]).json();
        listed["ranges"].as_array().expect("ranges").clone()
    };
    let late = ranges("late");
    assert_eq!(late.len(), 2, "{late:?}");
    assert_ne!(late[0]["file_id"], late[1]["file_id"]);
    let is_within = |range: &Value, ms: i64| {
        let at = stamp(ms);
        text(range, "from") <= at.as_str() && at.as_str() <= text(range, "to")
    };
    let of = |ms: i64| -> Vec<usize> {
        let within = (0..late.len()).filter(|at| is_within(&late[*at], ms));
        within.collect()
    };
    for range in &late {
        assert_eq!(range["granularity"], "commit");
        assert!(range["changes"].as_u64() >= Some(1), "{range}");
        assert!(range["bytes"].as_u64() > Some(4096), "{range}");
        assert!(range["stored"].as_u64() > Some(4096), "{range}");
    }
    // As a restoration has it.
    let data = machine.data_dir();
    for (ms, expected) in [
        (before.ms, None),
        (first.ms, Some(0)),
        (between.ms, None),
        (second.ms, Some(1)),
    ] {
        assert_eq!(of(ms).first().copied(), expected, "{ms} in {late:?}");
        let at = stamp(ms);
        let one = ["--tenant-id", "late", "--as", "x", "--dry-run", "--at", &at];
        let restored = restore(&machine, as_str(&data), &one);
        match expected {
            Some(place) => {
                let restored = restore(
                    &machine,
                    as_str(&data),
                    &[&one[..], &["--format", "json"]].concat(),
                );
                assert_eq!(restored.json()["file_id"], late[place]["file_id"]);
            }
            None => drop(restored.expect(1, &["holds the tenant late"])),
        }
    }
    // The ends, to the millisecond: there is a tenant at each, and none beside the first one.
    for range in &late {
        for end in ["from", "to"] {
            let at = text(range, end);
            let one = ["--tenant-id", "late", "--as", "x", "--dry-run", "--at", at];
            let one = restore(&machine, as_str(&data), &one);
            let _ = one.expect(0, &["Would restore tenant late"]);
        }
    }
    // Of one that was there before, the snapshot and the commits, which are one file.
    let a = ranges("a");
    assert_eq!(a.len(), 2, "{a:?}");
    assert_eq!(a[0]["file_id"], a[1]["file_id"]);
    assert_eq!(
        (&a[0]["granularity"], &a[0]["snapshots"]),
        (&json!("snapshot"), &json!([1]))
    );
    assert_eq!(
        (&a[1]["granularity"], &a[1]["epoch"]),
        (&json!("commit"), &json!(1))
    );
    assert!(is_within(&a[1], second.ms) && !is_within(&a[1], i64::from(0)));
    let lone = ranges("never-shipped");
    assert_eq!(lone.len(), 1, "{lone:?}");
    assert_eq!(lone[0]["changes"], Value::Null);
    assert_eq!(ranges("nobody"), [] as [Value; 0]);
    let file = text(&late[0], "file_id");
    let shown = format!("File {file}: any commit from {}", text(&late[0], "from"));
    let _ = list("late", &[]).expect(0, &[&shown, "shipped, ", "at the end"]);
    let _ = list("never-shipped", &[]).expect(0, &["the snapshot alone, of", "snapshot 1"]);
    assert!(
        !list("late", &[]).said().contains("Any commit"),
        "the deployment's"
    );
}
