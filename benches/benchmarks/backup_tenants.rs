//! What backups of many tenants ask of the store: ten thousand at rest, a thousand that are written
//! each second, one of a thousand restored. The store is SeaweedFS behind a proxy that counts.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nimbus_test_support::{Machine, S3Proxy, Seaweed, make_bucket};
use serde_json::json;

use crate::copies::size;
use crate::http::{Connection, House};
use crate::many_tenants::{TENANTS, populate};
use crate::report::{Measurement, Target};
use crate::setup::{document, tenant};
use crate::shipping::until_shipped;

pub(crate) fn run() -> Vec<Measurement> {
    if std::env::var_os("NIMBUS_TEST_VENV").is_none() {
        println!(
            "left out: `scripts/test --setup` installs SeaweedFS, and NIMBUS_TEST_VENV=target/test-env/venv says where"
        );
        return Vec::new();
    }
    let store = Store::new();
    let mut measurements = at_rest(&store);
    measurements.extend(written(&store));
    measurements
}

struct Store {
    proxy: S3Proxy,
    _seaweed: Seaweed,
}

impl Store {
    fn new() -> Self {
        let seaweed = Seaweed::start();
        make_bucket(seaweed.url(), "bench");
        Self {
            proxy: S3Proxy::in_front_of(seaweed.url()),
            _seaweed: seaweed,
        }
    }

    fn settings(&self) -> [(&str, &str); 6] {
        [
            ("NIMBUS_BACKUP_S3_ENDPOINT_URL", self.proxy.url()),
            ("NIMBUS_BACKUP_S3_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_CONFIG_FILE", "/dev/null"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ]
    }

    fn ships(&self, machine: Machine, arguments: &[&str]) -> House {
        let mut start = machine.nimbus(&["start", "--port", "0"]);
        start.args(arguments).envs(self.settings());
        let server = machine.start_command(start);
        House::of(machine, server)
    }
}

/// Ten thousand tenants, of which 512 are open.
fn at_rest(store: &Store) -> Vec<Measurement> {
    let machine = Machine::new(env!("CARGO_BIN_EXE_nimbus"));
    populate(&machine);
    let open = ["--max-open-tenants", "512"];
    let house = House::restarted(machine, &open);
    let plain = resting(&house);
    let House {
        server, machine, ..
    } = house;
    server.stop();
    let house = store.ships(
        machine,
        &[&open[..], &["--backup-to", "s3://bench/many"]].concat(),
    );
    until_shipped(&house);
    let shipping = resting(&house);
    let before = store.proxy.traffic();
    thread::sleep(QUIET);
    let asked = store.proxy.traffic().since(&before).requests();
    let peak = status_kib(&house, "VmHWM:") / 1024.0;
    let House {
        server, machine, ..
    } = house;
    server.stop();
    // What the first snapshot of all of them took does not come again.
    let house = store.ships(
        machine,
        &[&open[..], &["--backup-to", "s3://bench/many"]].concat(),
    );
    until_shipped(&house);
    let again = resting(&house);
    let peak_again = status_kib(&house, "VmHWM:") / 1024.0;
    house.server.stop();
    vec![
        Measurement {
            name: "requests in 10 s, 10 000 tenants at rest, 512 open",
            measured: asked.to_string(),
            against: String::new(),
            value: asked as f64,
            unit: "",
            target: Target::AtMost(0.0),
        },
        Measurement {
            name: "descriptors, the same",
            measured: shipping.files.to_string(),
            against: format!("{} without shipping", plain.files),
            value: shipping.files as f64 - plain.files as f64,
            unit: "more",
            target: Target::AtMost(16.0),
        },
        Measurement {
            name: "memory, the same",
            measured: format!("{:.1} MiB (peak {peak_again:.0})", again.mib),
            against: format!("{:.1} MiB without shipping", plain.mib),
            value: again.mib,
            unit: "MiB",
            target: Target::AtMost(150.0),
        },
        Measurement {
            name: "memory after the first snapshot of all",
            measured: format!("{:.1} MiB (peak {peak:.0})", shipping.mib),
            against: format!("{:.1} MiB without shipping", plain.mib),
            value: shipping.mib,
            unit: "MiB",
            target: Target::AtMost(150.0),
        },
    ]
}

struct Resources {
    files: usize,
    mib: f64,
}

/// 512 tenants are opened, written and left alone.
fn resting(house: &House) -> Resources {
    house.each(CONNECTIONS, 512, |connection, number| {
        write(house, connection, &tenant(number).to_string(), number);
    });
    thread::sleep(REST);
    let files = fs::read_dir(format!("/proc/{}/fd", house.server.pid())).expect("its files");
    Resources {
        files: files.count(),
        mib: status_kib(house, "VmRSS:") / 1024.0,
    }
}

fn status_kib(house: &House, name: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", house.server.pid()));
    status
        .expect("its status")
        .lines()
        .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.trim().parse().ok())
        .expect("a number of KiB")
}

/// A thousand tenants, each written once a second; then one of them is restored.
fn written(store: &Store) -> Vec<Measurement> {
    let machine = Machine::new(env!("CARGO_BIN_EXE_nimbus"));
    // So that there is an admin token.
    machine.start(&[]).stop();
    let house = store.ships(
        machine,
        &[
            "--max-open-tenants",
            "1000",
            "--backup-to",
            "s3://bench/thousand",
        ],
    );
    house.each(CONNECTIONS, WRITTEN, |connection, number| {
        let body = json!({"id": tenant(number).to_string()}).to_string();
        connection.send(&house.request("POST", "/api/tenants", &body));
        connection.receive(201);
    });
    let write_all = || {
        house.each(CONNECTIONS, WRITTEN, |connection, number| {
            write(&house, connection, &tenant(number).to_string(), number);
        });
    };
    write_all();
    until_shipped(&house);
    thread::sleep(Duration::from_secs(2));
    let before = store.proxy.traffic();
    let began = Instant::now();
    let mut late = 0;
    for round in 1..=SECONDS {
        write_all();
        let due = Duration::from_secs(round);
        late += u64::from(began.elapsed() > due);
        thread::sleep(due.saturating_sub(began.elapsed()));
    }
    let took = began.elapsed().as_secs_f64();
    let busy = store.proxy.traffic().since(&before);
    let puts = busy.puts as f64 / took;
    // One large tenant, and one as they all are.
    for number in 0..1500 {
        let mut connection = Connection::new(house.server.connect());
        let text = format!("{}{}", "t".repeat(4000), number);
        let body = json!({"table": "texts", "fields": {"text": text}}).to_string();
        let path = format!("/api/tenants/{}/documents", tenant(7));
        connection.send(&house.request("POST", &path, &body));
        connection.receive(201);
    }
    until_shipped(&house);
    let House {
        server, machine, ..
    } = house;
    server.stop();
    let read = |number: usize, name: &str| {
        let own = size(&machine.find(&format!("{}.sqlite3", tenant(number))));
        let mut restore = machine.nimbus(&["backup", "restore", "--from", "s3://bench/thousand"]);
        restore
            .args([
                "--data-dir",
                "data",
                "--tenant-id",
                &tenant(number).to_string(),
            ])
            .args(["--as", name])
            .envs(store.settings());
        let before = store.proxy.traffic();
        let ran = restore.output().expect("it runs");
        assert!(
            ran.status.success(),
            "{}",
            String::from_utf8_lossy(&ran.stderr)
        );
        let read = store.proxy.traffic().since(&before);
        (read.received as f64, own as f64, read.requests())
    };
    let restored = |name, number, as_new, target| {
        let (bytes, own, requests) = read(number, as_new);
        Measurement {
            name,
            measured: format!(
                "{:.2} MiB in {requests} requests",
                bytes / f64::from(1 << 20)
            ),
            against: format!("{:.2} MiB", own / f64::from(1 << 20)),
            value: bytes / own,
            unit: "×",
            target,
        }
    };
    vec![
        Measurement {
            name: "PUTs a second, 1000 tenants written each second",
            measured: format!("{puts:.2}/s ({} GETs, {} lists)", busy.gets, busy.lists),
            against: format!("{late} of {SECONDS} rounds took longer than a second"),
            value: puts,
            unit: "/s",
            target: Target::AtMost(1.1),
        },
        restored(
            "bytes read to restore one tenant of 1000",
            7,
            "large",
            Target::AtMost(2.0),
        ),
        restored(
            "the same of a tenant of a few documents",
            8,
            "small",
            Target::None,
        ),
    ]
}

fn write(house: &House, connection: &mut Connection, tenant: &str, number: usize) {
    let path = format!("/api/tenants/{tenant}/documents");
    let body = format!(r#"{{"table":"places","fields":{}}}"#, document(number));
    connection.send(&house.request("POST", &path, &body));
    connection.receive(201);
}

const WRITTEN: usize = 1000;
const SECONDS: u64 = 15;
const CONNECTIONS: usize = 16;
const REST: Duration = Duration::from_secs(40);
const QUIET: Duration = Duration::from_secs(10);
const _: () = assert!(TENANTS == 10_000);
