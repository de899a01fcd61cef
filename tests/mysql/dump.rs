//! A dump of the databases, and what is made of it elsewhere.

use std::fs::File;

use nimbus_test_support::{MariaDb, Server};
use serde_json::json;

use super::{House, make_tenant};

#[test]
fn a_dump_of_a_running_deployment_is_restored_elsewhere() {
    let house = House::new();
    let server = house.start();
    for tenant in ["acme", "a-b", "a_b"] {
        make_tenant(&server, tenant);
        for n in 0..20 {
            let fields = json!({"n": n, "odd": "it's \\ \u{0} \u{1F600}", "of": tenant});
            let _ = server.insert(tenant, "t", &fields);
        }
    }
    let schema = json!({"table": "t", "indexes": [{"name": "n", "fields": ["n"], "unique": true}]});
    let path = "/api/tenants/acme/schema/t";
    assert_eq!(server.request("PUT", path, Some(&schema)).0, 204);
    let kept = |server: &Server| {
        let paths = ["acme", "a-b", "a_b"].map(|tenant| {
            ["documents/t", "journal", "schema"].map(|what| format!("/api/tenants/{tenant}/{what}"))
        });
        let paths = paths.into_iter().flatten();
        paths.map(|path| server.get(&path)).collect::<Vec<_>>()
    };
    let all = kept(&server);
    let dump = house.machine.path("app.sql");
    let shared = MariaDb::shared();
    let databases = format!(
        "SELECT schema_name FROM information_schema.schemata WHERE schema_name LIKE '%{}%'",
        house.unique
    );
    let databases = shared.sql(&databases).expect("the databases of this test");
    assert_eq!(databases.lines().count(), 4, "{databases}");
    let dumped = shared
        .client("mariadb-dump")
        .args(["--single-transaction", "--hex-blob", "--databases"])
        .args(databases.lines())
        .stdout(File::create(&dump).expect("a file"))
        .status();
    assert!(dumped.expect("mariadb-dump runs").success());
    let _late = server.insert("acme", "t", &json!({"n": "after the dump"}));
    server.stop();

    let elsewhere = MariaDb::start();
    let restored = elsewhere
        .client("mariadb")
        .stdin(File::open(&dump).expect("the dump"))
        .status();
    assert!(restored.expect("mariadb runs").success());
    let mut command = house.nimbus(&["start", "--port", "0"]);
    let _ = command.env("NIMBUS_MYSQL_URL", elsewhere.url());
    let server = house.machine.start_command(command);
    assert_eq!(kept(&server), all);
    let again = json!({"table": "t", "fields": {"n": 7}});
    let documents = "/api/tenants/acme/documents";
    assert_eq!(
        server.request("POST", documents, Some(&again)).0,
        409,
        "the index is there, too"
    );
    let _ = server.insert("acme", "t", &json!({"n": "goes on"}));
    server.stop();
}
