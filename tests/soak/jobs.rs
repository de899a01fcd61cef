//! A client that has the server run jobs: each inserts one document.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{Broken, Client, Hand, turned_away};
use crate::random::Random;

pub(crate) struct Jobber {
    tenant: &'static str,
    random: Random,
    next: u64,
    accepted: BTreeSet<u64>,
    /// Which were not answered: they may have been accepted.
    uncertain: BTreeSet<u64>,
}

impl Jobber {
    pub(crate) fn new(seed: u64, tenant: &'static str) -> Self {
        Self {
            tenant,
            random: Random::new(seed, 2000),
            next: 0,
            accepted: BTreeSet::new(),
            uncertain: BTreeSet::new(),
        }
    }

    /// Every job that was accepted has run.
    pub(crate) fn wait_for_all(&mut self, client: &mut Client) {
        let begun = Instant::now();
        loop {
            self.settle(client);
            let runs = self.runs(client);
            let missing: Vec<_> = self
                .accepted
                .iter()
                .filter(|n| !runs.contains_key(n))
                .collect();
            if missing.is_empty() {
                return;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "jobs that never ran: {missing:?}"
            );
            thread::sleep(PAUSE);
        }
    }

    /// How often each job ran.
    fn runs(&self, client: &mut Client) -> BTreeMap<u64, u64> {
        let mut runs = BTreeMap::new();
        for document in client.documents(self.tenant, "ran") {
            let number = document["n"].as_u64().expect("a number");
            *runs.entry(number).or_default() += 1;
        }
        runs
    }
}

impl Hand for Jobber {
    fn step(&mut self, client: &mut Client) -> Result<(), Broken> {
        self.next += 1;
        let number = self.next;
        let mutation = json!({"type": "insert", "table": "ran", "fields": {"n": number}});
        let job = json!({"run_after_ms": self.random.below(4000), "mutation": mutation});
        self.uncertain.insert(number);
        let (status, answer) =
            client.post(&format!("/api/tenants/{}/schedule", self.tenant), &job)?;
        assert!(status == 201 || turned_away(status), "{status} {answer}");
        if status == 201 {
            self.uncertain.remove(&number);
            self.accepted.insert(number);
        }
        Ok(())
    }

    /// No job ran twice, and none that nobody asked for.
    fn settle(&mut self, client: &mut Client) {
        for (number, runs) in self.runs(client) {
            assert_eq!(runs, 1, "job {number} ran {runs} times");
            let known = self.accepted.contains(&number) || self.uncertain.contains(&number);
            assert!(known, "job {number} was never asked for");
        }
    }

    fn done(&self) -> Vec<(&'static str, u64)> {
        vec![("jobs", self.accepted.len() as u64)]
    }
}

const PAUSE: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(60);
