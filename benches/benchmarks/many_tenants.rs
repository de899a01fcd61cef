//! Ten thousand tenants in the directory: how long `status` takes, and a start, and how much
//! memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nimbus::control::Control;
use nimbus::envelope::{Envelope, manifest_path, read_manifest};
use nimbus::tenants::TenantProvider as _;
use nimbus::tenants::sqlite::{SqliteOptions, SqliteTenants};
use nimbus_test_support::Machine;
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::report::{Measurement, Target, median, seconds, time};
use crate::setup::{self, runtime, tenant};

pub(crate) fn run() -> Vec<Measurement> {
    let machine = Machine::new(env!("CARGO_BIN_EXE_nimbus"));
    populate(&machine);
    let empty = Machine::new(env!("CARGO_BIN_EXE_nimbus"));
    // Its first start makes the key and the control file.
    let _first = start(&empty);

    let statuses = (0..=ROUNDS).map(|_| status(&machine)).skip(1).collect();
    let status = median(statuses);
    let (mut starts, mut bases) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let base = start(&empty);
        let full = start(&machine);
        if round > 0 {
            bases.push(base);
            starts.push(full);
        }
    }
    let column = |runs: &[Run], of: fn(&Run) -> f64| median(runs.iter().map(of).collect());
    let seconds_of = |runs: &[Run]| column(runs, |run| run.seconds);
    let mib_of = |runs: &[Run]| column(runs, |run| run.peak_mib);
    vec![
        Measurement {
            name: "status, 10 000 tenants",
            measured: time(status),
            against: String::new(),
            value: status,
            unit: "s",
            target: Target::AtMost(2.0),
        },
        Measurement {
            name: "start to listening, 10 000 tenants",
            measured: time(seconds_of(&starts)),
            against: format!("{} without any", time(seconds_of(&bases))),
            value: seconds_of(&starts),
            unit: "s",
            target: Target::AtMost(1.0),
        },
        Measurement {
            name: "peak memory of that start",
            measured: format!("{:.1} MiB", mib_of(&starts)),
            against: format!("{:.1} MiB without any", mib_of(&bases)),
            value: mib_of(&starts),
            unit: "MiB",
            target: Target::AtMost(150.0),
        },
    ]
}

struct Run {
    seconds: f64,
    peak_mib: f64,
}

/// Starts a server and waits until it listens.
fn start(machine: &Machine) -> Run {
    let mut server = None;
    let seconds = seconds(|| server = Some(machine.start(&[])));
    let server = server.expect("it was started");
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("its status");
    let peak_kib: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.trim().parse().ok())
        .expect("its peak memory");
    server.stop();
    Run {
        seconds,
        peak_mib: peak_kib / 1024.0,
    }
}

/// Runs `nimbus encryption status`, which unwraps and verifies each manifest.
fn status(machine: &Machine) -> f64 {
    let mut command = machine.nimbus(&["encryption", "status", "--format", "json"]);
    let mut output = None;
    let seconds = seconds(|| output = Some(command.output().expect("nimbus runs")));
    let output = output.expect("it ran");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        answer["summary"]["ok"],
        TENANTS + 1,
        "{}",
        answer["summary"]
    );
    seconds
}

/// Has the library make the tenants, where a flush is free if there is such a place, and copies
/// them to the machine.
pub(crate) fn populate(machine: &Machine) {
    let shared_memory = Path::new("/dev/shm");
    let nursery = if shared_memory.is_dir() {
        TempDir::new_in(shared_memory).expect("a directory in memory")
    } else {
        setup::directory()
    };
    let key = machine.master_key();
    fs::create_dir_all(key.parent().expect("it lies in a directory")).expect("its directory");
    runtime().block_on(async {
        let envelope = setup::encryption(nursery.path()).await;
        let _bytes = fs::copy(nursery.path().join("master.key"), &key).expect("the key copied");
        let control = Control::open(&envelope, nursery.path()).await;
        let control = Arc::new(control.expect("a control file"));
        create(envelope, &control, nursery.path()).await;
        mirror(&control, nursery.path());
    });
    let data = machine.data_dir();
    fs::create_dir_all(&data).expect("the data directory");
    for entry in fs::read_dir(nursery.path()).expect("the nursery") {
        let entry = entry.expect("an entry");
        if entry.path().file_name() != key.file_name() {
            let _bytes = fs::copy(entry.path(), data.join(entry.file_name())).expect("a copy");
        }
    }
}

async fn create(envelope: Envelope, control: &Arc<Control>, dir: &Path) {
    let options = SqliteOptions {
        max_open_tenants: 64,
        ..SqliteOptions::default()
    };
    let tenants = SqliteTenants::open(envelope, control.clone(), dir.to_owned(), options).await;
    let tenants = tenants.expect("a directory of tenants");
    let mut tasks = JoinSet::new();
    for share in 0..AT_ONCE {
        let tenants = tenants.clone();
        drop(tasks.spawn(async move {
            for number in (share..TENANTS).step_by(AT_ONCE) {
                tenants
                    .create_tenant(&tenant(number))
                    .await
                    .expect("a tenant");
            }
        }));
    }
    let _done = tasks.join_all().await;
    tenants.close().await.expect("tenants close");
}

/// Copies all manifests into the control file, in one commit rather than in ten thousand.
fn mirror(control: &Control, dir: &Path) {
    let path = |number| -> PathBuf { dir.join(format!("{}.sqlite3", tenant(number))) };
    let manifests: Vec<_> = (0..TENANTS)
        .map(|number| read_manifest(&manifest_path(&path(number))))
        .map(|manifest| manifest.expect("it can be read").expect("a manifest"))
        .collect();
    let copies = manifests
        .iter()
        .map(|manifest| (manifest.claims().subject(), manifest.as_bytes()));
    control.put_many(copies).expect("mirrored");
}

pub(crate) const TENANTS: usize = 10_000;
const AT_ONCE: usize = 16;
const ROUNDS: usize = 5;
