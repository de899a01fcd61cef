//! Deploys over HTTP: whole or not at all, and what is said of them.

use data_encoding::{BASE64, HEXLOWER};
use nimbus_test_support::{Machine, Server};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{assert_error, assert_refused, demo, post, send};

pub(super) const DEPLOY: &str = "/api/tenants/demo/deploy";

pub(super) fn hash(content: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(content))
}

pub(super) fn file(path: &str, content: &[u8]) -> Value {
    json!({"path": path, "sha256": hash(content), "content_base64": BASE64.encode(content)})
}

pub(super) fn with_files(name: &str, files: &[Value]) -> Value {
    json!({"name": name, "schemas": [], "crons": [], "files": files})
}

pub(super) fn deploy(server: &Server, deploy: &Value) -> Value {
    server.create(DEPLOY, deploy)
}

fn names(names: &[&str]) -> Value {
    json!({"count": names.len(), "names": names})
}

fn changes(added: &[&str], changed: &[&str], removed: &[&str], unchanged: usize) -> Value {
    json!({"added": names(added), "changed": names(changed), "removed": names(removed), "unchanged": unchanged})
}

/// The text of a file that is served; none when there is none.
pub(super) fn served(machine: &Machine, server: &Server, path: &str) -> Option<String> {
    let answer = send(machine, server, &format!("GET /apps/demo/{path}"), "", b"");
    if answer.status == 404 {
        let _ = assert_refused(&answer, 404, "op.document_not_found");
        return None;
    }
    assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    Some(String::from_utf8(answer.bytes().to_vec()).expect("text"))
}

#[test]
fn ten_thousand_files_are_deployed_at_once_and_one_more_is_refused() {
    let (machine, server) = demo();
    let many = |count: usize, changed: usize| -> Value {
        let files: Vec<_> = (0..count)
            .map(|n| {
                let content = format!("content {n}{}", if n < changed { "!" } else { "" });
                file(&format!("d{}/{n}.txt", n % 100), content.as_bytes())
            })
            .collect();
        with_files("many", &files)
    };
    let answer = deploy(&server, &many(10_000, 0));
    let added = &answer["diff"]["files"]["added"];
    assert_eq!(added["count"], 10_000);
    assert_eq!(added["names"].as_array().map(Vec::len), Some(100));
    assert_eq!(
        served(&machine, &server, "d99/9999.txt").as_deref(),
        Some("content 9999")
    );
    let answer = deploy(&server, &many(10_000, 3));
    assert_eq!(
        answer["diff"]["files"],
        changes(&[], &["d0/0.txt", "d1/1.txt", "d2/2.txt"], &[], 9_997)
    );
    let (status, answer) = server.request("POST", DEPLOY, Some(&many(10_001, 0)));
    let message = assert_error(status, &answer, (400, "op.invalid_input"));
    assert!(message.contains("at most 10000"), "{message}");

    // As large as a body may be, and larger.
    let rest = |size: usize| {
        let body = with_files("large", &[file("large", &vec![7; size])]);
        post(&machine, &server, DEPLOY, body.to_string().as_bytes())
    };
    assert_eq!(rest(12 * 1024 * 1024 - 1024).status, 201);
    let _ = assert_refused(&rest(12 * 1024 * 1024), 413, "op.invalid_input");
}

#[test]
fn the_last_fifty_generations_are_kept() {
    let (machine, server) = demo();
    for n in 1..=52 {
        let own = format!("own {n}");
        let app = with_files("v", &[file("own", own.as_bytes()), file("same", b"same")]);
        let _ = deploy(&server, &app);
    }
    let listed = server.get(DEPLOY);
    let generations = listed["generations"].as_array().expect("generations");
    let numbers: Vec<_> = generations
        .iter()
        .map(|one| one["generation"].clone())
        .collect();
    assert_eq!(json!(numbers), json!((3..=52).rev().collect::<Vec<_>>()));
    let (status, answer) = server.request("POST", &format!("{DEPLOY}/2/activate"), None);
    let message = assert_error(status, &answer, (404, "op.document_not_found"));
    assert!(message.contains("the last 50"), "{message}");
    let (status, _) = server.request("POST", &format!("{DEPLOY}/3/activate"), None);
    assert_eq!(status, 200);
    assert_eq!(served(&machine, &server, "own").as_deref(), Some("own 3"));
    // The active one is the oldest; it goes when it is not the active one any more, and what others have of it stays.
    let app = with_files("v", &[file("own", b"own 53"), file("same", b"same")]);
    assert_eq!(deploy(&server, &app)["previous_generation"], 3);
    let (status, _) = server.request("POST", &format!("{DEPLOY}/3/activate"), None);
    assert_eq!(status, 404);
    assert_eq!(served(&machine, &server, "same").as_deref(), Some("same"));
}
