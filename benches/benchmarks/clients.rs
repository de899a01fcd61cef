//! Many clients against one, against a server in plaintext, against the engine alone: documents of
//! 500 bytes, every answer durable.

use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use crate::bare::Bare;
use crate::http::{Crowd, House};
use crate::report::{Measurement, Target, in_turn};
use crate::setup::document;

pub(crate) fn run() -> Vec<Measurement> {
    let mut encrypted = Side::start(&[]);
    let mut plaintext = Side::start(&["--encryption-key-provider", "none"]);
    let mut one = encrypted.house.crowd(1, 1);
    let against_one = in_turn(
        ROUNDS,
        || rate(&encrypted.house, &mut encrypted.many),
        || rate(&encrypted.house, &mut one),
    );
    let against_plaintext = in_turn(
        ROUNDS,
        || 1.0 / rate(&encrypted.house, &mut encrypted.many),
        || 1.0 / rate(&plaintext.house, &mut plaintext.many),
    );
    let mut bare = Bare::open(&plaintext.house, GROUP);
    let against_bare = in_turn(
        ROUNDS,
        || rate(&encrypted.house, &mut encrypted.many),
        || bare.rate(ROUND),
    );
    encrypted.house.server.stop();
    plaintext.house.server.stop();
    vec![
        Measurement {
            name: "insert over HTTP, 64 clients against one",
            measured: format!("{:.0}/s of 64 clients", against_one.first),
            against: format!("{:.0}/s of one", against_one.second),
            value: against_one.ratio,
            unit: "×",
            target: Target::AtLeast(8.0),
        },
        Measurement {
            name: "insert over HTTP, 64 clients, against plaintext",
            measured: format!("{:.0}/s encrypted", 1.0 / against_plaintext.first),
            against: format!("{:.0}/s plaintext", 1.0 / against_plaintext.second),
            value: against_plaintext.ratio,
            unit: "×",
            target: Target::AtMost(1.15),
        },
        Measurement {
            name: "insert over HTTP, 64 clients, against rusqlite alone",
            measured: format!("{:.0}/s", against_bare.first),
            against: format!("{:.0}/s in groups of {GROUP}", against_bare.second),
            value: against_bare.ratio,
            unit: "×",
            target: Target::AtLeast(0.7),
        },
    ]
}

struct Side {
    house: House,
    many: Crowd,
}

impl Side {
    fn start(arguments: &[&str]) -> Self {
        let house = House::start(arguments);
        let many = house.crowd(CLIENTS, HANDS);
        Self { house, many }
    }
}

/// Documents inserted a second.
fn rate(house: &House, crowd: &mut Crowd) -> f64 {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    crowd.rate(ROUND, &NEXT, 201, |number| {
        let body = format!(r#"{{"table":"places","fields":{}}}"#, document(number));
        house.request("POST", "/api/tenants/demo/documents", &body)
    })
}

const CLIENTS: usize = 64;
/// Threads that hold the connections: as few as will do, for what they cost is taken from the
/// server.
const HANDS: usize = 4;
const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_millis(700);
/// Documents in a commit, as the server has them with this many clients.
const GROUP: usize = 57;
