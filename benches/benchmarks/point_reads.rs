//! One document by its id against `/health`, which asks nothing: what the database adds to a
//! request.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::http::{Connection, Crowd, House};
use crate::report::{Measurement, Target, in_turn, median, time};
use crate::setup::document;

pub(crate) fn run() -> Vec<Measurement> {
    let house = House::start(&[]);
    let documents = populate(&house);
    let measurements = [
        ("point read against /health, 64 clients", 64, 4),
        ("point read against /health, one client", 1, 1),
    ]
    .map(|(name, clients, hands)| {
        let mut reading = house.crowd(clients, hands);
        let mut asking = house.crowd(clients, hands);
        let health = [house.request("GET", "/health", "")];
        let (mut of_reads, mut of_health) = (Vec::new(), Vec::new());
        let rates = in_turn(
            ROUNDS,
            || rate(&house, &mut reading, &documents, &mut of_reads),
            || rate(&house, &mut asking, &health, &mut of_health),
        );
        Measurement {
            name,
            measured: format!(
                "{:.0}/s, {} of processor",
                rates.first,
                time(median(of_reads))
            ),
            against: format!(
                "{:.0}/s of /health, {}",
                rates.second,
                time(median(of_health))
            ),
            value: rates.ratio,
            unit: "×",
            target: Target::AtLeast(0.6),
        }
    });
    house.server.stop();
    measurements.into()
}

/// Requests for the documents that were inserted.
fn populate(house: &House) -> Vec<Vec<u8>> {
    let mut connection = Connection::new(house.server.connect());
    let read = |number| {
        let body = format!(r#"{{"table":"places","fields":{}}}"#, document(number));
        connection.send(&house.request("POST", "/api/tenants/demo/documents", &body));
        let answer: Value = serde_json::from_slice(connection.receive(201)).expect("JSON");
        let id = answer["id"].as_str().expect("an id");
        let path = format!("/api/tenants/demo/documents/places/{id}");
        house.request("GET", &path, "")
    };
    (0..DOCUMENTS).map(read).collect()
}

/// Answers a second to these requests, in an order that jumps about. What each cost the server's
/// processors goes to `costs`.
fn rate(house: &House, crowd: &mut Crowd, requests: &[Vec<u8>], costs: &mut Vec<f64>) -> f64 {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let (asked, used) = (NEXT.load(Ordering::Relaxed), house.processor_time());
    let rate = crowd.rate(ROUND, &NEXT, 200, |number| {
        requests[number.wrapping_mul(STRIDE) % requests.len()].clone()
    });
    let answered = NEXT.load(Ordering::Relaxed) - asked;
    costs.push((house.processor_time() - used) / answered as f64);
    rate
}

const DOCUMENTS: usize = 4000;
const STRIDE: usize = 1_299_709;
const ROUNDS: usize = 11;
const ROUND: Duration = Duration::from_millis(500);
