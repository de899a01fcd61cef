//! What backups ask of a store, and of the machine, by count.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nimbus_test_support::{Machine, S3Proxy, Seaweed, Server, Traffic, make_bucket};
use serde_json::json;

use super::shipping::{begun, now_ms, pass};
use super::{backup_with, machine, s3};

const TO: &str = "s3://counted/repo";

/// A deployment with so many tenants, whose server ships through a proxy.
struct Counted {
    machine: Machine,
    proxy: S3Proxy,
    _seaweed: Seaweed,
}

impl Counted {
    fn new(tenants: usize) -> Self {
        let seaweed = Seaweed::start();
        make_bucket(seaweed.url(), "counted");
        let machine = machine();
        let server = machine.start(&[]);
        each(tenants, |number| {
            drop(server.create("/api/tenants", &json!({"id": name(number)})));
        });
        server.stop();
        Self {
            machine,
            proxy: S3Proxy::in_front_of(seaweed.url()),
            _seaweed: seaweed,
        }
    }

    fn ships(&self, arguments: &[&str]) -> Server {
        let mut command = self
            .machine
            .nimbus(&["start", "--port", "0", "--backup-to", TO]);
        let _ = command.args(arguments).envs(s3::settings(self.proxy.url()));
        let server = self.machine.start_command(command);
        begun(&server);
        server
    }

    /// What passed, once nothing has for some intervals. Panics where that does not come.
    fn quiet(&self) -> Traffic {
        let mut before = self.proxy.traffic();
        let mut quiet = 0;
        for _look in 0..120 {
            std::thread::sleep(Duration::from_millis(500));
            let now = self.proxy.traffic();
            quiet = if now == before { quiet + 1 } else { 0 };
            before = now;
            if quiet == 8 {
                return before;
            }
        }
        panic!("it goes on asking: {before:?}");
    }
}

fn name(number: usize) -> String {
    format!("t-{number:03}")
}

/// Something with each of so many tenants, a few at a time.
fn each(tenants: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let _thread = scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= tenants {
                        break;
                    }
                    work(number);
                }
            });
        }
    });
}

/// The tenants of which the server has a file open.
pub(super) fn open_tenants(server: &Server) -> BTreeSet<String> {
    let files = fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("its files");
    let targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    let tenant = |path: std::path::PathBuf| {
        let name = path.file_name()?.to_str()?.to_owned();
        name.starts_with("t-").then(|| name[..5].to_owned())
    };
    targets.filter_map(tenant).collect()
}

#[test]
fn tenants_at_rest_cost_no_request_and_no_descriptor_and_those_written_one_put_an_interval() {
    const TENANTS: usize = 200;
    const OPEN: usize = 16;
    let counted = Counted::new(TENANTS);
    let server = counted.ships(&["--max-open-tenants", &OPEN.to_string()]);
    let write = |number: usize| {
        let _id = server.insert(&name(number), "notes", &json!({"n": number}));
    };
    each(TENANTS, write);
    pass(&server, now_ms());
    // That nothing is asked any more is what this asserts.
    let rest = counted.quiet();
    let open = open_tenants(&server);
    assert!(!open.is_empty() && open.len() <= OPEN, "{open:?}");

    // A moment for each interval that is under way at the beginning and at the end.
    let began = Instant::now();
    for _round in 0..3 {
        each(TENANTS, write);
    }
    let written = began.elapsed();
    let busy = counted.quiet().since(&rest);
    let most = written.as_secs() + 3;
    assert!(busy.puts >= 1 && busy.puts <= most, "{busy:?}, {written:?}");
    assert!(busy.gets <= most && busy.lists == 0, "{busy:?}");
    assert!(open_tenants(&server).len() <= OPEN);
    server.stop();
}

#[test]
fn one_tenant_of_many_is_restored_by_reading_no_more_than_twice_its_bytes() {
    let counted = Counted::new(100);
    let server = counted.ships(&[]);
    for n in 0..60 {
        let text = "w".repeat(30_000);
        let _id = server.insert("t-007", "notes", &json!({"n": n, "text": text}));
    }
    pass(&server, now_ms());
    server.stop();
    // Another start: its snapshot has what was committed, and packs go on from it.
    let server = counted.ships(&[]);
    let _id = server.insert("t-007", "notes", &json!({"n": 60}));
    pass(&server, now_ms());
    server.stop();
    let own = fs::metadata(counted.machine.find("t-007.sqlite3")).expect("the tenant");
    let data = counted.machine.data_dir();
    let data = super::as_str(&data);
    let restore = ["restore", "--from", TO, "--data-dir", data];
    let before = counted.proxy.traffic();
    let _ = backup_with(
        &counted.machine,
        &[&restore[..], &["--tenant-id", "t-007", "--as", "copy"]].concat(),
        &s3::settings(counted.proxy.url()),
    )
    .expect(0, &["Restored"]);
    let read = counted.proxy.traffic().since(&before);
    assert!(read.received > own.len() / 2, "{read:?}");
    assert!(read.received <= 2 * own.len(), "{read:?} for {own:?}");
}

#[test]
fn tenants_that_stand_as_they_were_are_not_read_again_and_a_byte_that_changed_is() {
    const TENANTS: usize = 40;
    let counted = Counted::new(TENANTS);
    let machine = &counted.machine;
    let settings = s3::settings(counted.proxy.url());
    let create = || {
        // For longer than the times of a file are coarse.
        std::thread::sleep(Duration::from_secs(4));
        let before = counted.proxy.traffic();
        let _ = backup_with(machine, &["create", "--to", TO], &settings).expect(0, &["Snapshot"]);
        counted.proxy.traffic().since(&before)
    };
    let first = create();
    assert!(first.puts > 2 * TENANTS as u64, "{first:?}");
    let again = create();
    assert!(again.requests() < TENANTS as u64 / 2, "{again:?}");
    let server = machine.start(&[]);
    let _id = server.insert("t-007", "notes", &json!({"n": 1}));
    server.stop();
    let flipped = machine.find("t-009.sqlite3");
    let mut bytes = fs::read(&flipped).expect("a database");
    // In the IV of a page: by that it is another one than the one that is stored.
    bytes[2 * 4096 + 4020] ^= 1;
    fs::write(&flipped, bytes).expect("another byte");
    let _ = create();
    let restore = [
        "restore",
        "--from",
        TO,
        "--data-dir",
        "new",
        "--verify",
        "none",
    ];
    let _ = backup_with(machine, &restore, &settings).expect(0, &["Restored"]);
    for number in 0..TENANTS {
        let name = format!("{}.sqlite3", name(number));
        let read = |path| fs::read(path).expect("a database");
        let same = read(machine.find(&name)) == read(machine.path("new").join(&name));
        assert!(same, "{name}");
    }
}
