//! New keys: ten thousand manifests under another master key, and one large tenant under another
//! data key, its server stopped and running.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nimbus_keyproviders::{OsRandom, keyfile};
use nimbus_test_support::Machine;
use serde_json::json;
use tempfile::NamedTempFile;

use crate::copies;
use crate::http::House;
use crate::many_tenants::{TENANTS, populate};
use crate::report::{Measurement, Target, in_turn, seconds, time, with_range};
use crate::setup::{document, tenant};

pub(crate) fn run() -> Vec<Measurement> {
    let mut measurements = copies::run();
    measurements.extend(under_load());
    measurements
}

/// `rotate-kek --all` by the command, process and audit log among it, against plain code that
/// replaces as many files of that size in a directory of the same shape.
pub(crate) fn rewrapping() -> Vec<Measurement> {
    let machine = Machine::new(env!("CARGO_BIN_EXE_nimbus"));
    populate(&machine);
    let plain = machine.path("plain");
    copy_of(&machine.data_dir(), &plain);
    let text = fs::read(machine.find("tenant-00000.sqlite3.nimbus-enc")).expect("a manifest");
    let mut key = machine.master_key();
    let mut number = 0;
    let sides = in_turn(
        ROUNDS,
        || {
            number += 1;
            let new = machine.path(&format!("new-{number}.key"));
            let _key = keyfile::generate_new(&new, &OsRandom).expect("a new key file");
            let time = seconds(|| rewrap(&machine, &key, &new));
            key = new;
            time
        },
        || seconds(|| replace(&plain, &text)),
    );
    vec![
        Measurement {
            name: "rotate-kek --all, 10 000 tenants",
            measured: with_range(sides.first, sides.ranges[0]),
            against: String::new(),
            value: sides.first,
            unit: "s",
            target: Target::AtMost(5.0),
        },
        Measurement {
            name: "the same against 10 000 files replaced by plain code",
            measured: time(sides.first),
            against: format!("{} plain", with_range(sides.second, sides.ranges[1])),
            value: sides.ratio,
            unit: "×",
            target: Target::AtMost(2.0),
        },
    ]
}

/// Moves every file from one master key to the other.
fn rewrap(machine: &Machine, old: &Path, new: &Path) {
    let mut command = machine.nimbus(&["encryption", "rotate-kek", "--path", "data", "--all"]);
    command
        .arg("--new-master-key-file")
        .arg(new)
        .env("NIMBUS_ENCRYPTION_MASTER_KEY_FILE", old);
    let output = command.output().expect("nimbus runs");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let all = format!("{} rewrapped, 0 had it already, 0 failed", TENANTS + 1);
    assert!(output.status.success() && said.contains(&all), "{said}");
}

/// The same files as in a directory, all flushed.
fn copy_of(dir: &Path, copy: &Path) {
    fs::create_dir(copy).expect("a directory");
    for entry in fs::read_dir(dir).expect("the directory") {
        let entry = entry.expect("an entry");
        let _bytes = fs::copy(entry.path(), copy.join(entry.file_name())).expect("a copy");
    }
    let copy = File::open(copy).expect("the copy");
    rustix::fs::syncfs(&copy).expect("it is flushed");
}

/// Every manifest of the directory replaced by a file of this content, durably: the fewest flushes
/// there can be, one for the contents and one for the names.
fn replace(dir: &Path, text: &[u8]) {
    let written: Vec<(tempfile::TempPath, PathBuf)> = (0..TENANTS)
        .map(|number| {
            let mut file = NamedTempFile::new_in(dir).expect("a temporary file");
            file.write_all(text).expect("it is written");
            let manifest = format!("{}.sqlite3.nimbus-enc", tenant(number));
            (file.into_temp_path(), dir.join(manifest))
        })
        .collect();
    let dir = File::open(dir).expect("the directory");
    rustix::fs::syncfs(&dir).expect("contents are flushed");
    for (temporary, path) in written {
        temporary.persist(path).expect("it is renamed");
    }
    rustix::fs::syncfs(&dir).expect("names are flushed");
}

/// A tenant gets one new data key after the other from a running server, while it and others are
/// written.
fn under_load() -> Vec<Measurement> {
    let house = House::start(&[]);
    let next = AtomicUsize::new(0);
    let insertion = |number: usize, tenant: &str| {
        let path = format!("/api/tenants/{tenant}/documents");
        let body = format!(r#"{{"table":"places","fields":{}}}"#, document(number));
        house.request("POST", &path, &body)
    };
    let mut filling = house.crowd(CLIENTS, CLIENTS);
    while copies::size(&house.machine.find("demo.sqlite3")) < ONLINE_BYTES {
        let _rate = filling.rate(ROUND, &next, 201, |number| insertion(number, "demo"));
    }
    drop(filling);
    for other in 0..OTHERS {
        let id = format!("other-{other}");
        house.server.create("/api/tenants", &json!({"id": id}));
    }
    let mut others = house.crowd(CLIENTS, CLIENTS);
    let mut writers = house.crowd(WRITERS, WRITERS);
    // Few writers of the tenant itself go on in both: the exchange is then between their commits.
    let mut rate = || {
        let mut measured = 0.0;
        thread::scope(|scope| {
            let _writing = scope.spawn(|| {
                let _rate = writers.rate(ROUND, &next, 201, |number| insertion(number, "demo"));
            });
            measured = others.rate(ROUND, &next, 201, |number| {
                insertion(number, &format!("other-{}", number % OTHERS))
            });
        });
        measured
    };
    let mut rotations = Vec::new();
    let rate = std::cell::RefCell::new(&mut rate);
    let sides = in_turn(
        ROUNDS,
        || while_rotating(&house, &mut rotations, || (rate.borrow_mut())()),
        || (rate.borrow_mut())(),
    );
    let mut held = held(&house);
    held.sort_by(f64::total_cmp);
    let worst = *held.last().expect("rotations");
    let bytes = copies::size(&house.machine.find("demo.sqlite3"));
    let measurements = vec![
        Measurement {
            name: "rotate-dek online: writer held, the worst",
            measured: format!("{worst:.1} ms of {} rotations", held.len()),
            against: format!("median {:.1} ms", held[held.len() / 2]),
            value: worst,
            unit: "ms",
            target: Target::AtMost(50.0),
        },
        Measurement {
            name: "rotate-dek online: inserts of other tenants",
            measured: format!("{:.0}/s meanwhile", sides.first),
            against: format!("{:.0}/s before", sides.second),
            value: sides.ratio,
            unit: "×",
            target: Target::AtLeast(0.8),
        },
        Measurement {
            name: "rotate-dek online: how long under that load",
            measured: format!("{} MiB", bytes >> 20),
            against: String::new(),
            value: crate::report::median(rotations),
            unit: "s",
            target: Target::None,
        },
    ];
    house.server.stop();
    measurements
}

/// What `measure` gives while the tenant gets new data keys, one after the other, until it ends.
fn while_rotating(house: &House, rotations: &mut Vec<f64>, measure: impl FnOnce() -> f64) -> f64 {
    let measured = AtomicBool::new(false);
    thread::scope(|scope| {
        let _rotating = scope.spawn(|| {
            while !measured.load(Ordering::Relaxed) {
                rotations.push(seconds(|| rotate(house)));
            }
        });
        let value = measure();
        measured.store(true, Ordering::Relaxed);
        value
    })
}

fn rotate(house: &House) {
    let mut command = house.machine.nimbus(&["encryption", "rotate-dek"]);
    command.args(["--tenant-id", "demo", "--path", "data/demo.sqlite3"]);
    let output = command.output().expect("nimbus runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

/// Milliseconds that the writer was held by each rotation, as the server logged them.
fn held(house: &House) -> Vec<f64> {
    house
        .server
        .log()
        .split("held_us=")
        .skip(1)
        .map(|rest| {
            let digits = rest.split(|other: char| !other.is_ascii_digit()).next();
            let micros: f64 = digits.and_then(|one| one.parse().ok()).expect("a time");
            micros / 1e3
        })
        .collect()
}

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);
const ONLINE_BYTES: u64 = 64 << 20;
const CLIENTS: usize = 16;
const WRITERS: usize = 2;
const OTHERS: usize = 4;
