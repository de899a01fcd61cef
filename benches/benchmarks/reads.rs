//! Reads over HTTP, encrypted against plaintext, of 150 000 documents of 500 bytes with an index:
//! what a reader's own pages do not hold. With `--million`, of 1 000 000.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::http::{Connection, Crowd, House};
use crate::report::{Measurement, Target, in_turn};
use crate::setup::document;

pub(crate) fn run() -> Vec<Measurement> {
    let mut encrypted = Side::start(&[]);
    let mut plaintext = Side::start(&["--encryption-key-provider", "none"]);
    let (point, query) = if is_million() {
        (1.15, 1.20)
    } else {
        (1.10, 1.15)
    };
    let mut measurements = Vec::new();
    for (name, kind, clients, target) in [
        (
            "point read, 64 clients",
            Kind::Point,
            64,
            Target::AtMost(point),
        ),
        ("point read, one client", Kind::Point, 1, Target::None),
        (
            "query of 20, 64 clients",
            Kind::Query,
            64,
            Target::AtMost(query),
        ),
        ("query of 20, one client", Kind::Query, 1, Target::None),
        (
            "list of 1000, each after a write",
            Kind::List,
            1,
            Target::AtMost(1.15),
        ),
    ] {
        let mut crowds = [&encrypted, &plaintext].map(|side| side.crowd(clients));
        let [first, second] = &mut crowds;
        let sides = in_turn(
            ROUNDS,
            || encrypted.ask(kind, first),
            || plaintext.ask(kind, second),
        );
        let rate = |time: f64| format!("{:.0}/s", 1.0 / time);
        measurements.push(Measurement {
            name,
            measured: format!("{} encrypted", rate(sides.first)),
            against: format!("{} plaintext", rate(sides.second)),
            value: sides.ratio,
            unit: "×",
            target,
        });
    }
    for side in [encrypted, plaintext] {
        println!("{}", side.memory());
        side.house.server.stop();
    }
    measurements
}

#[derive(Clone, Copy)]
enum Kind {
    /// One document by its id.
    Point,
    /// The twenty of one region, anywhere in the table.
    Query,
    /// The first thousand documents, once an insertion had the readers forget their pages.
    List,
}

struct Side {
    house: House,
    name: &'static str,
    ids: Vec<String>,
    writer: Connection,
}

impl Side {
    fn start(arguments: &[&str]) -> Self {
        // Its writer rests while others are measured.
        let patient = [&["--keep-alive", "1h"], arguments].concat();
        let house = House::start(&patient);
        let mut writer = Connection::new(house.server.connect());
        let mut ids = Vec::with_capacity(places());
        for batch in 0..places() / BATCH {
            let mutations: Vec<Value> = (0..BATCH)
                .map(|number| {
                    let number = batch * BATCH + number;
                    let mut fields: Value = serde_json::from_str(&document(number)).expect("JSON");
                    fields["region"] = json!(number * 37 % (places() / 20));
                    json!({"type": "insert", "table": "places", "fields": fields})
                })
                .collect();
            let body = json!({"mutations": mutations}).to_string();
            writer.send(&house.request("POST", "/api/tenants/demo/batch", &body));
            let answer: Value = serde_json::from_slice(writer.receive(200)).expect("JSON");
            let results = answer["results"].as_array().expect("results").iter();
            ids.extend(results.map(|made| made["id"].as_str().expect("an id").to_owned()));
        }
        let schema = json!({"table": "places", "fields": [{"name": "name", "field_type": "string", "required": true}],
            "indexes": [{"name": "by_region", "fields": ["region"]}]});
        let path = "/api/tenants/demo/schema/places";
        writer.send(&house.request("PUT", path, &schema.to_string()));
        writer.receive(204);
        let name = if arguments.is_empty() {
            "encrypted"
        } else {
            "plaintext"
        };
        Self {
            house,
            name,
            ids,
            writer,
        }
    }

    fn crowd(&self, clients: usize) -> Crowd {
        self.house.crowd(clients, clients.min(4))
    }

    /// Seconds for one answer.
    fn ask(&mut self, kind: Kind, crowd: &mut Crowd) -> f64 {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let house = &self.house;
        let request = |number: usize| match kind {
            Kind::Point => {
                let id = &self.ids[number.wrapping_mul(STRIDE) % self.ids.len()];
                house.request(
                    "GET",
                    &format!("/api/tenants/demo/documents/places/{id}"),
                    "",
                )
            }
            Kind::Query => {
                let region = number.wrapping_mul(STRIDE) % (places() / 20);
                let query = json!({"table": "places", "limit": 20,
                    "filters": [{"field": "region", "op": "eq", "value": region}]});
                house.request("POST", "/api/tenants/demo/query", &query.to_string())
            }
            Kind::List => {
                let query = json!({"table": "places", "limit": 1000});
                house.request("POST", "/api/tenants/demo/query", &query.to_string())
            }
        };
        if let Kind::List = kind {
            let mut seconds = 0.0;
            for _ in 0..LISTS {
                let number = NEXT.fetch_add(1, Ordering::Relaxed);
                let body = format!(r#"{{"table":"others","fields":{}}}"#, document(number));
                self.writer
                    .send(&house.request("POST", "/api/tenants/demo/documents", &body));
                self.writer.receive(201);
                let list = request(number);
                seconds += crate::report::seconds(|| {
                    self.writer.send(&list);
                    self.writer.receive(200);
                });
            }
            return seconds / LISTS as f64;
        }
        1.0 / crowd.rate(ROUND, &NEXT, 200, request)
    }

    /// What the server holds of memory, and what its page cache did.
    fn memory(&self) -> String {
        let status = format!("/proc/{}/status", self.house.server.pid());
        let status = std::fs::read_to_string(status).unwrap_or_default();
        let line = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            line.unwrap_or_default()
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        };
        let mut connection = Connection::new(self.house.server.connect());
        connection.send(&self.house.request("GET", "/metrics", ""));
        let metrics = String::from_utf8_lossy(connection.receive(200)).into_owned();
        let cache = metrics
            .lines()
            .filter_map(|line| line.strip_prefix("nimbus_page_cache_"));
        let cache: Vec<&str> = cache.collect();
        format!(
            "{}: {}, {}; {}",
            self.name,
            line("VmRSS:"),
            line("VmHWM:"),
            cache.join(", ")
        )
    }
}

fn is_million() -> bool {
    std::env::args().any(|argument| argument == "--million")
}

fn places() -> usize {
    if is_million() { 1_000_000 } else { 150_000 }
}

const BATCH: usize = 500;
const STRIDE: usize = 1_299_709;
const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_millis(1000);
const LISTS: usize = 20;
