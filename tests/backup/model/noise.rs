//! Clients that write one number after the other, whatever else happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nimbus_test_support::Server;
use serde_json::{Value, json};

/// When a number was sent, and when it was acknowledged, if it was.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    pub(super) n: i64,
    pub(super) at_ms: i64,
    pub(super) acknowledged_ms: Option<i64>,
}

/// What all of them sent.
#[derive(Debug, Default)]
pub(super) struct Noise {
    pub(super) sent: Vec<Sent>,
    next: Arc<AtomicI64>,
    under_way: Option<UnderWay>,
}

/// What tells them to end, and each of them.
type UnderWay = (Arc<AtomicBool>, Vec<JoinHandle<Vec<Sent>>>);

/// Their tenant.
pub(super) const TENANT: &str = "noise";

impl Noise {
    /// They begin with a server.
    pub(super) fn begin(&mut self, server: &Server, token: &str) {
        let ends = Arc::new(AtomicBool::new(false));
        let client = |_| {
            let (next, ends) = (Arc::clone(&self.next), Arc::clone(&ends));
            let url = format!("http://{}/api/tenants/{TENANT}/documents", server.address());
            let bearer = format!("Bearer {token}");
            std::thread::spawn(move || write(&url, &bearer, &next, &ends))
        };
        let clients = (0..2).map(client).collect();
        self.under_way = Some((ends, clients));
    }

    /// They end; what they send while the server ends is part of it.
    pub(super) fn end(&mut self) {
        if let Some((ends, clients)) = self.under_way.take() {
            ends.store(true, Ordering::Relaxed);
            for client in clients {
                self.sent.extend(client.join().expect("a client"));
            }
        }
    }

    /// Asserts that `there` is what can have been there at an instant: all that was acknowledged
    /// before it, and nothing that was sent after it.
    pub(super) fn check(&self, there: &[Value], at_ms: i64, shown: &str) {
        let mut numbers: Vec<i64> = there
            .iter()
            .map(|note| note["n"].as_i64().expect("a number"))
            .collect();
        numbers.sort_unstable();
        for sent in &self.sent {
            let is_there = numbers.binary_search(&sent.n).is_ok();
            let must = sent.acknowledged_ms.is_some_and(|then| then < at_ms);
            assert!(is_there || !must, "{sent:?} is missing at {shown}");
            assert!(
                !is_there || sent.at_ms <= at_ms,
                "{sent:?} is there at {shown}"
            );
        }
        let known = |n: &i64| self.sent.iter().any(|sent| sent.n == *n);
        assert!(numbers.iter().all(known), "nobody sent all of {numbers:?}");
        assert!(numbers.windows(2).all(|two| two[0] < two[1]), "{numbers:?}");
    }
}

fn write(url: &str, bearer: &str, next: &AtomicI64, ends: &AtomicBool) -> Vec<Sent> {
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .timeout_global(Some(Duration::from_secs(60)))
        .build()
        .new_agent();
    let mut sent = Vec::new();
    while !ends.load(Ordering::Relaxed) {
        let n = next.fetch_add(1, Ordering::Relaxed);
        let body = json!({"table": "notes", "fields": {"n": n, "text": "n".repeat(300)}});
        let at_ms = millis();
        let answer = agent
            .post(url)
            .header("authorization", bearer)
            .header("content-type", "application/json")
            .send(body.to_string());
        let is_acknowledged = answer.is_ok_and(|answer| answer.status() == 201);
        let acknowledged_ms = is_acknowledged.then(millis);
        sent.push(Sent {
            n,
            at_ms,
            acknowledged_ms,
        });
        let pause = if is_acknowledged { 15 } else { 100 };
        std::thread::sleep(Duration::from_millis(pause));
    }
    sent
}

fn millis() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(since.expect("after 1970").as_millis()).expect("a time")
}
