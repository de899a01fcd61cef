//! A dump of the database, and what is made of it elsewhere.

use nimbus_test_support::{Postgres, Server};
use serde_json::json;

use super::{House, make_tenant};

#[test]
fn a_dump_of_a_running_deployment_is_restored_elsewhere() {
    let house = House::new();
    let server = house.start();
    make_tenant(&server, "acme");
    for n in 0..20 {
        let _ = server.insert("acme", "t", &json!({"n": n}));
    }
    let kept = |server: &Server| {
        ["documents/t", "journal"].map(|path| server.get(&format!("/api/tenants/acme/{path}")))
    };
    let all = kept(&server);
    let run = |mut command: std::process::Command| {
        let ended = command.output().expect("it runs");
        assert!(
            ended.status.success(),
            "{}",
            String::from_utf8_lossy(&ended.stderr)
        );
    };
    let dump = house.machine.path("app.dump");
    let mut dumping = Postgres::client("pg_dump", &house.url);
    // Unquoted, a pattern is in lower case.
    let of_this_house = format!("*\"{}\"*", house.unique);
    let _ = dumping
        .args(["--format=custom", "--schema", &of_this_house, "--file"])
        .arg(&dump);
    run(dumping);
    let _late = server.insert("acme", "t", &json!({"n": "after the dump"}));
    server.stop();

    let name = format!("copy_{}", house.unique.to_lowercase());
    let mut making = Postgres::client("psql", &house.url);
    let _ = making.args(["--command", &format!("CREATE DATABASE {name}")]);
    run(making);
    let elsewhere = house.url.replace("/postgres", &format!("/{name}"));
    let mut restoring = Postgres::client("pg_restore", &elsewhere);
    let _ = restoring.arg(&dump);
    run(restoring);
    let mut command = house.nimbus(&["start", "--port", "0"]);
    let _ = command.env("NIMBUS_POSTGRES_URL", &elsewhere);
    let server = house.machine.start_command(command);
    assert_eq!(kept(&server), all);
    let _ = server.insert("acme", "t", &json!({"n": "goes on"}));
    server.stop();
}
