//! The real server on a real Postgres: a session over the wire, restarts, kills of the server and of the engine, what is refused.

#![expect(
    clippy::disallowed_methods,
    reason = "a test writes a file of settings by hand"
)]

mod crash;
mod many;
mod many_crash;
mod races;
mod refused;
mod session;

use std::process::Command;
use std::time::{Duration, Instant};

use nimbus_test_support::{Machine, Postgres, Server};
use serde_json::{Value, json};

/// A machine whose server keeps its tenants in schemas of their own.
struct House {
    machine: Machine,
    url: String,
    unique: String,
}

impl House {
    /// In the Postgres that tests share.
    fn new() -> Self {
        Self::on(&Postgres::shared_url())
    }

    fn on(url: &str) -> Self {
        let machine = Machine::new(env!("CARGO_BIN_EXE_nimbus"));
        // Another for each: the directory's name is random.
        let root = machine.root().file_name().expect("a name");
        let unique = root
            .to_str()
            .expect("UTF-8")
            .trim_start_matches("nimbus-test-");
        Self {
            url: url.to_owned(),
            unique: unique.to_owned(),
            machine,
        }
    }

    /// Another machine, whose server uses the same tenants.
    fn beside(&self) -> Self {
        let other = Self::on(&self.url);
        Self {
            unique: self.unique.clone(),
            ..other
        }
    }

    /// Runs a statement in the database; what it gives, a line a row. `{m}` is the metadata schema.
    fn sql(&self, statement: &str) -> String {
        self.try_sql(statement)
            .unwrap_or_else(|said| panic!("{statement}: {said}"))
    }

    /// The same, or what psql said.
    fn try_sql(&self, statement: &str) -> Result<String, String> {
        let schema = format!("\"nimbus of {}\"", self.unique);
        let mut asking = Postgres::client("psql", &self.url);
        let asked = asking
            .args(["--no-align", "--tuples-only", "--command"])
            .arg(statement.replace("{m}", &schema))
            .output()
            .expect("psql runs");
        if !asked.status.success() {
            return Err(String::from_utf8_lossy(&asked.stderr).into_owned());
        }
        let given = String::from_utf8(asked.stdout).expect("UTF-8");
        Ok(given.trim().to_owned())
    }

    /// A command with the settings of this house in its environment.
    fn nimbus(&self, arguments: &[&str]) -> Command {
        let mut command = self.machine.nimbus(arguments);
        let _ = command
            .env("NIMBUS_TENANT_PROVIDER", "postgres")
            .env("NIMBUS_POSTGRES_URL", &self.url)
            .env(
                "NIMBUS_POSTGRES_METADATA_SCHEMA",
                format!("nimbus of {}", self.unique),
            )
            .env(
                "NIMBUS_POSTGRES_TENANT_SCHEMA_PREFIX",
                format!("{}_", self.unique),
            );
        command
    }

    fn start(&self) -> Server {
        self.machine
            .start_command(self.nimbus(&["start", "--port", "0"]))
    }

    /// A server that dies at a crash point.
    fn start_armed(&self, failpoints: &str) -> Server {
        let mut command = self.nimbus(&["start", "--port", "0"]);
        let _ = command.env("FAILPOINTS", failpoints);
        self.machine.start_command(command)
    }
}

fn tenants(server: &Server) -> Vec<String> {
    serde_json::from_value(server.get("/api/tenants")["tenants"].take()).expect("a list of ids")
}

/// Waits until something is so.
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < until, "within a minute: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn make_tenant(server: &Server, tenant: &str) {
    let _ = server.create("/api/tenants", &json!({"id": tenant}));
}

/// The numbers of all writes, in the journal's order.
fn journal(server: &Server, tenant: &str) -> Vec<i64> {
    let (mut numbers, mut after) = (Vec::new(), 0);
    loop {
        let path = format!("/api/tenants/{tenant}/journal?after={after}&limit=500");
        let page = server.get(&path);
        let records = page["records"].as_array().expect("a list").iter();
        numbers.extend(records.map(|record| record["sequence"].as_i64().expect("a number")));
        match (page["has_more"].as_bool(), numbers.last()) {
            (Some(true), Some(last)) => after = *last,
            _ => return numbers,
        }
    }
}

/// What a server answers once a second is over: so long it may go by what it knew before.
fn refused_at_last(server: &Server, path: &str) -> (u16, Value) {
    std::thread::sleep(Duration::from_secs(1));
    server.request("GET", path, None)
}
