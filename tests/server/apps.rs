//! The files of an app over HTTP, byte for byte.

use std::io::{Read as _, Write as _};

use nimbus_test_support::{Answer, Machine, Server};

use super::deploy::{deploy, file, hash, served, with_files};
use super::{assert_refused, demo, send, send_bare};

fn get(machine: &Machine, server: &Server, path: &str, headers: &str) -> Answer {
    send(machine, server, &format!("GET {path}"), headers, b"")
}

/// The head of the answer to a HEAD request, which must be all of it.
fn head(machine: &Machine, server: &Server, path: &str, headers: &str) -> String {
    let mut stream = server.connect();
    let request = format!(
        "HEAD {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\n{headers}\r\n",
        machine.token()
    );
    stream.write_all(request.as_bytes()).expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    answer.to_lowercase()
}

/// Bytes without a period, so that a part of them is at one place alone.
fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    (0..size)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

#[test]
fn files_are_served_with_type_tag_and_length() {
    let (machine, server) = demo();
    let files = [
        ("index.html", "<h1>root</h1>", "text/html; charset=utf-8"),
        (
            "docs/index.html",
            "<h1>docs</h1>",
            "text/html; charset=utf-8",
        ),
        ("app.js", "let a = 1", "text/javascript; charset=utf-8"),
        ("data.json", "{}", "application/json"),
        ("LICENSE", "as is", "application/octet-stream"),
        ("größe & 100%.txt", "ü", "text/plain; charset=utf-8"),
        ("empty.css", "", "text/css; charset=utf-8"),
    ];
    let deployed: Vec<_> = files
        .iter()
        .map(|(path, content, _)| file(path, content.as_bytes()))
        .collect();
    deploy(&server, &with_files("v1", &deployed));
    let check = |path: &str, content: &str, kind: &str| {
        let answer = get(&machine, &server, path, "");
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        assert_eq!(answer.bytes(), content.as_bytes(), "{path}");
        let tag = format!("\"{}\"", hash(content.as_bytes()));
        let length = content.len().to_string();
        for (name, value) in [
            ("content-type", kind),
            ("etag", &tag),
            ("content-length", &length),
            ("accept-ranges", "bytes"),
            ("cache-control", "private, no-cache"),
            ("x-content-type-options", "nosniff"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{path}: {name}");
        }
        // A service worker stays within its own path.
        assert_eq!(answer.header("service-worker-allowed"), None, "{path}");
        let head = head(&machine, &server, path, "");
        for line in [
            "http/1.1 200",
            &format!("etag: {tag}"),
            &format!("content-length: {length}"),
            kind,
        ] {
            assert!(head.contains(line), "{path}: {line}: {head}");
        }
    };
    for (path, content, kind) in files {
        let encoded = path
            .replace('%', "%25")
            .replace(' ', "%20")
            .replace('ö', "%C3%B6")
            .replace('ß', "%c3%9f");
        check(&format!("/apps/demo/{encoded}"), content, kind);
    }
    let (_, root, html) = files[0];
    check("/apps/demo/", root, html);
    check("/apps/demo/?query=1", root, html);
    check("/apps/demo/docs/", files[1].1, html);
    // As a file system that decomposes would name it.
    check(
        "/apps/demo/gro%CC%88%C3%9Fe%20&%20100%25.txt",
        "ü",
        files[5].2,
    );
    for path in [
        "docs",
        "Index.html",
        "docs/index.htm",
        "index.html/",
        "nothing/",
    ] {
        assert_eq!(served(&machine, &server, path), None, "{path}");
    }
    let answer = get(&machine, &server, "/apps/nobody/index.html", "");
    assert_refused(&answer, 404, "session.tenant_not_found");
    // Relative names in the page at the root need its `/`.
    for method in ["GET", "HEAD"] {
        for query in ["", "?query=1&%20"] {
            let line = format!("{method} /apps/demo{query}");
            let answer = send(&machine, &server, &line, "", b"");
            assert_eq!(answer.status, 308, "{line}");
            let to = format!("/apps/demo/{query}");
            assert_eq!(answer.header("location"), Some(&*to), "{line}");
        }
    }
    let answer = get(&machine, &server, "/apps/No%20body", "");
    assert_refused(&answer, 400, "op.invalid_input");
}

#[test]
fn what_the_client_has_already_is_not_sent_again() {
    let (machine, server) = demo();
    deploy(&server, &with_files("v1", &[file("a.txt", b"one")]));
    let path = "/apps/demo/a.txt";
    let tag = format!("\"{}\"", hash(b"one"));
    for known in [
        tag.clone(),
        format!("W/{tag}"),
        "*".to_owned(),
        format!("\"x\", {tag}"),
    ] {
        let answer = get(
            &machine,
            &server,
            path,
            &format!("If-None-Match: {known}\r\n"),
        );
        assert_eq!((answer.status, answer.bytes()), (304, &b""[..]), "{known}");
        assert_eq!(answer.header("etag"), Some(tag.as_str()));
        assert_eq!(answer.header("cache-control"), Some("private, no-cache"));
        let head = head(
            &machine,
            &server,
            path,
            &format!("If-None-Match: {known}\r\n"),
        );
        assert!(head.starts_with("http/1.1 304"), "{head}");
    }
    // Also before a range.
    let both = format!("If-None-Match: {tag}\r\nRange: bytes=0-0\r\n");
    assert_eq!(get(&machine, &server, path, &both).status, 304);
    deploy(&server, &with_files("v2", &[file("a.txt", b"two")]));
    let answer = get(
        &machine,
        &server,
        path,
        &format!("If-None-Match: {tag}\r\n"),
    );
    assert_eq!((answer.status, answer.bytes()), (200, &b"two"[..]));
}

#[test]
fn a_large_file_is_served_whole_and_in_any_part() {
    let (machine, server) = demo();
    let content = noise(11_000_000);
    deploy(&server, &with_files("v1", &[file("large.bin", &content)]));
    let path = "/apps/demo/large.bin";
    let tag = format!("\"{}\"", hash(&content));
    assert!(get(&machine, &server, path, "").bytes() == content);
    let size = content.len();
    let (piece, step) = (64 << 10, 256 << 10);
    for (range, start, end) in [
        ("0-0".to_owned(), 0, 1),
        (format!("{}-{}", piece - 1, piece), piece - 1, piece + 1),
        (format!("{}-{}", piece, 2 * piece - 1), piece, 2 * piece),
        (
            format!("{}-{}", step - 3, 3 * step + 5),
            step - 3,
            3 * step + 6,
        ),
        (format!("{}-", size - 1), size - 1, size),
        (
            format!("{}-{}", size - 100_000, 2 * size),
            size - 100_000,
            size,
        ),
        (format!("-{step}"), size - step, size),
        (format!("-{}", 2 * size), 0, size),
    ] {
        for if_range in ["", &format!("If-Range: {tag}\r\n")] {
            let headers = format!("Range: bytes={range}\r\n{if_range}");
            let answer = get(&machine, &server, path, &headers);
            assert_eq!(answer.status, 206, "{range}");
            assert!(answer.bytes() == &content[start..end], "{range}");
            let expected = format!("bytes {start}-{}/{size}", end - 1);
            assert_eq!(answer.header("content-range"), Some(expected.as_str()));
            assert_eq!(answer.header("etag"), Some(tag.as_str()));
        }
    }
    // What is not a single range of bytes, or holds for another content, is answered with the
    // whole.
    for headers in [
        "Range: bytes=0-1,5-6\r\n",
        "Range: bytes=5-1\r\n",
        "Range: items=0-1\r\n",
        "Range: bytes=0-1\r\nIf-Range: \"other\"\r\n",
        "Range: bytes=0-1\r\nIf-Range: Tue, 24 Nov 2026 10:00:00 GMT\r\n",
    ] {
        let answer = get(&machine, &server, path, headers);
        assert_eq!(
            (answer.status, answer.bytes().len()),
            (200, size),
            "{headers}"
        );
        assert_eq!(answer.header("content-range"), None);
    }
    for range in [
        format!("{size}-"),
        format!("{}-{}", size, size + 1),
        "-0".to_owned(),
    ] {
        let answer = get(
            &machine,
            &server,
            path,
            &format!("Range: bytes={range}\r\n"),
        );
        assert_refused(&answer, 416, "op.invalid_input");
        let expected = format!("bytes */{size}");
        assert_eq!(answer.header("content-range"), Some(expected.as_str()));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
    let head = head(&machine, &server, path, "Range: bytes=0-1\r\n");
    assert!(
        head.starts_with("http/1.1 200") && head.contains(&format!("content-length: {size}")),
        "{head}"
    );
}

#[test]
fn a_download_goes_on_over_an_activation_and_gets_the_file_that_it_began() {
    let (machine, server) = demo();
    let content = noise(8_000_000);
    deploy(&server, &with_files("v1", &[file("large.bin", &content)]));
    let mut stream = server.connect();
    let request = format!(
        "GET /apps/demo/large.bin HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\r\n",
        machine.token()
    );
    stream.write_all(request.as_bytes()).expect("a request");
    let mut received = vec![0; 100_000];
    stream.read_exact(&mut received).expect("its beginning");
    deploy(&server, &with_files("v2", &[file("large.bin", b"another")]));
    assert_eq!(
        served(&machine, &server, "large.bin").as_deref(),
        Some("another")
    );
    stream.read_to_end(&mut received).expect("the rest");
    assert!(received.ends_with(&content));
}

#[test]
fn a_path_that_escapes_is_refused() {
    let (machine, server) = demo();
    let odd = "%2e%2e";
    deploy(
        &server,
        &with_files(
            "v1",
            &[
                file("index.html", b"root"),
                file("a/b", b"b"),
                file(odd, b"odd"),
            ],
        ),
    );
    for path in [
        "..",
        "../",
        "../../etc/passwd",
        "%2e%2e",
        "%2E%2E/",
        ".%2e/index.html",
        "a/../index.html",
        "a/%2e%2e/index.html",
        "a/%2e/b",
        "./a/b",
        "a%2f..%2findex.html",
        "..%2f..%2fetc%2fpasswd",
        "%2fetc%2fpasswd",
        "/etc/passwd",
        "a//b",
        "//a/b",
        "..%5c..%5cindex.html",
        "a%5cb",
        "index.html%00",
        "%00",
        "a%0ab",
        "a/%7f",
        &"a/".repeat(600),
        &"n".repeat(300),
    ] {
        let answer = get(&machine, &server, &format!("/apps/demo/{path}"), "");
        assert_refused(&answer, 400, "op.invalid_input");
    }
    // Not text at all.
    for path in ["%ff", "a%c3", "%c0%ae%c0%ae/"] {
        let answer = get(&machine, &server, &format!("/apps/demo/{path}"), "");
        assert_eq!(answer.status, 400, "{path}");
    }
    // Decoded once and no more: these are names, and there are no such files but one.
    for path in [
        "%252e%252e%2findex.html",
        "a%252fb",
        "%252e%252e%252f",
        "%25",
    ] {
        assert_eq!(served(&machine, &server, path), None, "{path}");
    }
    assert_eq!(
        served(&machine, &server, "%252e%252e").as_deref(),
        Some("odd")
    );
    // An encoded slash is a slash, and names the same file.
    assert_eq!(served(&machine, &server, "a%2fb").as_deref(), Some("b"));
    // The tenant is no part of a path either.
    for tenant in ["%2e%2e", "..", "demo%2f..", "demo%00"] {
        let answer = get(&machine, &server, &format!("/apps/{tenant}/index.html"), "");
        assert!(
            matches!(answer.status, 400 | 404),
            "{tenant}: {}",
            answer.status
        );
    }
}

#[test]
fn files_are_for_those_with_a_credential() {
    let (machine, server) = demo();
    deploy(&server, &with_files("v1", &[file("index.html", b"root")]));
    for path in [
        "/apps/demo",
        "/apps/demo/",
        "/apps/demo/index.html",
        "/apps/demo/none",
        "/apps/nobody/",
    ] {
        let answer = send_bare(&server, &format!("GET {path}"), "", b"");
        assert_refused(&answer, 401, "auth.unauthorized");
    }
    let answer = get(
        &machine,
        &server,
        "/apps/demo/",
        "Origin: https://evil.example\r\n",
    );
    assert_refused(&answer, 403, "auth.forbidden");
    for method in ["POST", "PUT", "DELETE"] {
        let answer = send(
            &machine,
            &server,
            &format!("{method} /apps/demo/index.html"),
            "",
            b"",
        );
        assert_refused(&answer, 405, "service.route_not_found");
    }
}
