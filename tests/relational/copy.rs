//! A tenant goes from files into a database, and back: with the command, and with kills in between.

use std::process::Command;

use nimbus_test_support::{Machine, Server, until};
use serde_json::{Value, json};

use super::{House, NAME, journal, make_tenant, tenants};

/// A GET with a credential: the body as it came.
fn text(server: &Server, credential: &str, path: &str) -> String {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: nimbus\r\nAuthorization: Bearer {credential}\r\nConnection: close\r\n\r\n"
    );
    let answer = server.raw(request.as_bytes()).expect("an answer");
    assert_eq!(answer.status, 200, "{path}: {:?}", answer.body);
    String::from_utf8(answer.bytes().to_vec()).expect("UTF-8")
}

/// What a client has in hands when its tenant moves.
struct Client {
    /// An access key, and one that was revoked.
    key: String,
    revoked: String,
    job: String,
    /// A cursor of the second page, and the answer to it.
    cursor: String,
    page: Value,
    once: Value,
}

const PEOPLE: &str = "/api/tenants/acme/documents/people";

impl Client {
    /// Makes a tenant that has something of everything.
    fn fill(server: &Server, token: &str) -> Self {
        make_tenant(server, "acme");
        let schema = json!({"table": "people", "fields": [{"name": "name", "field_type": "string", "required": true}],
            "indexes": [{"name": "by_name", "fields": ["name"], "unique": true}, {"name": "by_age", "fields": ["age"]}]});
        // A table without documents, and one whose number another has in the journal.
        let gone = server.insert("acme", "gone", &json!({"n": 1}));
        let path = format!("/api/tenants/acme/documents/gone/{gone}");
        assert_eq!(server.request("DELETE", &path, None).0, 204);
        for n in 0..40 {
            let _ = server.insert(
                "acme",
                "people",
                &json!({"name": format!("n{n}"), "age": n % 7}),
            );
        }
        let put = server.request("PUT", "/api/tenants/acme/schema/people", Some(&schema));
        assert_eq!(put.0, 204, "{}", put.1);
        let first = server.get(&format!("{PEOPLE}?limit=1"))["data"][0]["_id"].clone();
        let path = format!("{PEOPLE}/{}", first.as_str().expect("an id"));
        let patched = server.request("PATCH", &path, Some(&json!({"patch": {"age": 99}})));
        assert_eq!(patched.0, 200, "{}", patched.1);
        let odd = r#"{"n":9007199254740993,"d":1.10,"nul":"\u0000","z":1,"a":{"b":[1,null]}}"#;
        let body = format!(r#"{{"table":"odd","fields":{odd}}}"#);
        let request = format!(
            "POST /api/tenants/acme/documents HTTP/1.1\r\nHost: nimbus\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        assert_eq!(
            server.raw(request.as_bytes()).expect("an answer").status,
            201
        );
        let cron = json!({"name": "nightly", "schedule": {"type": "interval", "seconds": 3600},
            "mutation": {"type": "insert", "table": "done", "fields": {"by": "cron"}}});
        let _ = server.create("/api/tenants/acme/crons", &cron);
        let job = |after: i64| json!({"run_after_ms": after, "mutation": {"type": "insert", "table": "done", "fields": {"by": "job"}}});
        let ran = server.create("/api/tenants/acme/schedule", &job(0))["job_id"].clone();
        let ran = ran.as_str().expect("an id").to_owned();
        until("the job ran", || {
            let path = format!("/api/tenants/acme/schedule/history/{ran}");
            server.request("GET", &path, None).0 == 200
        });
        let _ = server.create("/api/tenants/acme/schedule", &job(3_600_000));
        for name in ["first", "second"] {
            let deploy = json!({"name": name, "schemas": [schema], "crons": [], "files": [{"path": "index.html",
                "sha256": "e7fbb6fbbf4ce294913eb62b53ff03a7546649cfdc0d824d9e3a2b4541502f7f",
                "content_base64": "PGgxPmhpPC9oMT4="}]});
            let _ = server.create("/api/tenants/acme/deploy", &deploy);
        }
        let activated = server.request("POST", "/api/tenants/acme/deploy/1/activate", None);
        assert_eq!(activated.0, 200, "{}", activated.1);
        let make_key = || {
            server.create(
                "/api/tenants/acme/keys",
                &json!({"name": "app", "scope": "write"}),
            )
        };
        let (key, revoked) = (make_key(), make_key());
        let path = format!(
            "/api/tenants/acme/keys/{}",
            revoked["id"].as_str().expect("an id")
        );
        assert_eq!(server.request("DELETE", &path, None).0, 204);
        let cursor = Self::page(server, None)["next_cursor"].clone();
        let cursor = cursor.as_str().expect("a cursor").to_owned();
        let secret = |key: &Value| key["key"].as_str().expect("a key").to_owned();
        let mut client = Self {
            key: secret(&key),
            revoked: secret(&revoked),
            job: ran,
            page: Self::page(server, Some(&cursor)),
            cursor,
            once: Value::Null,
        };
        client.once = client.send_once(server);
        client
    }

    fn page(server: &Server, after: Option<&str>) -> Value {
        let query = json!({"table": "people", "order": {"field": "age"}});
        let body = json!({"query": query, "page_size": 9, "after": after});
        let (status, page) =
            server.request("POST", "/api/tenants/acme/query/paginated", Some(&body));
        assert_eq!(status, 200, "{page}");
        page
    }

    fn send_once(&self, server: &Server) -> Value {
        let sent = server.try_request_with(
            &self.key,
            &[("Idempotency-Key", "\"once-and-for-all\"")],
            "POST",
            "/api/tenants/acme/documents",
            Some(&json!({"table": "people", "fields": {"name": "once"}})),
        );
        let (status, answer) = sent.expect("an answer");
        assert_eq!(status, 201, "{answer}");
        answer
    }

    /// All that a client can see of the tenant, byte for byte.
    fn sees(&self, server: &Server, token: &str) -> Vec<String> {
        let paths = [
            "documents/people?limit=500",
            "documents/odd",
            "documents/done",
            "documents/gone",
            "schema",
            "journal?limit=500",
            "deploy",
            "schedule",
            "crons",
            "keys",
            &format!("schedule/history/{}", self.job),
        ];
        let seen = paths.map(|path| text(server, token, &format!("/api/tenants/acme/{path}")));
        let mut seen = Vec::from(seen);
        seen.push(text(server, &self.key, "/apps/acme/index.html"));
        seen
    }

    /// The tenant serves its client as if it had never moved.
    fn assert_served(&self, server: &Server, before: &[String]) {
        let token = &self.key;
        let (status, _) = server.request_as(&self.revoked, "GET", PEOPLE, None);
        assert_eq!(status, 401);
        let twice = json!({"table": "people", "fields": {"name": "n3"}});
        let refused = server.request_as(token, "POST", "/api/tenants/acme/documents", Some(&twice));
        assert_eq!(refused.0, 409, "{}", refused.1);
        assert_eq!(self.send_once(server), self.once, "it is done once");
        assert_eq!(
            Self::page(server, Some(&self.cursor))["data"],
            self.page["data"],
            "a cursor goes on"
        );
        let latest = *journal(server, "acme").last().expect("a write");
        let inserted = server.create(
            "/api/tenants/acme/documents",
            &json!({"table": "people", "fields": {"name": format!("after {latest}")}}),
        );
        assert_eq!(inserted["version"], latest + 1);
        assert!(
            before
                .iter()
                .any(|seen| seen.contains("9007199254740993") && seen.contains("1.10"))
        );
    }
}

/// The command on a machine whose own tenants are in files.
fn copy(machine: &Machine, from: &str, to: &str, more: &[&str]) -> Command {
    let mut arguments = vec![
        "tenant",
        "copy",
        "--tenant-id",
        "acme",
        "--from",
        from,
        "--to",
        to,
    ];
    arguments.extend(more);
    machine.nimbus(&arguments)
}

#[test]
fn a_tenant_goes_from_files_into_the_database_and_back_and_its_clients_cannot_tell() {
    let house = House::new();
    let files = &house.machine;
    let database = files.path("database.json");
    std::fs::write(&database, house.settings().to_string()).expect("a file");
    let database = database.to_str().expect("UTF-8");
    let server = files.start(&[]);
    let client = Client::fill(&server, &files.token());
    make_tenant(&server, "other");
    let before = client.sees(&server, &files.token());
    // Nobody else may have the files.
    let run = |command| files.run_to_end(command);
    run(copy(files, "this", database, &["--unencrypted"])).expect(1, &["in use"]);
    server.stop();

    // Plaintext is asked for by name.
    run(copy(files, "this", database, &[])).expect(2, &["--unencrypted", NAME]);
    run(copy(files, "this", "this", &["--unencrypted"])).expect(2, &["both files in"]);
    let copied = run(copy(
        files,
        "this",
        database,
        &["--unencrypted", "--format", "json"],
    ));
    copied.expect(
        0,
        &[
            "\"documents\": 43",
            "\"access_keys\": 1",
            "\"generations\": 2",
        ],
    );
    run(copy(files, "this", database, &["--unencrypted"])).expect(1, &["acme exists already"]);
    files
        .run_to_end(files.nimbus(&[
            "tenant",
            "copy",
            "--tenant-id",
            "nobody",
            "--from",
            "this",
            "--to",
            database,
            "--unencrypted",
        ]))
        .expect(1, &["source", "no tenant nobody"]);
    // The log of the deployment says that plaintext left it.
    let audit = files.run_to_end(files.nimbus(&["encryption", "audit"]));
    audit.expect(0, &["export"]);

    let moved = house.beside();
    let server = moved.start();
    assert_eq!(tenants(&server), ["acme"]);
    let token = moved.machine.token();
    assert_eq!(client.sees(&server, &token), before);
    client.assert_served(&server, &before);
    let before = client.sees(&server, &token);

    // Back, into another deployment, while this server runs: the tenant is held by its lock.
    let back = House::new();
    let back = &back.machine;
    let away = back.start(&[]);
    away.stop();
    let settings = back.path("database.json");
    std::fs::write(&settings, house.settings().to_string()).expect("a file");
    let settings = settings.to_str().expect("UTF-8");
    back.run_to_end(copy(back, settings, "this", &[]))
        .expect(1, &["nimbus encryption lock --tenant-id acme"]);
    let lock = moved.nimbus(&["encryption", "lock", "--tenant-id", "acme"]);
    moved.machine.run_to_end(lock).expect(0, &["locked"]);
    let copied = back.run_to_end(copy(back, settings, "this", &[]));
    copied.expect(0, &["compared all of it", "44 documents"]);
    server.stop();
    let server = back.start(&[]);
    assert_eq!(client.sees(&server, &back.token()), before);
    client.assert_served(&server, &before);
    let status = back.run_to_end(back.nimbus(&["encryption", "status", "--verify", "pages"]));
    status.expect(0, &["acme.sqlite3"]);
    server.stop();
}

#[test]
fn a_copy_that_is_killed_leaves_no_tenant_and_the_next_goes_through() {
    let house = House::new();
    let files = &house.machine;
    let database = files.path("database.json");
    std::fs::write(&database, house.settings().to_string()).expect("a file");
    let database = database.to_str().expect("UTF-8");
    let server = files.start(&[]);
    let client = Client::fill(&server, &files.token());
    let before = client.sees(&server, &files.token());
    server.stop();
    let moved = house.beside();
    let server = moved.start();
    for point in [
        "tenants::relational::arrival-noted",
        "tenants::copy::begun",
        "tenants::copy::put",
        "tenants::copy::compared",
        "tenants::copy::admitted",
    ] {
        eprintln!("killed at {point}");
        let mut killed = copy(files, "this", database, &["--unencrypted"]);
        let _ = killed.env("FAILPOINTS", format!("{point}=return"));
        files.run_to_end(killed).expect_killed();
        assert!(tenants(&server).is_empty(), "{point}");
        assert_eq!(server.request("GET", PEOPLE, None).0, 404, "{point}");
        if point == "tenants::copy::put" {
            // A tenant of the name that is made meanwhile is empty, and goes without a trace.
            make_tenant(&server, "acme");
            assert!(journal(&server, "acme").is_empty());
            assert_eq!(server.request("DELETE", "/api/tenants/acme", None).0, 204);
        }
    }
    let mut killed = copy(files, "this", database, &["--unencrypted"]);
    let _ = killed.env("FAILPOINTS", "tenants::copy::arrived=return");
    files.run_to_end(killed).expect_killed();
    // It was done, and only not said.
    assert_eq!(client.sees(&server, &moved.machine.token()), before);
    client.assert_served(&server, &before);
    let before = client.sees(&server, &moved.machine.token());

    // The other way.
    let lock = moved.nimbus(&["encryption", "lock", "--tenant-id", "acme"]);
    moved.machine.run_to_end(lock).expect(0, &["locked"]);
    server.stop();
    let back = House::new();
    let back = &back.machine;
    back.start(&[]).stop();
    let settings = back.path("database.json");
    std::fs::write(&settings, house.settings().to_string()).expect("a file");
    let settings = settings.to_str().expect("UTF-8");
    for point in [
        "tenants::copy::begun",
        "tenants::copy::put",
        "tenants::copy::compared",
        "tenants::copy::admitted",
        "arrive::renamed",
    ] {
        eprintln!("killed at {point}, on the way back");
        let mut killed = copy(back, settings, "this", &[]);
        let _ = killed.env("FAILPOINTS", format!("{point}=return"));
        back.run_to_end(killed).expect_killed();
        let server = back.start(&[]);
        assert!(tenants(&server).is_empty(), "{point}");
        // Its keys come before it.
        let (status, _) = server.request_as(&client.key, "GET", PEOPLE, None);
        assert!(matches!(status, 401 | 404), "{point}: {status}");
        server.stop();
    }
    back.run_to_end(copy(back, settings, "this", &[]))
        .expect(0, &["compared all of it"]);
    let server = back.start(&[]);
    assert_eq!(client.sees(&server, &back.token()), before);
    client.assert_served(&server, &before);
    server.stop();
}
