//! The same work at two servers on one Postgres: each is killed while the other one goes on.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nimbus_test_support::{Machine, Postgres, Server};
use serde_json::json;

use crate::churn::Churner;
use crate::client::{Client, Hand};
use crate::crons::Keeper;
use crate::deploys::Deployer;
use crate::jobs::Jobber;
use crate::keys::KeyHolder;
use crate::random::Random;
use crate::schemas::Indexer;
use crate::writer::Writer;
use crate::{ARGUMENTS, CHURNERS, OTHERS, TENANTS, WRITERS, compare};

/// Two machines whose servers share their tenants, and everybody who works with them.
pub(crate) struct SharedSoak {
    machines: [Machine; 2],
    url: String,
    unique: String,
    random: Random,
    writers: Vec<Writer>,
    churners: Vec<Churner>,
    jobber: Jobber,
    others: Vec<Box<dyn Hand>>,
}

impl SharedSoak {
    pub(crate) fn new(seed: u64) -> Self {
        let machines = [(); 2].map(|()| Machine::new(env!("CARGO_BIN_EXE_nimbus")));
        let writer = |number: usize| {
            let tenant = TENANTS[number % TENANTS.len()];
            Writer::new(seed, number as u64, tenant)
        };
        let mut soak = Self {
            machines,
            url: Postgres::shared_url(),
            unique: format!("soak {seed}"),
            random: Random::new(seed, u64::MAX - 1),
            writers: (0..WRITERS).map(writer).collect(),
            churners: (0..CHURNERS)
                .map(|number| Churner::new(seed, number))
                .collect(),
            jobber: Jobber::new(seed, "jobs"),
            others: vec![
                Box::new(Keeper::new(seed, "jobs")),
                Box::new(Deployer::new(seed, "app")),
                Box::new(Indexer::new(seed, "schemas")),
                Box::new(KeyHolder::new(seed, "keys")),
            ],
        };
        let server = soak.start(0);
        let mut client = soak.client(&server, 0);
        for tenant in TENANTS.iter().chain(&OTHERS) {
            let created = client.post("/api/tenants", &json!({"id": tenant}));
            assert_eq!(created.expect("a server").0, 201);
        }
        for writer in &mut soak.writers {
            writer.settle_in(&mut client);
        }
        server.stop();
        soak
    }

    fn command(&self, machine: usize) -> Command {
        let mut command = self.machines[machine].nimbus(&["start", "--port", "0"]);
        let _ = command
            .args(ARGUMENTS)
            .args(["--tenant-provider", "postgres"])
            .env("NIMBUS_POSTGRES_URL", &self.url)
            .env("NIMBUS_POSTGRES_METADATA_SCHEMA", &self.unique)
            .env("NIMBUS_POSTGRES_TENANT_SCHEMA_PREFIX", "soak_");
        command
    }

    fn start(&self, machine: usize) -> Server {
        self.machines[machine].start_command(self.command(machine))
    }

    fn client(&self, server: &Server, machine: usize) -> Client {
        Client::new(server, self.machines[machine].token())
    }

    /// Start both, compare, load both, kill one, and after a while the other.
    pub(crate) fn round(&mut self, load: Duration) {
        let servers = [0, 1].map(|machine| self.start(machine));
        let looked = self.random.below(2) as usize;
        self.compare(&servers[looked], looked);
        let killed = [AtomicBool::new(false), AtomicBool::new(false)];
        let first = self.random.below(2) as usize;
        let tokens = [0, 1].map(|machine: usize| self.machines[machine].token());
        let before: u64 = self.writers.iter().map(Writer::acknowledged).sum();
        thread::scope(|scope| {
            let mut turn = 0;
            let mut next = || {
                turn = 1 - turn;
                let client = Client::new(&servers[turn], tokens[turn].clone());
                (client, &killed[turn])
            };
            for writer in &mut self.writers {
                let (client, killed) = next();
                let _thread = scope.spawn(|| writer.work(client, killed));
            }
            for churner in &mut self.churners {
                let (client, killed) = next();
                let _thread = scope.spawn(|| churner.work(client, killed));
            }
            let hands = self.others.iter_mut().map(|hand| &mut **hand);
            for hand in hands.chain([&mut self.jobber as &mut dyn Hand]) {
                let (client, killed) = next();
                let _thread = scope.spawn(|| hand.work(client, killed));
            }
            for server in [first, 1 - first] {
                // The kill is what is timed: nothing is waited for.
                thread::sleep(load / 2);
                killed[server].store(true, Ordering::SeqCst);
                servers[server].send_kill();
            }
        });
        servers.into_iter().for_each(Server::wait_until_killed);
        let after: u64 = self.writers.iter().map(Writer::acknowledged).sum();
        eprintln!(
            "soak: two servers on one database, {} writes, both killed one after the other",
            after - before
        );
    }

    fn compare(&mut self, server: &Server, machine: usize) {
        let mut client = self.client(server, machine);
        compare(
            &mut client,
            &mut self.writers,
            &mut self.churners,
            &mut self.jobber,
            &mut self.others,
        );
    }

    /// The last comparison; every job has run.
    pub(crate) fn end(&mut self) {
        let servers = [0, 1].map(|machine| self.start(machine));
        self.compare(&servers[0], 0);
        let mut client = self.client(&servers[0], 0);
        self.jobber.wait_for_all(&mut client);
        self.compare(&servers[1], 1);
        servers.into_iter().for_each(Server::stop);
    }

    /// How often each kind of work was acknowledged.
    pub(crate) fn done(&self) -> Vec<(&'static str, u64)> {
        let writes = self.writers.iter().map(Writer::acknowledged).sum();
        let created = self.churners.iter().map(Churner::created).sum();
        let mut done = vec![("writes", writes), ("tenants created", created)];
        done.extend(self.jobber.done());
        done.extend(self.others.iter().flat_map(|hand| hand.done()));
        done
    }
}
