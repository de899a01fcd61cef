//! The real server under mixed load, killed with `SIGKILL` again and again; after each restart what
//! was acknowledged is compared with what is there.
//!
//! `tests/soak/run --minutes 10` runs it. What is held:
//!
//! - no acknowledged write is lost, and none that was not acknowledged is there in part: a batch is
//!   whole or absent;
//! - the journal has no gap, has each write once, and agrees with the documents;
//! - a tenant whose creation was acknowledged is there, one whose deletion was is not, and a name
//!   used again begins empty;
//! - a job that was accepted ran, and ran once; a cron never runs more often than its interval
//!   passes;
//! - what is active of a deploy is one generation, whole; a schema and its unique index hold from
//!   their acknowledgement on;
//! - an access key lets in from its making to its revocation;
//! - no rotated data key comes back, and everything opens without the master keys that were rotated
//!   away;
//! - the audit log proves whole;
//! - every file passes SQLCipher's page check and SQLite's `integrity_check`.
//!
//! A run in which one of these kinds of work never succeeded fails.
//!
//! What a client waited for when the server died may have come to be or not, whole; each client
//! says what that was.

#![expect(
    clippy::disallowed_methods,
    reason = "a test reads and damages files by hand"
)]
#![expect(
    clippy::print_stderr,
    reason = "a run of minutes says how it goes, and with which seed"
)]

mod churn;
mod client;
mod crons;
mod deploys;
mod jobs;
mod journal;
mod keys;
mod model;
mod random;
mod rotations;
mod schemas;
mod shared;
mod writer;

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nimbus_test_support::{Machine, Server};
use serde_json::{Value, json};

use churn::Churner;
use client::{Client, Hand};
use crons::Keeper;
use deploys::Deployer;
use jobs::Jobber;
use keys::KeyHolder;
use random::Random;
use rotations::Rotator;
use schemas::Indexer;
use shared::SharedSoak;
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
    eprintln!("soak: {kills} kills; acknowledged:");
    for (kind, count) in soak.done() {
        eprintln!("soak: {count:8} {kind}");
        assert!(count > 0, "{kind}: none in the whole run");
    }
}

#[test]
#[ignore = "takes minutes; tests/soak/run runs it"]
fn nothing_acknowledged_is_lost_whichever_of_two_servers_on_one_database_is_killed() {
    let number = |name, default| env::var(name).map_or(default, |text| text.parse().expect(name));
    let seconds = number("NIMBUS_SOAK_SHARED_SECONDS", 20);
    let every = Duration::from_secs(number("NIMBUS_SOAK_EVERY", 20).min(10));
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("a clock");
    let seed = number("NIMBUS_SOAK_SEED", now.as_secs());
    eprintln!(
        "soak: two servers on one database, {seconds} s, both killed every {every:?}, seed {seed}"
    );
    let mut soak = SharedSoak::new(seed);
    let started = Instant::now();
    while started.elapsed() + every / 2 < Duration::from_secs(seconds) {
        soak.round(every);
    }
    soak.end();
    for (kind, count) in soak.done() {
        eprintln!("soak: {count:8} {kind}, at two servers");
        assert!(count > 0, "{kind}: none in the whole run");
    }
}

#[test]
fn a_document_that_vanishes_behind_its_client_is_missed() {
    let mut soak = Soak::new(7);
    let server = soak.start();
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

#[test]
fn what_is_done_behind_the_back_of_a_client_is_missed() {
    let mut soak = Soak::new(7);
    let server = soak.start();
    let mut client = Client::new(&server, soak.machine.token());
    let file = soak.machine.data_dir().join("one.sqlite3");
    let Soak {
        jobber,
        rotator,
        others,
        ..
    } = &mut soak;
    let mut hands: Vec<&mut dyn Hand> = others.iter_mut().map(|hand| &mut **hand).collect();
    hands.extend([jobber as &mut dyn Hand, rotator]);
    for hand in &mut hands {
        for _ in 0..30 {
            hand.step(&mut client).expect("the server runs");
            if hand.done().iter().all(|(_, count)| *count > 0) {
                break;
            }
        }
        hand.settle(&mut client);
    }
    let insert = |table: &str| json!({"table": table, "fields": {"n": 1_000_000}});
    let delete = Value::Null;
    let (_, keys) = client.get("/api/tenants/keys/keys").expect("a server");
    let key = keys["keys"][0]["id"].as_str().expect("a key");
    let (_, generations) = client.get("/api/tenants/app/deploy").expect("a server");
    let other = if generations["active"] == 1 { 2 } else { 1 };
    let planted = [
        ("/api/tenants/jobs/crons/tick", delete.clone()),
        (
            &*format!("/api/tenants/app/deploy/{other}/activate"),
            json!({}),
        ),
        ("/api/tenants/schemas/documents", insert("numbers0")),
        (&*format!("/api/tenants/keys/keys/{key}"), delete),
        ("/api/tenants/jobs/documents", insert("ran")),
        ("rotate-dek", json!({"path": file, "tenant_id": "one"})),
    ];
    assert_eq!(hands.len(), planted.len());
    for (hand, (path, body)) in hands.into_iter().zip(planted) {
        let (status, answer) = match (path, &body) {
            ("rotate-dek", body) => {
                let rotated = rotations::run(&mut client, path, body).expect("a server");
                (200, rotated)
            }
            (path, Value::Null) => client.request("DELETE", path, "").expect("a server"),
            (path, body) => client.post(path, body).expect("a server"),
        };
        assert!(matches!(status, 200..300), "{path}: {status} {answer}");
        let compared = catch_unwind(AssertUnwindSafe(|| hand.settle(&mut client)));
        assert!(compared.is_err(), "{path} was not missed");
    }
    server.stop();
}

/// The server's machine, and everybody who works with it.
struct Soak {
    machine: Machine,
    random: Random,
    writers: Vec<Writer>,
    churners: Vec<Churner>,
    jobber: Jobber,
    rotator: Rotator,
    others: Vec<Box<dyn Hand>>,
}

impl Soak {
    fn new(seed: u64) -> Self {
        let machine = Machine::new(env!("CARGO_BIN_EXE_nimbus"));
        let server = machine.start(ARGUMENTS);
        let mut client = Client::new(&server, machine.token());
        for tenant in TENANTS.iter().chain(&OTHERS) {
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
        server.stop();
        let rotator = Rotator::new(seed, &machine, &TENANTS);
        Self {
            machine,
            random: Random::new(seed, u64::MAX),
            writers,
            churners: (0..CHURNERS)
                .map(|number| Churner::new(seed, number))
                .collect(),
            jobber: Jobber::new(seed, "jobs"),
            rotator,
            others: vec![
                Box::new(Keeper::new(seed, "jobs")),
                Box::new(Deployer::new(seed, "app")),
                Box::new(Indexer::new(seed, "schemas")),
                Box::new(KeyHolder::new(seed, "keys")),
            ],
        }
    }

    fn start(&mut self) -> Server {
        self.rotator.prepare(&self.machine);
        let mut command = self.machine.nimbus(&["start", "--port", "0"]);
        self.rotator.settings(command.args(ARGUMENTS));
        self.machine.start_command(command)
    }

    /// How often each kind of work was acknowledged.
    fn done(&self) -> Vec<(&'static str, u64)> {
        let mut done = vec![
            (
                "writes",
                self.writers.iter().map(Writer::acknowledged).sum(),
            ),
            (
                "tenants created",
                self.churners.iter().map(Churner::created).sum(),
            ),
        ];
        done.extend(self.jobber.done());
        done.extend(self.others.iter().flat_map(|hand| hand.done()));
        done.extend(self.rotator.done());
        done
    }

    /// Start, compare, load, kill.
    fn round(&mut self, load: Duration) {
        let started = Instant::now();
        let server = self.start();
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
            let hands = self.others.iter_mut().map(|hand| &mut **hand);
            for hand in hands.chain([&mut self.jobber as &mut dyn Hand, &mut self.rotator]) {
                let client = Client::new(&server, token.clone());
                let _thread = scope.spawn(|| hand.work(client, &killed));
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
            self.verify_files(&["ok", "rekeying", "deleting"]);
        }
    }

    /// What was acknowledged against what is there.
    fn compare(&mut self, server: &Server) {
        let mut client = Client::new(server, self.machine.token());
        compare(
            &mut client,
            &mut self.writers,
            &mut self.churners,
            &mut self.jobber,
            &mut self.others,
        );
        self.rotator.settle(&mut client);
    }

    /// The last comparison; every job has run, and every file is whole.
    fn end(&mut self) {
        let server = self.start();
        self.compare(&server);
        let mut client = Client::new(&server, self.machine.token());
        self.jobber.wait_for_all(&mut client);
        self.compare(&server);
        server.stop();
        self.verify_files(&["ok"]);
    }

    /// `cipher_integrity_check` and `integrity_check` of every file. `fine` is what may be said of
    /// one: a rotation or a deletion that the server died in is settled by the next start.
    fn verify_files(&self, fine: &[&str]) {
        let look = [
            "encryption",
            "status",
            "--verify",
            "pages",
            "--format",
            "json",
        ];
        let mut command = self.machine.nimbus(&look);
        self.rotator.settings(&mut command);
        let output = command.output().expect("nimbus runs");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        let files = answer["files"].as_array().cloned().unwrap_or_default();
        let all_fine = files
            .iter()
            .all(|file| fine.contains(&file["health"].as_str().unwrap_or_default()));
        assert!(
            all_fine && files.len() > TENANTS.len(),
            "status: {}\n{answer:#}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
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

/// What was acknowledged to each of these against what is there.
fn compare(
    client: &mut Client,
    writers: &mut [Writer],
    churners: &mut [Churner],
    jobber: &mut Jobber,
    others: &mut [Box<dyn Hand>],
) {
    for writer in &mut *writers {
        writer.settle(client);
    }
    for tenant in TENANTS {
        let mine = || writers.iter().filter(|writer| writer.tenant() == tenant);
        let tables = mine()
            .map(|writer| (writer.table(), writer.ids()))
            .collect();
        let writes = mine().map(Writer::applied).sum();
        journal::check(client, tenant, &tables, writes);
    }
    let (status, listed) = client.get("/api/tenants").expect("a server");
    assert_eq!(status, 200, "{listed}");
    for churner in churners {
        churner.settle(client, &listed);
    }
    jobber.settle(client);
    for hand in others {
        hand.settle(client);
    }
}

/// Fewer than there are tenants: they are opened and closed all the time.
const ARGUMENTS: &[&str] = &["--max-open-tenants", "5"];
const TENANTS: [&str; 6] = ["one", "two", "three", "four", "five", "six"];
/// Of those who do not write documents alone.
const OTHERS: [&str; 4] = ["jobs", "app", "schemas", "keys"];
const WRITERS: usize = 12;
const CHURNERS: u64 = 2;
