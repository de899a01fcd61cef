//! Bodies that are too large, too slow, or not as long as they say.

use std::io::Write as _;
use std::net::Shutdown;
use std::path::Path;

use nimbus_test_support::{Server, files_under, whole};
use serde_json::json;

use super::access_keys::make;
use super::overload::most_memory;
use super::{assert_refused, demo, post, send, send_bare};

const DOCUMENTS: &str = "/api/tenants/demo/documents";

/// A body of a document whose fields have this many bytes.
fn sized(bytes: usize) -> Vec<u8> {
    let filler = "x".repeat(bytes - r#"{"a":""}"#.len());
    format!(r#"{{"table":"large","fields":{{"a":"{filler}"}}}}"#).into_bytes()
}

#[test]
fn a_document_may_have_one_mebibyte_and_no_more() {
    let (machine, server) = demo();
    let answer = post(&machine, &server, DOCUMENTS, &sized(1 << 20));
    assert_eq!(answer.status, 201, "{}", answer.body);
    let answer = post(&machine, &server, DOCUMENTS, &sized((1 << 20) + 1));
    let message = assert_refused(&answer, 413, "op.invalid_input");
    assert!(message.contains("1048577 bytes"), "{message}");

    // Nor may it grow beyond by a patch.
    let id = server.insert("demo", "large", &json!({"b": "y".repeat(600_000)}));
    let path = format!("{DOCUMENTS}/large/{id}");
    let patch = json!({"patch": {"c": "z".repeat(600_000)}});
    let (status, answer) = server.request("PATCH", &path, Some(&patch));
    super::assert_error(status, &answer, (413, "op.invalid_input"));
    assert_eq!(server.get(&path)["document"]["c"], json!(null));
}

#[test]
fn a_body_over_16_mebibytes_is_refused() {
    let (machine, server) = demo();
    let token = machine.token();
    // An honest client sends all of it, and then sees the answer.
    for mebibytes in [17, 40] {
        let body = sized(mebibytes << 20);
        let mut stream = server.connect();
        let head = head(&token, &format!("Content-Length: {}", body.len()));
        stream.write_all(head.as_bytes()).expect("the head");
        stream.write_all(&body).expect("the body");
        let answer = Server::answer(&mut stream).expect("an answer");
        let message = assert_refused(&answer, 413, "op.invalid_input");
        assert!(message.contains("16 MiB"), "{message}");
    }
    // One that asks first is told at once.
    let mut stream = server.connect();
    let asking = head(&token, "Content-Length: 17825793\r\nExpect: 100-continue");
    stream.write_all(asking.as_bytes()).expect("the head");
    let answer = Server::answer(&mut stream).expect("an answer");
    assert_refused(&answer, 413, "op.invalid_input");
    // One that does not say how much comes, as soon as it is too much.
    let mut stream = server.connect();
    let chunked = head(&token, "Transfer-Encoding: chunked");
    stream.write_all(chunked.as_bytes()).expect("the head");
    stream
        .write_all(format!("{:x}\r\n", (16 << 20) + 1).as_bytes())
        .expect("a size");
    stream
        .write_all(&vec![b'x'; (16 << 20) + 1])
        .expect("a chunk");
    let answer = Server::answer(&mut stream).expect("an answer");
    assert_refused(&answer, 413, "op.invalid_input");
}

#[test]
fn a_length_that_is_a_lie_is_refused_and_stores_nothing() {
    let (machine, server) = demo();
    let body = r#"{"table":"lies","fields":{"n":1}}"#;
    let token = machine.token();
    let claim = |length: &str| {
        format!(
            "{}{body}",
            head(&token, &format!("Content-Length: {length}"))
        )
    };

    // More than comes, and then the client is gone.
    let mut stream = server.connect();
    stream
        .write_all(claim("1000").as_bytes())
        .expect("a request");
    stream.shutdown(Shutdown::Write).expect("no more");
    if let Some(answer) = Server::answer(&mut stream) {
        assert_refused(&answer, 400, "op.invalid_input");
    }
    // Less than comes: what is cut off is no JSON, what is left over no request.
    let answer = server.raw(claim("10").as_bytes()).expect("an answer");
    assert_refused(&answer, 400, "op.invalid_input");
    // Far more than is taken, of which nothing comes.
    for length in ["17825793", "9223372036854775807"] {
        let answer = server.raw(claim(length).as_bytes()).expect("an answer");
        assert_refused(&answer, 413, "op.invalid_input");
    }
    // No number at all: no request.
    for length in ["-1", "x", "1, 2", "99999999999999999999999"] {
        let answer = server.raw(claim(length).as_bytes()).expect("an answer");
        assert_eq!(answer.status, 400, "{length}");
    }
    assert_eq!(
        server.get(&format!("{DOCUMENTS}/lies")),
        whole("data", json!([]))
    );
}

#[test]
fn slow_clients_do_not_keep_others_waiting_and_store_nothing() {
    let (machine, server) = demo();
    let token = machine.token();
    let slow: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = server.connect();
            let head = head(&token, "Content-Length: 1000");
            stream.write_all(head.as_bytes()).expect("a head");
            stream
                .write_all(br#"{"table":"slow","#)
                .expect("a beginning");
            stream
        })
        .collect();
    for n in 0..20 {
        server.insert("demo", "places", &json!({"n": n}));
    }
    drop(slow);
    assert_eq!(
        server.get(&format!("{DOCUMENTS}/slow")),
        whole("data", json!([]))
    );
}

#[test]
fn a_body_that_does_not_arrive_is_given_up() {
    let (machine, server) = demo();
    let mut stream = server.connect();
    let head = head(&machine.token(), "Content-Length: 1000");
    stream.write_all(head.as_bytes()).expect("a head");
    let answer = Server::answer(&mut stream).expect("an answer");
    let message = assert_refused(&answer, 408, "op.invalid_input");
    assert!(message.contains("did not arrive"), "{message}");
    // Nothing more is read on that connection.
    assert!(Server::answer(&mut stream).is_none());
}

#[test]
fn more_requests_than_the_server_takes_are_told_to_come_again() {
    let Some(()) = raise_own_file_limit() else {
        eprintln!(
            "SKIPPED: this test has 1100 connections open, and `ulimit -Hn` does not allow it"
        );
        return;
    };
    let (_machine, server) = demo();
    let (_, key) = make(&server, "demo", "read");
    let ask = |key: &str, line: &str| {
        send_bare(
            &server,
            line,
            &format!("Authorization: Bearer {key}\r\n"),
            b"",
        )
    };
    let mut slow = Vec::new();
    // Each takes its share of what the others have left, until nothing is left.
    for n in 0..20 {
        let tenant = format!("t{n}");
        server.create("/api/tenants", &json!({"id": tenant}));
        let (_, key) = make(&server, &tenant, "write");
        let head = head(&key, "Content-Length: 1000").replace("/demo/", &format!("/{tenant}/"));
        let _refused = until(|| {
            slow.extend((0..8).map(|_| {
                let mut stream = server.connect();
                stream.write_all(head.as_bytes()).expect("a head");
                stream
            }));
            Some(ask(&key, "GET /openapi.json")).filter(|answer| answer.status != 200)
        });
    }
    let refused = ask(&key, "GET /openapi.json");
    let message = assert_refused(&refused, 503, "rate.resource_exhausted");
    assert!(message.contains("the server has as many"), "{message}");
    assert_eq!(refused.header("retry-after"), Some("1"));
    // The operator has a reserve, and the process says that it lives.
    assert_eq!(ask(&key, "GET /health").status, 200);
    assert_eq!(server.request("GET", "/ready", None).0, 200);
    drop(slow);
    until(|| (ask(&key, "GET /openapi.json").status == 200).then_some(()));
    server.insert("demo", "places", &json!({}));
}

/// Asks again and again until there is an answer.
pub(super) fn until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let started = std::time::Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(started.elapsed().as_secs() < 25, "it does not come to that");
    }
}

pub(super) fn raise_own_file_limit() -> Option<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    let enough = maximum.is_none_or(|maximum| maximum > 2500);
    (enough && setrlimit(Resource::Nofile, limit).is_ok()).then_some(())
}

#[test]
fn a_body_that_says_it_is_no_json_is_refused() {
    let (machine, server) = demo();
    let body = br#"{"table":"places","fields":{}}"#;
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
    ] {
        let header = format!("Content-Type: {kind}\r\n");
        let answer = send(
            &machine,
            &server,
            &format!("POST {DOCUMENTS}"),
            &header,
            body,
        );
        let message = assert_refused(&answer, 415, "op.invalid_input");
        assert!(message.contains("application/json"), "{message}");
    }
    for encoding in ["gzip", "br", "zstd", "deflate", "identity, gzip", "x", ""] {
        let header = format!("Content-Encoding: {encoding}\r\n");
        let line = format!("POST {DOCUMENTS}");
        let answer = send(&machine, &server, &line, &header, body);
        let message = assert_refused(&answer, 415, "op.invalid_input");
        assert!(message.contains("Content-Encoding"), "{message}");
    }
    let line = format!("POST {DOCUMENTS}");
    let header = "Content-Encoding: Identity\r\n";
    assert_eq!(send(&machine, &server, &line, header, body).status, 201);
    let header = "Content-Type: application/json; charset=utf-8\r\n";
    let answer = send(
        &machine,
        &server,
        &format!("POST {DOCUMENTS}"),
        header,
        body,
    );
    assert_eq!(answer.status, 201);
}

#[test]
fn what_is_no_http_is_refused_and_harms_nothing() {
    let (_machine, server) = demo();
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"GET\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ] {
        if let Some(answer) = server.raw(garbage) {
            assert!(answer.status >= 400, "{garbage:?}");
        }
    }
    let headers = "X-Filler: x\r\n".repeat(5000);
    if let Some(answer) = server.raw(format!("GET /health HTTP/1.1\r\n{headers}\r\n").as_bytes()) {
        assert_eq!(answer.status, 431);
    }
    assert_eq!(server.get("/health"), json!({"ok": true}));
}

#[test]
fn who_ends_its_side_after_the_request_has_its_answer() {
    let (machine, server) = demo();
    let body = r#"{"table":"halves","fields":{"n":1}}"#;
    let mut stream = server.connect();
    let head = head(&machine.token(), &format!("Content-Length: {}", body.len()));
    stream
        .write_all(format!("{head}{body}").as_bytes())
        .expect("a request");
    stream.shutdown(Shutdown::Write).expect("no more");
    let answer = Server::answer(&mut stream).expect("an answer");
    assert_eq!(answer.status, 201, "{}", answer.body);
    assert!(Server::answer(&mut stream).is_none());
    let list = server.get(&format!("{DOCUMENTS}/halves"));
    assert_eq!(list["data"][0]["n"], 1);
}

/// A POST of a document up to its body, with the admin token and one more header.
fn head(token: &str, header: &str) -> String {
    format!(
        "POST {DOCUMENTS} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\n{header}\r\n\r\n"
    )
}

/// What stands before the server and the server itself must not take one request for two: the
/// connection ends with the answer, and the rest of what came is not looked at.
#[test]
fn a_body_with_two_lengths_ends_the_connection_and_hides_no_request() {
    let (machine, server) = demo();
    let token = machine.token();
    let insert = |n: u32| format!(r#"{{"table":"two","fields":{{"n":{n}}}}}"#);
    let hidden = format!(
        "{}{}",
        head(&token, &format!("Content-Length: {}", insert(2).len())),
        insert(2)
    );
    let chunked = format!("{:x}\r\n{}\r\n0\r\n\r\n", insert(1).len(), insert(1));
    for lengths in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
    ] {
        let mut stream = server.connect();
        let all = format!("{}{chunked}{hidden}", head(&token, lengths));
        stream.write_all(all.as_bytes()).expect("a request");
        let answer = Server::answer(&mut stream).expect("an answer");
        assert_eq!(answer.status, 201, "{}", answer.body);
        assert!(Server::answer(&mut stream).is_none(), "{lengths}");
    }
    let listed = server.get(&format!("{DOCUMENTS}/two"));
    let numbers = listed["data"].as_array().expect("documents").iter();
    let numbers: Vec<_> = numbers.map(|document| &document["n"]).collect();
    assert_eq!(numbers, [&json!(1), &json!(1)]);
}

#[test]
fn a_request_names_one_host() {
    let (_machine, server) = demo();
    for (hosts, version, status) in [
        ("Host: nimbus.example:8080\r\n", "1.1", 200),
        ("Host: my_service\r\n", "1.1", 200),
        ("Host: [::1]:8080\r\n", "1.1", 200),
        ("", "1.0", 200),
        ("", "1.1", 400),
        ("Host: a\r\nHost: a\r\n", "1.1", 400),
        ("Host: a\r\nHost: b\r\n", "1.0", 400),
        ("Host: a b\r\n", "1.1", 400),
        ("Host: user@a\r\n", "1.1", 400),
        ("Host: a/b\r\n", "1.1", 400),
    ] {
        let request = format!("GET /health HTTP/{version}\r\n{hosts}Connection: close\r\n\r\n");
        let answer = server.raw(request.as_bytes()).expect("an answer");
        if status == 200 {
            assert_eq!(answer.status, 200, "{hosts:?}: {}", answer.body);
        } else {
            let message = assert_refused(&answer, 400, "op.invalid_input");
            assert!(message.contains("Host"), "{message}");
        }
    }
}

/// Built in memory while it is read, a list of small objects takes about a hundred times its
/// length.
#[test]
fn what_stands_where_a_number_belongs_is_not_built_in_memory() {
    let (machine, server) = demo();
    let list = format!("[{}{{}}]", r#"{"a":0},"#.repeat(15 << 15));
    let id = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f";
    let delete = format!(r#"{{"type":"delete","table":"t","id":"{id}","if_version":LIST}}"#);
    let check = format!(r#"{{"type":"check","table":"t","id":"{id}","version":LIST}}"#);
    let insert = r#"{"type":"insert","table":"t","fields":{}}"#;
    let cron =
        |schedule: &str| format!(r#"{{"name":"c","schedule":{schedule},"mutation":{insert}}}"#);
    let bodies = [
        ("batch", format!(r#"{{"mutations":[{delete}]}}"#)),
        ("batch", format!(r#"{{"mutations":[{check}]}}"#)),
        (
            "schedule",
            format!(r#"{{"run_after_ms":LIST,"mutation":{insert}}}"#),
        ),
        ("crons", cron(r#"{"type":"interval","seconds":LIST}"#)),
        // Nor is what comes before it is known what it belongs to.
        ("crons", cron(r#"{"seconds":LIST,"type":"cron"}"#)),
        ("query", r#"{"table":"t","limit":LIST}"#.to_owned()),
        (
            "query/paginated",
            r#"{"query":{"table":"t"},"page_size":LIST}"#.to_owned(),
        ),
        ("documents", r#"{"table":"t","fields":LIST}"#.to_owned()),
    ];
    let before = most_memory(&server);
    for (path, body) in bodies {
        let path = format!("/api/tenants/demo/{path}");
        let answer = post(
            &machine,
            &server,
            &path,
            body.replace("LIST", &list).as_bytes(),
        );
        assert!(
            (400..500).contains(&answer.status),
            "{path}: {}",
            answer.body
        );
    }
    let grown = most_memory(&server) - before;
    assert!(grown < 120, "{grown} MiB more");
    server.stop();
}

/// `serde` builds all that it finds where a field is a [`serde_json::Value`], where an enum has a
/// tag inside or none, where a struct is flattened, and where a list or a map has no limit.
#[test]
fn nothing_that_reads_input_builds_what_it_does_not_know() {
    const BUILT: &[&str] = &[
        "untagged",
        "tag =",
        "flatten",
        " Value",
        "<Value",
        "::Value",
        "Vec<",
        "VecDeque<",
        "Map<",
        "Set<",
    ];
    // What is looked at as a tree: schemas of 64 KiB at most, and documents of a mebibyte, whose
    // trees have room in all.
    const TREES: &[&str] = &[
        "documents/query/reference.rs",
        "documents/schema/cost.rs",
        "documents/schema/field_type.rs",
        "documents/schema/json_schema.rs",
        "documents/schema/metered.rs",
        "documents/schema/rules.rs",
        "documents/schema/tree.rs",
        "documents/schema/weight.rs",
    ];
    // What the server wrote itself.
    const STORED: &[&str] = &[
        // Answers, which commands read.
        "server/operations.rs",
        "tenants/relational/schemas.rs",
        "tenants/sqlite/indexes.rs",
    ];
    let source = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
    let mut readers = 0;
    for part in ["documents", "server", "tenants"] {
        for file in files_under(&source.join(part)) {
            let name = file.strip_prefix(source).expect("a path below");
            let name = name.to_str().expect("a plain name");
            if ["tests", "/openapi/", "/conformance/"]
                .iter()
                .any(|apart| name.contains(apart))
            {
                continue;
            }
            let text = std::fs::read_to_string(&file).expect("a source file");
            let text = text.split("#[cfg(test)]\nmod tests").next().expect("text");
            let imports = text
                .lines()
                .filter(|line| line.starts_with("use serde_json"));
            let tree = imports
                .flat_map(|line| line.split(|c: char| !c.is_alphanumeric()))
                .any(|word| word == "Value");
            let reads = part == "documents";
            assert!(!(tree && reads) || TREES.contains(&name), "{name}");
            assert!(!text.contains("from_slice::<Value>") && !text.contains("from_str::<Value>"));
            for (place, _) in text.match_indices("#[derive(") {
                let line = text[..place].rsplit('\n').next().expect("a line");
                let end = format!("\n{line}}}\n");
                let item = &text[place..];
                let ends = [item.find(&end), item.find(");\n")];
                let item = &item[..ends.into_iter().flatten().min().unwrap_or(item.len())];
                let derived = item.split(")]").next().expect("what is derived");
                if !derived.contains("Deserialize") || STORED.contains(&name) {
                    continue;
                }
                readers += 1;
                for built in BUILT {
                    assert!(!item.contains(built), "{name}: {built} in\n{item}");
                }
            }
        }
    }
    assert!(readers > 15, "{readers}");
}
