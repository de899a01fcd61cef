//! What continuous shipping costs those who write, and how long a commit waits until it is in the
//! repository.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nimbus_test_support::Server;

use crate::http::House;
use crate::report::{Measurement, Target, in_turn, median};
use crate::setup::document;

pub(crate) fn run() -> Vec<Measurement> {
    let (with, without) = (House::start(&["--backup-to", "repo"]), House::start(&[]));
    until_shipped(&with);
    let next = AtomicUsize::new(0);
    let mut crowds = (with.crowd(CLIENTS, 4), without.crowd(CLIENTS, 4));
    let (mut lags, mut costs) = (Vec::new(), (Vec::new(), Vec::new()));
    let rate = |house: &House, crowd: &mut crate::http::Crowd| {
        crowd.rate(ROUND, &next, 201, |number| {
            let body = format!(r#"{{"table":"places","fields":{}}}"#, document(number));
            house.request("POST", "/api/tenants/demo/documents", &body)
        })
    };
    let sides = in_turn(
        ROUNDS,
        || {
            let before = with.server_time();
            let mut measured = 0.0;
            let done = AtomicBool::new(false);
            thread::scope(|scope| {
                let watching = scope.spawn(|| watch(&with.server, &done));
                measured = rate(&with, &mut crowds.0);
                done.store(true, Ordering::Relaxed);
                lags.push(watching.join().expect("it watches"));
            });
            // What it is behind with belongs to this side.
            until_shipped(&with);
            costs
                .0
                .push((with.server_time() - before) / measured / ROUND.as_secs_f64());
            measured
        },
        || {
            let before = without.server_time();
            let measured = rate(&without, &mut crowds.1);
            costs
                .1
                .push((without.server_time() - before) / measured / ROUND.as_secs_f64());
            measured
        },
    );
    let mut lags: Vec<f64> = lags.into_iter().flatten().collect();
    lags.sort_by(f64::total_cmp);
    let at = |share: f64| lags[((lags.len() - 1) as f64 * share) as usize];
    let (cost, plain) = (median(costs.0), median(costs.1));
    let measurements = vec![
        Measurement {
            name: "inserts while shipping, 64 clients",
            measured: format!("{:.0}/s", sides.first),
            against: format!("{:.0}/s without", sides.second),
            value: sides.ratio,
            unit: "×",
            target: Target::AtLeast(0.95),
        },
        Measurement {
            name: "the server's processor time of an insert, the same",
            measured: format!("{:.1} µs", cost * 1e6),
            against: format!("{:.1} µs without", plain * 1e6),
            value: cost / plain,
            unit: "×",
            target: Target::None,
        },
        Measurement {
            name: "from the commit to the repository, 99th percentile",
            measured: format!("{:.2} s", at(0.99)),
            against: format!("median {:.2} s", at(0.5)),
            value: at(0.99),
            unit: "s",
            target: Target::AtMost(2.0),
        },
    ];
    with.server.stop();
    without.server.stop();
    measurements
}

/// How long each millisecond's commits waited, until `done`.
fn watch(server: &Server, done: &AtomicBool) -> Vec<f64> {
    let mut lags = Vec::new();
    // Before that nobody wrote.
    let mut before = now_ms();
    while !done.load(Ordering::Relaxed) {
        let (shipped, now) = (shipped_ms(server), now_ms());
        lags.extend((before..shipped).map(|at| (now - at) as f64 / 1e3));
        before = before.max(shipped);
        thread::sleep(Duration::from_millis(10));
    }
    lags
}

/// Waits until shipping has begun, and all that was written is in the repository.
pub(crate) fn until_shipped(house: &House) {
    let server = &house.server;
    for _try in 0..6000 {
        let (_, metrics) = server.request("GET", "/metrics", None);
        let metrics = metrics.as_str().expect("metrics").to_owned();
        let is = |line: &str| metrics.lines().any(|found| found == line);
        if is("nimbus_backup_shipping 1") && is("nimbus_backup_lag_bytes 0") {
            return;
        }
        thread::sleep(Duration::from_millis(100));
    }
    panic!("nothing is shipped\n{}", server.log());
}

fn shipped_ms(server: &Server) -> i64 {
    let shipped = server.request("GET", "/ready", None).1["backup"]["shipped"].clone();
    let shipped: jiff::Timestamp = shipped
        .as_str()
        .and_then(|text| text.parse().ok())
        .expect("an instant");
    shipped.as_millisecond()
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since.expect("after 1970").as_millis()).expect("a time")
}

const CLIENTS: usize = 64;
const ROUNDS: usize = 6;
const ROUND: Duration = Duration::from_secs(4);
