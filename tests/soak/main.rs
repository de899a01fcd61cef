//! The real server under mixed load, killed with `SIGKILL` again and again; after each restart what was acknowledged is compared with
//! what is there.
//!
//! `tests/soak/run --minutes 10` runs it. What is held:
//!
//! - no acknowledged write is lost, and none that was not acknowledged is there in part: a batch is whole or absent;
//! - the journal has no gap, has each write once, and agrees with the documents;
//! - a tenant whose creation was acknowledged is there, one whose deletion was is not, and a name used again begins empty;
//! - a job that was accepted ran, and ran once;
//! - every file passes SQLCipher's page check and SQLite's `integrity_check`.
//!
//! What a client waited for when the server died may have come to be or not, whole; each client says what that was.

#![expect(
    clippy::print_stderr,
    reason = "a run of minutes says how it goes, and with which seed"
)]

mod churn;
mod client;
mod jobs;
mod journal;
mod model;
mod random;
mod writer;

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nimbus_test_support::{Machine, Server};
use serde_json::{Value, json};

use churn::Churner;
use client::Client;
use jobs::Jobber;
use random::Random;
use writer::Writer;

#[test]
#[ignore = "takes minutes; tests/soak/run runs it"]
fn nothing_acknowledged_is_lost_however_often_the_server_is_killed() {
    let number = |name, default| env::var(name).map_or(default, |text| text.parse().expect(name));
    let seconds = number("NIMBUS_SOAK_SECONDS", 60);
    let every = Duration::from_secs(number("NIMBUS_SOAK_EVERY", 20));
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("a clock");
    let seed = number("NIMBUS_SOAK_SEED", now.as_secs());
    eprintln!("soak: {seconds} s, a kill every {every:?}, seed {seed}");
    let mut soak = Soak::new(seed);
    let started = Instant::now();
    let mut kills = 0;
    while started.elapsed() + every / 2 < Duration::from_secs(seconds) {
        soak.round(every);
        kills += 1;
    }
    soak.end();
    eprintln!(
        "soak: {kills} kills, {} writes acknowledged, {} jobs, {} tenants created",
        soak.writers.iter().map(Writer::acknowledged).sum::<u64>(),
        soak.jobber.as_ref().map_or(0, Jobber::accepted),
        soak.churners.iter().map(Churner::created).sum::<u64>(),
    );
}

#[test]
fn a_document_that_vanishes_behind_its_client_is_missed() {
    let mut soak = Soak::new(7);
    let server = soak.machine.start(ARGUMENTS);
    let mut client = Client::new(&server, soak.machine.token());
    for _ in 0..40 {
        soak.writers[0].step(&mut client).expect("the server runs");
    }
    soak.compare(&server);
    let (tenant, table) = (soak.writers[0].tenant(), soak.writers[0].table());
    let id = soak.writers[0].ids().pop_first().expect("a document");
    let path = format!("/api/tenants/{tenant}/documents/{table}/{id}");
    assert_eq!(
        client.request("DELETE", &path, "").expect("a server").0,
        204
    );
    let compared = catch_unwind(AssertUnwindSafe(|| soak.compare(&server)));
    let fault = compared.expect_err("it is missed");
    let fault = fault.downcast_ref::<String>().expect("a message");
    assert!(fault.contains("is lost"), "{fault}");
    server.stop();
}

/// The server's machine, and everybody who works with it.
struct Soak {
    machine: Machine,
    random: Random,
    writers: Vec<Writer>,
    churners: Vec<Churner>,
    jobber: Option<Jobber>,
}

impl Soak {
    fn new(seed: u64) -> Self {
        let machine = Machine::new(env!("CARGO_BIN_EXE_nimbus"));
        let server = machine.start(ARGUMENTS);
        let mut client = Client::new(&server, machine.token());
        for tenant in TENANTS.iter().chain([&JOBS]) {
            let created = client.post("/api/tenants", &json!({"id": tenant}));
            assert_eq!(created.expect("a server").0, 201);
        }
        let writer = |number: usize| {
            let tenant = TENANTS[number % TENANTS.len()];
            Writer::new(seed, number as u64, tenant)
        };
        let mut writers: Vec<Writer> = (0..WRITERS).map(writer).collect();
        for writer in &mut writers {
            writer.settle_in(&mut client);
        }
        let jobber = Jobber::if_there_are_jobs(&mut client, seed, JOBS);
        if jobber.is_none() {
            eprintln!("soak: this server runs no jobs");
        }
        server.stop();
        Self {
            machine,
            random: Random::new(seed, u64::MAX),
            writers,
            churners: (0..CHURNERS)
                .map(|number| Churner::new(seed, number))
                .collect(),
            jobber,
        }
    }

    /// Start, compare, load, kill.
    fn round(&mut self, load: Duration) {
        let started = Instant::now();
        let server = self.machine.start(ARGUMENTS);
        let up = started.elapsed();
        self.compare(&server);
        let compared = started.elapsed() - up;
        let killed = AtomicBool::new(false);
        let token = self.machine.token();
        let before: u64 = self.writers.iter().map(Writer::acknowledged).sum();
        thread::scope(|scope| {
            for writer in &mut self.writers {
                let client = Client::new(&server, token.clone());
                let _thread = scope.spawn(|| writer.work(client, &killed));
            }
            for churner in &mut self.churners {
                let client = Client::new(&server, token.clone());
                let _thread = scope.spawn(|| churner.work(client, &killed));
            }
            if let Some(jobber) = &mut self.jobber {
                let client = Client::new(&server, token.clone());
                let _thread = scope.spawn(|| jobber.work(client, &killed));
            }
            // The kill is what is timed: nothing is waited for.
            thread::sleep(load);
            killed.store(true, Ordering::SeqCst);
            server.send_kill();
        });
        server.wait_until_killed();
        let after: u64 = self.writers.iter().map(Writer::acknowledged).sum();
        eprintln!(
            "soak: up in {up:?}, compared in {compared:?}, {} writes, killed",
            after - before
        );
        // What the next start would mend is looked at before it can, every other time.
        if self.random.below(2) == 0 {
            self.verify_files();
        }
    }

    /// What was acknowledged against what is there.
    fn compare(&mut self, server: &Server) {
        let mut client = Client::new(server, self.machine.token());
        for writer in &mut self.writers {
            writer.settle(&mut client);
        }
        for tenant in TENANTS {
            let mine = self
                .writers
                .iter()
                .filter(|writer| writer.tenant() == tenant);
            let tables = mine.map(|writer| (writer.table(), writer.ids())).collect();
            let writes = self
                .writers
                .iter()
                .filter(|writer| writer.tenant() == tenant);
            let writes = writes.map(Writer::applied).sum();
            journal::check(&mut client, tenant, &tables, writes);
        }
        let (status, listed) = client.get("/api/tenants").expect("a server");
        assert_eq!(status, 200, "{listed}");
        for churner in &mut self.churners {
            churner.settle(&mut client, &listed);
        }
        if let Some(jobber) = &mut self.jobber {
            jobber.settle(&mut client);
        }
    }

    /// The last comparison; every job has run, and every file is whole.
    fn end(&mut self) {
        let server = self.machine.start(ARGUMENTS);
        self.compare(&server);
        if let Some(jobber) = &mut self.jobber {
            jobber.wait_for_all(&mut Client::new(&server, self.machine.token()));
        }
        self.compare(&server);
        server.stop();
        self.verify_files();
    }

    /// `cipher_integrity_check` and `integrity_check` of every file.
    fn verify_files(&self) {
        let arguments = [
            "encryption",
            "status",
            "--verify",
            "pages",
            "--format",
            "json",
        ];
        let output = self
            .machine
            .nimbus(&arguments)
            .output()
            .expect("nimbus runs");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        assert!(
            output.status.success(),
            "status: {}\n{answer:#}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let files = answer["files"].as_array().map_or(0, Vec::len);
        assert!(files > TENANTS.len(), "{answer}");
    }
}

impl Drop for Soak {
    fn drop(&mut self) {
        if thread::panicking() {
            for log in self.machine.logs().iter().rev().take(1) {
                let text = std::fs::read_to_string(log).unwrap_or_default();
                let tail: Vec<&str> = text.lines().rev().take(20).collect();
                eprintln!(
                    "the last server's log, newest line first:\n{}",
                    tail.join("\n")
                );
            }
        }
    }
}

/// Fewer than there are tenants: they are opened and closed all the time.
const ARGUMENTS: &[&str] = &["--max-open-tenants", "5"];
const TENANTS: [&str; 6] = ["one", "two", "three", "four", "five", "six"];
const JOBS: &str = "jobs";
const WRITERS: usize = 12;
const CHURNERS: u64 = 2;
