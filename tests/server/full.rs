//! A disk that gets full in the middle: space is given back page by page, so that each attempt gets
//! a little further than the one before.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use nimbus_test_support::{Machine, Server, whole};
use serde_json::json;

use super::disk::Disk;
use super::{assert_error, machine};

/// Files of one page each, with which the disk is full.
struct Ballast(Vec<PathBuf>);

impl Ballast {
    fn fill(dir: &Path) -> Self {
        let mut files = Vec::new();
        loop {
            let file = dir.join(format!("ballast-{}", files.len()));
            let full = fs::write(&file, [1; 4096]).is_err();
            files.push(file);
            if full {
                return Self(files);
            }
        }
    }

    /// Gives one page back; false when there is none any more.
    fn give_back(&mut self) -> bool {
        let Some(file) = self.0.pop() else {
            return false;
        };
        fs::remove_file(file).expect("a page is given back");
        true
    }
}

#[test]
fn a_creation_that_meets_a_full_disk_at_any_step_fails_alone_and_succeeds_once_there_is_space() {
    let machine = machine();
    let Some(_disk) = Disk::mount(&machine.data_dir(), "size=4m,mode=0700") else {
        return;
    };
    let server = start(&machine);
    let mut made = vec!["first".to_owned()];
    create(&server, "first");
    let mut refused = 0;
    for round in 0..3 {
        let mut ballast = Ballast::fill(&machine.data_dir());
        let tenant = format!("tenant{round}");
        loop {
            let body = json!({"id": tenant});
            let (status, answer) = server.request("POST", "/api/tenants", Some(&body));
            let listed = server.get("/api/tenants")["tenants"] != json!(made);
            if status == 201 {
                break;
            }
            assert_error(status, &answer, (503, "service.unavailable"));
            refused += 1;
            if listed {
                // It failed after the tenant had come into being, and does not hide it.
                let (status, answer) = server.request("POST", "/api/tenants", Some(&body));
                assert_error(status, &answer, (409, "op.already_exists"));
                break;
            }
            assert!(
                ballast.give_back(),
                "all space is there, and still: {answer}"
            );
        }
        while ballast.give_back() {}
        server.insert(&tenant, "things", &json!({"of": tenant}));
        made.push(tenant);
    }
    assert!(refused > 20, "{refused}");
    assert_whole(&machine, server, &made);
}

#[test]
fn a_deletion_that_meets_a_full_disk_is_refused_whole_or_ends() {
    let machine = machine();
    let Some(_disk) = Disk::mount(&machine.data_dir(), "size=4m,mode=0700") else {
        return;
    };
    let server = start(&machine);
    let mut kept = vec!["first".to_owned()];
    for tenant in ["first", "second", "third"] {
        create(&server, tenant);
    }
    for tenant in ["second", "third"] {
        let mut ballast = Ballast::fill(&machine.data_dir());
        loop {
            let (status, answer) =
                server.request("DELETE", &format!("/api/tenants/{tenant}"), None);
            if status == 204 {
                break;
            }
            assert_error(status, &answer, (503, "service.unavailable"));
            assert!(
                ballast.give_back(),
                "all space is there, and still: {answer}"
            );
        }
        while ballast.give_back() {}
    }
    create(&server, "second");
    kept.push("second".to_owned());
    assert_whole(&machine, server, &kept);
}

#[test]
fn a_first_start_on_a_full_disk_ends_with_the_reason_and_the_next_goes_on() {
    let machine = machine();
    let Some(_disk) = Disk::mount(&machine.data_dir(), "size=4m,mode=0700") else {
        return;
    };
    let mut ballast = Ballast::fill(&machine.data_dir());
    let mut refused = 0;
    let mut keys = HashSet::new();
    let server = loop {
        match machine.try_start(machine.nimbus(&[
            "start",
            "--port",
            "0",
            "--disk-reserve-bytes",
            "0",
        ])) {
            Ok(server) => break server,
            Err(ended) => {
                let full = ["No space left", "is full"]
                    .iter()
                    .any(|word| ended.said.contains(word));
                assert!(full, "{}", ended.said);
                ended.expect(1, &[machine.data_dir().to_str().expect("UTF-8")]);
            }
        }
        refused += 1;
        keys.insert(fs::read(machine.master_key()).ok());
        assert!(
            ballast.give_back(),
            "all space is there, and still it does not start"
        );
    };
    assert!(refused > 5, "{refused}");
    keys.insert(fs::read(machine.master_key()).ok());
    assert!(keys.len() <= 2, "no key, then one and the same");
    while ballast.give_back() {}
    create(&server, "first");
    assert_whole(&machine, server, &["first".to_owned()]);
}

#[test]
fn a_control_file_that_meets_a_full_disk_works_again_once_there_is_space() {
    let machine = machine();
    let control = machine.path("control");
    let Some(_disk) = Disk::mount(&control, "size=8m,mode=0700") else {
        return;
    };
    let arguments = &[
        "--control-data-dir",
        control.to_str().expect("UTF-8"),
        "--disk-reserve-bytes",
        "0",
    ];
    let server = machine.start(arguments);
    let mut ballast = Ballast::fill(&control);
    let mut made = Vec::new();
    let mut refused = 0;
    // Each tenant's manifest is mirrored in the control file, which has to grow in the end.
    while refused < 10 {
        let tenant = format!("t{:03}", made.len());
        assert!(made.len() < 400, "the control file does not grow");
        if try_create(&server, &tenant) {
            made.push(tenant);
        } else {
            refused += 1;
            let _ = ballast.give_back();
        }
        assert_eq!(server.get("/api/tenants"), whole("tenants", json!(made)));
    }
    // What needs no new page there is served.
    server.insert(&made[0], "things", &json!({}));
    while ballast.give_back() {}
    let tenant = format!("t{:03}", made.len());
    assert!(try_create(&server, &tenant), "without a restart");
    let deleted = made.remove(0);
    assert_eq!(
        server
            .request("DELETE", &format!("/api/tenants/{deleted}"), None)
            .0,
        204
    );
    made.push(tenant);
    assert_eq!(server.get("/ready")["ready"], json!(true));
    server.stop();
    let server = machine.start(arguments);
    assert_eq!(server.get("/api/tenants"), whole("tenants", json!(made)));
    for tenant in made {
        server.insert(&tenant, "things", &json!({}));
    }
    server.stop();
}

fn try_create(server: &Server, tenant: &str) -> bool {
    let (status, answer) = server.request("POST", "/api/tenants", Some(&json!({"id": tenant})));
    if status != 201 {
        assert_error(status, &answer, (503, "service.unavailable"));
    }
    status == 201
}

/// A server that closes each tenant for the next, so that an open one's files are not in the way.
fn start(machine: &Machine) -> Server {
    machine.start(&["--max-open-tenants", "1", "--disk-reserve-bytes", "0"])
}

fn create(server: &Server, tenant: &str) {
    server.create("/api/tenants", &json!({"id": tenant}));
    server.insert(tenant, "things", &json!({"of": tenant}));
}

/// Now and after a restart: the control file works, these tenants are there and no others, and each
/// has its document.
fn assert_whole(machine: &Machine, server: Server, tenants: &[String]) {
    let assert = |server: &Server| {
        assert_eq!(server.get("/ready")["ready"], json!(true));
        assert_eq!(server.get("/api/tenants"), whole("tenants", json!(tenants)));
        for tenant in tenants {
            let listed = server.get(&format!("/api/tenants/{tenant}/documents/things"));
            assert_eq!(listed["data"][0]["of"], json!(tenant));
            assert_eq!(listed["data"].as_array().map(Vec::len), Some(1));
        }
    };
    assert(&server);
    server.stop();
    let server = start(machine);
    assert(&server);
    server.stop();
}
