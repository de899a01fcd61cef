//! Tenants that are created by 32 clients at once, and tenants that are opened again because more
//! are in use than may be open.

use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use crate::http::House;
use crate::report::{Measurement, Target, median};

pub(crate) fn run() -> Vec<Measurement> {
    let house = House::start(&["--max-open-tenants", "256"]);
    let next = AtomicUsize::new(0);
    let create = |number: usize| {
        let body = format!(r#"{{"id":"tenant-{number}"}}"#);
        house.request("POST", "/api/tenants", &body)
    };
    let mut crowd = house.crowd(CLIENTS, 4);
    let rates: Vec<f64> = (0..ROUNDS)
        .map(|_| crowd.rate(ROUND, &next, 201, create))
        .collect();
    let made = next.load(std::sync::atomic::Ordering::Relaxed);
    let rate = median(rates);

    // Each request meets a tenant that was closed since it was used last.
    let used = made.min(2048);
    let turn = AtomicUsize::new(0);
    let read = |number: usize| {
        let tenant = number % used;
        house.request(
            "GET",
            &format!("/api/tenants/tenant-{tenant}/documents/places"),
            "",
        )
    };
    let mut crowd = house.crowd(8, 4);
    let _warm = crowd.rate(ROUND, &turn, 200, read);
    let before = (
        house.server_time(),
        turn.load(std::sync::atomic::Ordering::Relaxed),
    );
    let reopened = crowd.rate(ROUND, &turn, 200, read);
    let after = (
        house.server_time(),
        turn.load(std::sync::atomic::Ordering::Relaxed),
    );
    let each = (after.0 - before.0) / (after.1 - before.1) as f64;
    house.server.stop();
    vec![
        Measurement {
            name: "tenants created, 32 clients",
            measured: format!("{rate:.0}/s"),
            against: String::new(),
            value: rate,
            unit: "/s",
            target: Target::AtLeast(1000.0),
        },
        Measurement {
            name: "a tenant opened again and read, processor time of the server",
            measured: format!("{:.0} µs, {reopened:.0}/s", each * 1e6),
            against: String::new(),
            value: each * 1e3,
            unit: " ms",
            target: Target::AtMost(0.2),
        },
    ]
}

const CLIENTS: usize = 32;
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(2);
