//! More tenants than may be open: what the server holds while they are written in turn, and what an
//! open one costs that nobody uses.

use std::fs;
use std::thread;
use std::time::Duration;

use nimbus_test_support::Machine;

use crate::http::House;
use crate::report::{Measurement, Target};
use crate::setup::document;

pub(crate) fn run() -> Vec<Measurement> {
    let house = House::start(&["--max-open-tenants", "128"]);
    create(&house);
    let mut measurements = rounds(&house);
    let House {
        server, machine, ..
    } = house;
    server.stop();
    measurements.push(idle(machine));
    measurements
}

/// Every tenant written in turn, again and again.
fn rounds(house: &House) -> Vec<Measurement> {
    let held: Vec<Resources> = (0..ROUNDS)
        .map(|_| {
            write(house, TENANTS);
            Resources::by(house.server.pid())
        })
        .collect();
    // The first round makes what all others have: threads, arenas, each tenant's table.
    let (early, late) = (&held[1], &held[ROUNDS - 1]);
    let most = held.iter().map(|held| held.files).max().unwrap_or_default();
    vec![
        Measurement {
            name: "files, 1000 tenants in turn, 128 open, round 10 by 2",
            measured: format!("{} (most {most})", late.files),
            against: early.files.to_string(),
            value: late.files as f64 / early.files as f64,
            unit: "×",
            target: Target::AtMost(1.1),
        },
        Measurement {
            name: "memory, the same",
            measured: format!("{:.1} MiB", late.kib / 1024.0),
            against: format!("{:.1} MiB", early.kib / 1024.0),
            value: late.kib / early.kib,
            unit: "×",
            target: Target::AtMost(1.1),
        },
    ]
}

/// A fresh server with one tenant open that rests, and with 128.
fn idle(machine: Machine) -> Measurement {
    let house = House::restarted(machine, &["--max-open-tenants", "128"]);
    let resting = |tenants| {
        write(&house, tenants);
        // Three times as long as the store waits before it gives back what an idle tenant does not
        // need, and a little.
        thread::sleep(REST);
        Resources::by(house.server.pid()).kib
    };
    let (one, all) = (resting(1), resting(128));
    house.server.stop();
    let each = (all - one) / 127.0;
    Measurement {
        name: "memory of an open idle tenant",
        measured: format!("{:.1} MiB with 128 open", all / 1024.0),
        against: format!("{:.1} MiB with one", one / 1024.0),
        value: each,
        unit: "KiB",
        target: Target::AtMost(400.0),
    }
}

struct Resources {
    files: usize,
    /// Resident.
    kib: f64,
}

impl Resources {
    fn by(pid: u32) -> Self {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("its files");
        let memory = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"));
        let kib = memory.expect("its memory").lines().find_map(|line| {
            line.strip_prefix("Rss:")?
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        });
        Self {
            files: files.count(),
            kib: kib.expect("a number of KiB"),
        }
    }
}

fn create(house: &House) {
    house.each(CONNECTIONS, TENANTS, |connection, number| {
        let body = format!(r#"{{"id":"tenant-{number}"}}"#);
        connection.send(&house.request("POST", "/api/tenants", &body));
        connection.receive(201);
    });
}

/// A document into each of the first tenants, and the list of all there: any answer but success
/// ends the run.
fn write(house: &House, tenants: usize) {
    house.each(CONNECTIONS, tenants, |connection, number| {
        let path = format!("/api/tenants/tenant-{number}/documents");
        let body = format!(r#"{{"table":"places","fields":{}}}"#, document(number));
        connection.send(&house.request("POST", &path, &body));
        connection.receive(201);
        connection.send(&house.request("GET", &format!("{path}/places"), ""));
        connection.receive(200);
    });
}

const TENANTS: usize = 1000;
const ROUNDS: usize = 10;
const CONNECTIONS: usize = 8;
const REST: Duration = Duration::from_secs(40);
