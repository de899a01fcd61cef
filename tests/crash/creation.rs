//! The creation of a tenant: every row of the creation table in `docs/lifecycle.md`.

use std::fs;

use nimbus_test_support::{Machine, whole};
use serde_json::json;

use super::{
    BYSTANDER, Bystander, TEMPORARY, armed, assert_keeps_documents, data_file, identity, machine,
    manifest_field, names, send_to_death, start_armed, tenants,
};

/// What a creation that was cut short has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// No manifest: the tenant was never created.
    Nothing,
    /// A manifest `new`, and no file in its place.
    New,
    /// A manifest `new`, and the whole file.
    NewWithFile,
    /// The same, and a copy of the manifest `ready` in the control file: a tenant.
    Mirrored,
    /// A manifest `ready`, and the file: a tenant.
    Ready,
}

/// Point, how often it is passed before (a creation writes two manifests), what is left, and
/// whether a temporary file is.
pub(super) const POINTS: &[(&str, u32, Left, bool)] = &[
    ("manifest::temporary-created", 0, Left::Nothing, true),
    ("manifest::temporary-written", 0, Left::Nothing, true),
    ("manifest::temporary-flushed", 0, Left::Nothing, true),
    ("manifest::renamed", 0, Left::New, false),
    ("manifest::published", 0, Left::New, false),
    ("sqlcipher::connected", 0, Left::New, true),
    ("sqlcipher::initialised", 0, Left::New, true),
    ("sqlcipher::flushed", 0, Left::New, true),
    ("sqlcipher::renamed", 0, Left::NewWithFile, false),
    ("manifest::mirrored", 0, Left::Mirrored, false),
    ("manifest::temporary-created", 1, Left::Mirrored, true),
    ("manifest::temporary-written", 1, Left::Mirrored, true),
    ("manifest::temporary-flushed", 1, Left::Mirrored, true),
    ("manifest::renamed", 1, Left::Ready, false),
    ("manifest::published", 1, Left::Ready, false),
    ("tenants::create::opened", 0, Left::Ready, false),
];

#[test]
fn a_creation_killed_before_its_manifest_never_was() {
    sweep(Left::Nothing);
}

#[test]
fn a_creation_killed_before_its_file_goes_on_under_the_same_key() {
    sweep(Left::New);
}

#[test]
fn a_creation_killed_behind_its_file_goes_on_with_that_file() {
    sweep(Left::NewWithFile);
}

#[test]
fn a_creation_killed_behind_its_copy_is_a_tenant() {
    sweep(Left::Mirrored);
}

#[test]
fn a_creation_killed_once_ready_is_a_tenant() {
    sweep(Left::Ready);
}

fn sweep(left: Left) {
    for (point, passes, _, temporary) in POINTS.iter().filter(|row| row.2 == left) {
        eprintln!("killed at {point}, passed {passes} times before");
        kill_and_go_on(&armed(point, *passes), left, *temporary);
    }
}

fn kill_and_go_on(failpoints: &str, left: Left, temporary: bool) {
    let machine = machine();
    let bystander = Bystander::settle(&machine, &[]);
    let server = start_armed(&machine, &[], failpoints);
    create_to_death(&machine, server);
    assert_left(&machine, left, temporary);
    let key = identity(&machine, FILE);

    let server = machine.start(&[]);
    assert_eq!(names(&machine, TEMPORARY), [""; 0], "leftovers are removed");
    let mut expected = vec![BYSTANDER.to_owned()];
    let made = matches!(left, Left::Mirrored | Left::Ready);
    if made {
        expected.push(TENANT.to_owned());
    }
    assert_eq!(tenants(&server), expected);
    let (status, answer) = server.request("POST", "/api/tenants", Some(&json!({"id": TENANT})));
    assert_eq!(status, if made { 409 } else { 201 }, "{answer}");
    if key.is_some() {
        assert_eq!(
            identity(&machine, FILE),
            key,
            "the same file under the same key"
        );
    }
    assert_eq!(names(&machine, "tenant.sqlite3.set-aside"), [""; 0]);
    bystander.assert_undisturbed(&machine, &server);
    assert_keeps_documents(&machine, &[], server, TENANT);
}

/// Kills a creation at one point after the other, each time in the attempt that goes on from the
/// last.
#[test]
fn a_creation_killed_again_and_again_ends_under_its_first_key() {
    let machine = machine();
    let bystander = Bystander::settle(&machine, &[]);
    let die_at = |point| {
        let server = start_armed(&machine, &[], &armed(point, 0));
        create_to_death(&machine, server);
    };
    die_at("manifest::renamed");
    let first = identity(&machine, FILE).expect("a key");
    // The manifest `new` is there: the only one that is still written is `ready`.
    for point in [
        "sqlcipher::connected",
        "sqlcipher::initialised",
        "sqlcipher::flushed",
        "sqlcipher::renamed",
        "manifest::mirrored",
    ] {
        die_at(point);
        assert_eq!(
            identity(&machine, FILE).as_ref(),
            Some(&first),
            "killed at {point}"
        );
    }
    // From here on it is a tenant, whose first opening ends its creation.
    for point in ["manifest::temporary-written", "manifest::temporary-flushed"] {
        let server = start_armed(&machine, &[], &armed(point, 0));
        assert_eq!(tenants(&server), [BYSTANDER, TENANT]);
        let path = format!("/api/tenants/{TENANT}/documents/things");
        send_to_death(&machine, server, "GET", &path, None);
        assert_eq!(
            manifest_field(&machine, FILE, "state").as_deref(),
            Some("new")
        );
    }
    let server = machine.start(&[]);
    assert_eq!(tenants(&server), [BYSTANDER, TENANT]);
    let documents = server.get(&format!("/api/tenants/{TENANT}/documents/things"));
    assert_eq!(documents, whole("data", json!([])));
    assert_eq!(identity(&machine, FILE), Some(first));
    bystander.assert_undisturbed(&machine, &server);
    assert_keeps_documents(&machine, &[], server, TENANT);
}

#[test]
fn a_file_in_the_place_of_one_being_created_is_set_aside_and_never_deleted() {
    let machine = machine();
    let bystander = Bystander::settle(&machine, &[]);
    let server = start_armed(&machine, &[], &armed("manifest::published", 0));
    create_to_death(&machine, server);
    let strange = vec![7; 8192];
    fs::write(data_file(&machine, FILE), &strange).expect("a file of somebody else");

    let server = machine.start(&[]);
    server.create("/api/tenants", &json!({"id": TENANT}));
    let aside = fs::read(data_file(&machine, "tenant.sqlite3.set-aside-1"));
    assert_eq!(aside.expect("it is set aside"), strange);
    bystander.assert_undisturbed(&machine, &server);
    assert_keeps_documents(&machine, &[], server, TENANT);
}

#[test]
fn a_plaintext_creation_that_was_killed_leaves_no_file_or_a_whole_one() {
    for (point, exists) in [
        ("sqlcipher::connected", false),
        ("sqlcipher::initialised", false),
        ("sqlcipher::flushed", false),
        ("sqlcipher::renamed", true),
        ("tenants::create::opened", true),
    ] {
        eprintln!("killed at {point}");
        let machine = machine();
        let bystander = Bystander::settle(&machine, PLAINTEXT);
        let server = start_armed(&machine, PLAINTEXT, &armed(point, 0));
        create_to_death(&machine, server);
        assert_eq!(data_file(&machine, FILE).exists(), exists);

        let server = machine.start(PLAINTEXT);
        assert_eq!(names(&machine, TEMPORARY), [""; 0]);
        assert_eq!(tenants(&server).contains(&TENANT.to_owned()), exists);
        let (status, answer) = server.request("POST", "/api/tenants", Some(&json!({"id": TENANT})));
        assert_eq!(status, if exists { 409 } else { 201 }, "{answer}");
        bystander.assert_undisturbed(&machine, &server);
        assert_keeps_documents(&machine, PLAINTEXT, server, TENANT);
    }
}

fn create_to_death(machine: &Machine, server: nimbus_test_support::Server) {
    let body = json!({"id": TENANT});
    send_to_death(machine, server, "POST", "/api/tenants", Some(&body));
}

fn assert_left(machine: &Machine, left: Left, temporary: bool) {
    assert_eq!(!names(machine, TEMPORARY).is_empty(), temporary);
    let state = manifest_field(machine, FILE, "state");
    let expected = match left {
        Left::Nothing => None,
        Left::New | Left::NewWithFile | Left::Mirrored => Some("new"),
        Left::Ready => Some("ready"),
    };
    assert_eq!(state.as_deref(), expected);
    let file = matches!(left, Left::NewWithFile | Left::Mirrored | Left::Ready);
    assert_eq!(data_file(machine, FILE).exists(), file);
}

const TENANT: &str = "tenant";
const FILE: &str = "tenant.sqlite3";
const PLAINTEXT: &[&str] = &["--encryption-key-provider", "none"];
