//! The real server on a real Postgres: a session over the wire, restarts, kills of the server and of the engine, what is refused.

#![expect(
    clippy::disallowed_methods,
    reason = "a test writes a file of settings by hand"
)]

mod crash;
mod refused;
mod session;

use std::process::Command;

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

fn make_tenant(server: &Server, tenant: &str) {
    let _ = server.create("/api/tenants", &json!({"id": tenant}));
}

/// The numbers of all writes, in the journal's order.
fn journal(server: &Server, tenant: &str) -> Vec<i64> {
    let records = server.list(&format!("/api/tenants/{tenant}/journal"), "records", 500);
    let number = |record: &Value| record["sequence"].as_i64().expect("a number");
    records.iter().map(number).collect()
}
