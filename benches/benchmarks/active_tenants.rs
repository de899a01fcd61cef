//! Tenants that are all in use: 64 clients spread over one, over a hundred and over a thousand
//! tenants, with default settings. `--many` adds five thousand.

use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use serde_json::Value;

use crate::http::{Connection, House};
use crate::report::{Measurement, Target, median};
use crate::setup::document;

pub(crate) fn run() -> Vec<Measurement> {
    let house = House::start(&[]);
    let most = if is_many() { 5000 } else { 1000 };
    let ids = create(&house, most);
    let mut crowd = house.crowd(CLIENTS, 4);
    let mut measurements = Vec::new();
    let mut alone: Option<(f64, f64)> = None;
    for tenants in [1, 100, 1000, 5000].into_iter().filter(|&n| n <= most) {
        let next = AtomicUsize::new(0);
        let tenant = |number: usize| number.wrapping_mul(STRIDE) % tenants;
        let insert = |number: usize| {
            let path = format!("/api/tenants/tenant-{}/documents", tenant(number));
            let body = format!(r#"{{"table":"places","fields":{}}}"#, document(number));
            house.request("POST", &path, &body)
        };
        let read = |number: usize| {
            let tenant = tenant(number);
            let path = format!(
                "/api/tenants/tenant-{tenant}/documents/places/{}",
                ids[tenant]
            );
            house.request("GET", &path, "")
        };
        // The first round opens the tenants.
        let mut inserts = Vec::new();
        let mut reads = Vec::new();
        for round in 0..=ROUNDS {
            let rates = (
                crowd.rate(ROUND, &next, 201, insert),
                crowd.rate(ROUND, &next, 200, read),
            );
            if round > 0 {
                inserts.push(rates.0);
                reads.push(rates.1);
            }
        }
        let rates = (median(inserts), median(reads));
        let (insert_alone, read_alone) = *alone.get_or_insert(rates);
        for (name, rate, alone, target) in [
            ("inserts", rates.0, insert_alone, 8000.0),
            ("point reads", rates.1, read_alone, 20_000.0),
        ] {
            println!(
                "{tenants} tenants: {name} {rate:.0}/s, {:.2} of one tenant",
                rate / alone
            );
            if tenants == 1000 {
                measurements.push(Measurement {
                    name: if name == "inserts" {
                        "inserts, 64 clients over 1000 tenants"
                    } else {
                        "point reads, 64 clients over 1000 tenants"
                    },
                    measured: format!("{rate:.0}/s"),
                    against: format!("{alone:.0}/s over one"),
                    value: rate,
                    unit: "/s",
                    target: Target::AtLeast(target),
                });
            }
        }
        println!("{}", memory(&house));
    }
    house.server.stop();
    measurements
}

/// Tenants of one document each; its id.
fn create(house: &House, tenants: usize) -> Vec<String> {
    let mut connection = Connection::new(house.server.connect());
    (0..tenants)
        .map(|number| {
            let body = format!(r#"{{"id":"tenant-{number}"}}"#);
            connection.send(&house.request("POST", "/api/tenants", &body));
            connection.receive(201);
            let path = format!("/api/tenants/tenant-{number}/documents");
            let body = format!(r#"{{"table":"places","fields":{}}}"#, document(number));
            connection.send(&house.request("POST", &path, &body));
            let made: Value = serde_json::from_slice(connection.receive(201)).expect("JSON");
            made["id"].as_str().expect("an id").to_owned()
        })
        .collect()
}

fn memory(house: &House) -> String {
    let status = format!("/proc/{}/status", house.server.pid());
    let status = std::fs::read_to_string(status).unwrap_or_default();
    let of = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        let words: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
        words.join(" ")
    };
    format!("  {}, {}, {}", of("VmRSS:"), of("VmHWM:"), of("Threads:"))
}

fn is_many() -> bool {
    std::env::args().any(|argument| argument == "--many")
}

const CLIENTS: usize = 64;
const STRIDE: usize = 1_299_709;
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(2);
