//! Who is let in: credentials, rotated tokens, browsers' origins.

use super::{assert_error, assert_refused, machine, send, send_bare};

#[test]
fn everything_but_health_needs_a_credential() {
    let machine = machine();
    let server = machine.start(&[]);
    for line in [
        "GET /ready",
        "GET /api/tenants",
        "POST /api/tenants",
        "DELETE /api/tenants/demo",
        "GET /api/tenants/demo/documents/places",
        "POST /api/admin/token/rotate",
    ] {
        assert_refused(&send_bare(&server, line, "", b""), 401, "auth.unauthorized");
    }
    let token = machine.token();
    for credential in [
        "Authorization: Bearer \r\n".to_owned(),
        "Authorization: Bearer wrong\r\n".to_owned(),
        format!("Authorization: Bearer {token}x\r\n"),
        format!("Authorization: Bearer {}\r\n", &token[1..]),
        format!("Authorization: Basic {token}\r\n"),
        format!("Authorization: {token}\r\n"),
        "X-Nimbus-Admin-Token: wrong\r\n".to_owned(),
    ] {
        let answer = send_bare(&server, "GET /api/tenants", &credential, b"");
        assert_refused(&answer, 401, "auth.unauthorized");
    }
    for credential in [
        format!("Authorization: Bearer {token}\r\n"),
        format!("authorization: bearer {token}\r\n"),
        format!("X-Nimbus-Admin-Token: {token}\r\n"),
    ] {
        assert_eq!(
            send_bare(&server, "GET /api/tenants", &credential, b"").status,
            200
        );
    }
    assert!(!server.log().contains(&token));
}

#[test]
fn a_token_rotated_by_the_command_line_counts_at_once_and_the_old_one_no_more() {
    let machine = machine();
    let server = machine.start(&[]);
    let mut old = Vec::new();
    // Through the running server, then beside it.
    for command in [["token", "rotate"], ["auth", "rotate-admin"]] {
        old.push(machine.token());
        machine
            .run_to_end(machine.nimbus(&command))
            .expect(0, &["replaced"]);
        let new = machine.token();
        assert!(!old.contains(&new), "{command:?}");
        assert_eq!(server.request_as(&new, "GET", "/api/tenants", None).0, 200);
        for old in &old {
            let (status, answer) = server.request_as(old, "GET", "/api/tenants", None);
            assert_error(status, &answer, (401, "auth.token_revoked"));
        }
    }
    assert!(
        server.log().contains("token was rotated"),
        "the first went through the server"
    );
    server.stop();
    // Without a server, and for the next one.
    let old = machine.token();
    machine
        .run_to_end(machine.nimbus(&["token", "rotate"]))
        .expect(0, &["replaced"]);
    assert_ne!(machine.token(), old);
    let server = machine.start(&[]);
    assert_eq!(server.request_as(&old, "GET", "/ready", None).0, 401);
    assert_eq!(server.request("GET", "/ready", None).0, 200);
}

#[test]
fn a_token_rotated_over_http_is_not_in_the_answer() {
    let machine = machine();
    let server = machine.start(&[]);
    let old = machine.token();
    let (status, answer) = server.request("POST", "/api/admin/token/rotate", None);
    assert_eq!(status, 200);
    assert!(!answer.to_string().contains(&machine.token()), "{answer}");
    let (status, answer) = server.request_as(&old, "GET", "/ready", None);
    assert_error(status, &answer, (401, "auth.token_revoked"));
}

#[test]
fn nobody_is_let_in_while_the_token_file_is_gone_or_open_to_others() {
    let machine = machine();
    let server = machine.start(&[]);
    let token = machine.token();
    let ask = || server.request_as(&token, "GET", "/api/tenants", None);
    super::set_mode(&machine.token_file(), 0o644);
    let (status, answer) = ask();
    assert_error(status, &answer, (503, "service.unavailable"));
    assert!(server.log().contains("chmod 0600"), "{}", server.log());
    super::set_mode(&machine.token_file(), 0o600);
    assert_eq!(ask().0, 200);
    let away = machine.path("token");
    std::fs::rename(machine.token_file(), &away).expect("the file is taken away");
    let (status, answer) = ask();
    assert_error(status, &answer, (503, "service.unavailable"));
    std::fs::rename(&away, machine.token_file()).expect("and put back");
    assert_eq!(ask().0, 200);
}

#[test]
fn browsers_on_foreign_pages_are_turned_away() {
    let machine = machine();
    let server = machine.start(&[]);
    for origin in [
        "https://evil.example",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "null",
        "file://",
    ] {
        let header = format!("Origin: {origin}\r\n");
        for line in ["GET /api/tenants", "GET /health"] {
            let answer = send(&machine, &server, line, &header, b"");
            assert_refused(&answer, 403, "auth.forbidden");
            assert_eq!(
                answer.header("access-control-allow-origin"),
                None,
                "{origin}"
            );
        }
        // Also with no credential, and though another header says that it is a good one.
        let header = format!("{header}Origin: http://localhost\r\n");
        let answer = send_bare(&server, "POST /api/tenants", &header, b"{}");
        assert_refused(&answer, 403, "auth.forbidden");
    }
    for origin in [
        "http://localhost:5173",
        "http://127.0.0.1",
        "http://[::1]:3000",
    ] {
        let header = format!("Origin: {origin}\r\n");
        let answer = send(&machine, &server, "GET /api/tenants", &header, b"");
        assert_eq!(answer.status, 200, "{origin}");
        assert_eq!(answer.header("access-control-allow-origin"), Some(origin));
        // A page of this machine still needs the token.
        let answer = send_bare(&server, "GET /api/tenants", &header, b"");
        assert_refused(&answer, 401, "auth.unauthorized");
        // And may read why it was refused.
        assert_eq!(answer.header("access-control-allow-origin"), Some(origin));
        assert_eq!(answer.header("vary"), Some("origin"));
    }
}

#[test]
fn an_origin_that_the_operator_named_is_accepted_and_no_other() {
    let machine = machine();
    let server = machine.start(&["--cors-allow-origin", "https://app.example"]);
    let ask = |origin: &str| {
        let header = format!("Origin: {origin}\r\n");
        send(&machine, &server, "GET /api/tenants", &header, b"")
    };
    let answer = ask("https://app.example");
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("access-control-allow-origin"),
        Some("https://app.example")
    );
    let told = answer.header("access-control-expose-headers");
    for name in [
        "x-request-id",
        "retry-after",
        "etag",
        "content-range",
        "idempotency-replayed",
    ] {
        assert!(told.is_some_and(|told| told.contains(name)), "{told:?}");
    }
    for origin in [
        "https://app.example:8443",
        "http://app.example",
        "https://app.example.evil.example",
    ] {
        assert_refused(&ask(origin), 403, "auth.forbidden");
    }
    assert_eq!(
        ask("http://localhost:1").status,
        200,
        "pages of this machine still"
    );

    // What a browser asks before it sends the real request: with no credential.
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
        let preflight = format!(
            "Origin: https://app.example\r\nAccess-Control-Request-Method: {method}\r\n\
             Access-Control-Request-Headers: authorization,content-type,x-nimbus-identity,if-none-match,if-match,idempotency-key\r\n"
        );
        let answer = send_bare(&server, "OPTIONS /api/tenants", &preflight, b"");
        assert_eq!(answer.status, 200);
        let header = |name: &str| answer.header(name).unwrap_or_default();
        assert_eq!(header("access-control-allow-origin"), "https://app.example");
        assert!(header("access-control-allow-methods").contains(method));
        for name in [
            "authorization",
            "content-type",
            "x-nimbus-identity",
            "if-none-match",
            "if-match",
            "idempotency-key",
        ] {
            let allowed = header("access-control-allow-headers");
            assert!(allowed.contains(name), "{allowed}");
        }
    }
}

#[test]
fn no_cookie_and_no_parameter_is_a_credential() {
    let machine = machine();
    let server = machine.start(&[]);
    let token = machine.token();
    for (line, header) in [
        ("GET /api/tenants", format!("Cookie: token={token}\r\n")),
        (
            "GET /api/tenants",
            format!("Cookie: Authorization=Bearer {token}; X-Nimbus-Admin-Token={token}\r\n"),
        ),
        ("GET /api/tenants", format!("X-Api-Key: {token}\r\n")),
        (
            "GET /api/tenants",
            format!("Proxy-Authorization: Bearer {token}\r\n"),
        ),
        (&format!("GET /api/tenants?token={token}"), String::new()),
        (
            &format!("GET /api/tenants?access_token={token}"),
            String::new(),
        ),
    ] {
        let answer = send_bare(&server, line, &header, b"");
        assert_refused(&answer, 401, "auth.unauthorized");
        // Nor is one handed out.
        assert_eq!(answer.header("set-cookie"), None, "{line}");
    }
    let answer = send(&machine, &server, "GET /api/tenants", "", b"");
    assert_eq!((answer.status, answer.header("set-cookie")), (200, None));
    assert!(!server.log().contains(&token));
}
