//! A thousand open tenants, each under a KMS key of its own, so that each lease is a call: what
//! renewing them does to the requests of one.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use nimbus_test_support::Machine;
use serde_json::json;

use crate::http::{Connection, House};
use crate::kms::{Kms, arn};
use crate::report::{Measurement, Target, median, time};
use crate::setup::tenant;

pub(crate) fn run() -> Vec<Measurement> {
    let mut renewing = Side::start("10s");
    // The same tenants, under leases of which none ends while this measures.
    let mut resting = Side::start("1h");
    let (mut with, mut without) = (Vec::new(), Vec::new());
    let before = renewing.kms.decrypted();
    let started = Instant::now();
    for round in 0..=ROUNDS {
        let (one, other) = (renewing.read(), resting.read());
        if round > 0 {
            with.push(one);
            without.push(other);
        }
    }
    let renewals = (renewing.kms.decrypted() - before) as f64 / started.elapsed().as_secs_f64();
    let measurement = |name, of: fn(&Latency) -> f64, bound| {
        let ratios = with.iter().zip(&without).map(|(a, b)| of(a) / of(b));
        let middle = |side: &[Latency]| time(median(side.iter().map(of).collect()));
        Measurement {
            name,
            measured: format!("{}, {renewals:.0} renewals/s", middle(&with)),
            against: format!("{} without", middle(&without)),
            value: median(ratios.collect()),
            unit: "×",
            target: Target::AtMost(bound),
        }
    };
    let measurements = vec![
        measurement(
            "point read beside 1000 leases of 10 s, median",
            |seen| seen.median,
            1.1,
        ),
        measurement("the same, 99th percentile", |seen| seen.tail, 1.25),
    ];
    renewing.house.server.stop();
    resting.house.server.stop();
    measurements
}

struct Latency {
    median: f64,
    tail: f64,
}

/// A server whose tenants are all open, and a client of one of them.
struct Side {
    house: House,
    kms: Kms,
    connection: Connection,
    request: Vec<u8>,
}

impl Side {
    fn start(lease: &str) -> Self {
        let kms = Kms::start();
        let machine = Machine::new(env!("CARGO_BIN_EXE_nimbus"));
        let keys: BTreeMap<_, _> = (0..TENANTS)
            .map(|n| (tenant(n).to_string(), arn(1 + n)))
            .collect();
        let map = machine.path("keys.json");
        fs::write(&map, json!(keys).to_string()).expect("the map");
        let mut command = machine.nimbus(&["start", "--port", "0", "--max-open-tenants", "1024"]);
        command
            .args([
                "--encryption-key-provider",
                "aws-kms",
                "--encryption-aws-region",
                "us-east-1",
            ])
            .args(["--encryption-aws-kms-key-id", &arn(0)])
            .args(["--encryption-aws-endpoint-url", &kms.url])
            .arg("--encryption-aws-kms-key-map")
            .arg(map)
            .args(["--encryption-key-lease", lease])
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test");
        let server = machine.start_command(command);
        let house = House::of(machine, server);
        for number in 0..TENANTS {
            let id = tenant(number).to_string();
            house.server.create("/api/tenants", &json!({"id": id}));
        }
        let id = tenant(0);
        let document = house
            .server
            .insert(id.as_str(), "places", &json!({"name": "here"}));
        let path = format!("/api/tenants/{id}/documents/places/{document}");
        Self {
            connection: Connection::new(house.server.connect()),
            request: house.request("GET", &path, ""),
            house,
            kms,
        }
    }

    /// One client reads the document again and again.
    fn read(&mut self) -> Latency {
        let mut seen = Vec::new();
        let started = Instant::now();
        while started.elapsed() < ROUND {
            let sent = Instant::now();
            self.connection.send(&self.request);
            self.connection.receive(200);
            seen.push(sent.elapsed().as_secs_f64());
        }
        seen.sort_by(f64::total_cmp);
        Latency {
            median: seen[seen.len() / 2],
            tail: seen[seen.len() * 99 / 100],
        }
    }
}

const TENANTS: usize = 1000;
const ROUNDS: usize = 8;
const ROUND: Duration = Duration::from_secs(3);
