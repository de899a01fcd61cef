//! What is wrong with a body is said in words for its sender, never in those of the libraries that
//! read it.

use serde_json::{Value, json};

use super::{assert_error, demo};

const ID: &str = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f";

/// Every route that takes a body, with a right one.
fn bodies() -> Vec<(&'static str, String, Value)> {
    let tenant = |rest: &str| format!("/api/tenants/demo/{rest}");
    let admin = |rest: &str| format!("/api/admin/{rest}");
    let insert = json!({"type": "insert", "table": "t", "fields": {"a": 1}, "id": ID});
    let schedule = json!({"type": "interval", "seconds": 60});
    let calendar = json!({"type": "cron", "expression": "0 3 * * *", "timezone": "UTC"});
    let cron = |schedule: &Value| json!({"name": "c", "schedule": schedule, "mutation": insert});
    let schema = json!({"table": "t", "fields": [{"name": "a", "field_type": "any", "required": false}],
        "indexes": [{"name": "i", "fields": ["a"], "unique": false}], "json_schema": {"type": "object"}});
    let query = json!({"table": "t", "filters": [{"field": "a", "op": "in", "value": [1]}],
        "order": {"field": "a", "direction": "desc"}, "limit": 1});
    let pages = json!({"table": "t", "filters": [{"field": "a", "op": "eq", "value": 1}]});
    let file = json!({"path": "a", "sha256": "00", "content_base64": ""});
    vec![
        ("POST", "/api/tenants".to_owned(), json!({"id": "demo"})),
        (
            "POST",
            tenant("documents"),
            json!({"table": "t", "fields": {"a": 1}}),
        ),
        (
            "PATCH",
            tenant(&format!("documents/t/{ID}")),
            json!({"patch": {"a": 1}}),
        ),
        ("POST", tenant("batch"), json!({"mutations": [insert]})),
        ("POST", tenant("query"), query),
        (
            "POST",
            tenant("query/paginated"),
            json!({"query": pages, "page_size": 1, "after": "x"}),
        ),
        ("PUT", tenant("schema/t"), schema.clone()),
        (
            "POST",
            tenant("schedule"),
            json!({"run_after_ms": 1000, "mutation": insert}),
        ),
        ("POST", tenant("crons"), cron(&schedule)),
        ("POST", tenant("crons"), cron(&calendar)),
        (
            "POST",
            tenant("deploy"),
            json!({"name": "d", "schemas": [schema], "crons": [cron(&schedule)], "files": [file], "dry_run": true}),
        ),
        (
            "POST",
            tenant("keys"),
            json!({"name": "k", "scope": "read"}),
        ),
        (
            "POST",
            admin("encryption/rotate-kek"),
            json!({"path": "nowhere"}),
        ),
        (
            "POST",
            admin("encryption/rotate-dek"),
            json!({"path": "nowhere"}),
        ),
        (
            "POST",
            admin("encryption/shred"),
            json!({"tenant_id": "nobody", "disable_kms_key": false}),
        ),
        (
            "POST",
            admin("encryption/lock"),
            json!({"tenant_id": "nobody"}),
        ),
        (
            "POST",
            admin("encryption/unlock"),
            json!({"tenant_id": "nobody"}),
        ),
        (
            "POST",
            admin("encryption/audit"),
            json!({"event": "export", "outcome": "begun", "subject": null, "deks": [], "keys": [], "actor": "x", "detail": null}),
        ),
    ]
}

/// Each value within a body, at any depth, replaced by each of another kind, or removed; and one
/// more member in each object.
fn wrong(body: &Value) -> Vec<Value> {
    let mut all: Vec<Value> = [
        json!(null),
        json!(true),
        json!(-1),
        json!(1.5),
        json!(1e300),
        json!("text"),
        json!([]),
        json!([[1]]),
        json!({}),
    ]
    .into();
    match body {
        Value::Object(members) => {
            for (name, value) in members {
                for instead in wrong(value) {
                    let mut members = members.clone();
                    members.insert(name.clone(), instead);
                    all.push(members.into());
                }
                let mut fewer = members.clone();
                fewer.remove(name);
                all.push(fewer.into());
            }
            let mut more = members.clone();
            more.insert("more, `expected`".to_owned(), json!(1));
            all.push(more.into());
        }
        Value::Array(items) => {
            for (place, value) in items.iter().enumerate() {
                for instead in wrong(value) {
                    let mut items = items.clone();
                    items[place] = instead;
                    all.push(items.into());
                }
            }
            all.push(vec![json!(1); 10_001].into());
        }
        _ => {}
    }
    all
}

#[test]
fn deep_nesting_is_refused_in_words_of_ours() {
    let (machine, server) = demo();
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let insert = r#"{"type":"insert","table":"t","fields":{}}"#;
    let delete = format!(r#"{{"type":"delete","table":"t","id":"{ID}","if_version":{deep}}}"#);
    for (path, body) in [
        (
            "schedule",
            format!(r#"{{"run_after_ms":{deep},"mutation":{insert}}}"#),
        ),
        ("batch", format!(r#"{{"mutations":[{delete}]}}"#)),
        ("query", format!(r#"{{"table":"t","limit":{deep}}}"#)),
        (
            "documents",
            format!(r#"{{"table":"t","fields":{{"a":{deep}}}}}"#),
        ),
        (
            "crons",
            format!(
                r#"{{"name":"c","schedule":{{"type":"interval","seconds":{deep}}},"mutation":{insert}}}"#
            ),
        ),
    ] {
        let path = format!("/api/tenants/demo/{path}");
        let answer = super::post(&machine, &server, &path, body.as_bytes());
        let message = super::assert_refused(&answer, 400, "op.invalid_input");
        assert!(!message.contains("recursion"), "{path}: {message}");
    }
}

/// Words of serde, and names of types.
const FOREIGN: &[&str] = &[
    "line 1 column",
    "at line",
    "struct ",
    "enum ",
    "tuple ",
    "variant",
    "newtype",
    "invalid type",
    "invalid value",
    "invalid length",
    "missing field",
    "unknown field",
    "duplicate field",
    "untagged",
    "EOF",
    "usize",
    "u64",
    "i64",
    "f64",
    "a sequence",
    "a map",
    "RawValue",
];

/// `text` without the words that are ids.
fn without_ids(text: &str) -> String {
    let is_id = |word: &&str| word.len() >= 20 && word.bytes().any(|byte| byte.is_ascii_digit());
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    let ids: Vec<&str> = words.filter(is_id).collect();
    ids.iter()
        .fold(text.to_owned(), |text, id| text.replace(id, "…"))
}

#[test]
fn no_answer_to_a_wrong_body_speaks_of_how_it_is_read() {
    let (_machine, server) = demo();
    let mut refused = 0;
    for (method, path, body) in bodies() {
        for body in wrong(&body) {
            let (status, answer) = server.request(method, &path, Some(&body));
            if status < 400 {
                continue;
            }
            refused += 1;
            let code = answer["error"]["code"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            let message = assert_error(status, &answer, (status, &code));
            let detail = answer["error"]["detail"].as_str().unwrap_or_default();
            // An id may hold any letters and digits.
            let [message, detail] = [&*message, detail].map(without_ids);
            for word in FOREIGN {
                assert!(
                    !message.contains(word) && !detail.contains(word),
                    "{method} {path} {word:?}: {message} {detail}"
                );
            }
            assert_ne!(status, 500, "{method} {path}: {message}");
        }
    }
    assert!(refused > 1000, "{refused}");
    server.stop();
}

#[test]
fn text_that_is_no_json_is_refused_with_its_place() {
    let (machine, server) = demo();
    for (text, said) in [
        ("{\n  \"table\": }", "line 2, column 12"),
        ("{\"table\":\"t\"", "in the middle of"),
        ("{\"table\":\"t\",}", "not valid JSON"),
        ("{\"table\":\"\u{1}\"}", "not valid JSON"),
        ("{\"table\":\"t\",\"fields\":{}} x", "not valid JSON"),
        ("", "must be a JSON object"),
    ] {
        let answer = super::post(
            &machine,
            &server,
            "/api/tenants/demo/documents",
            text.as_bytes(),
        );
        let message = super::assert_refused(&answer, 400, "op.invalid_input");
        assert!(message.contains(said), "{text:?}: {message}");
    }
}
