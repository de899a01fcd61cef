//! The real server on a real Postgres: a session over the wire, restarts, kills of the server and
//! of the engine, what is refused.

#![expect(
    clippy::disallowed_methods,
    reason = "a test writes a file of settings by hand"
)]

#[path = "../relational/common.rs"]
mod common;
#[path = "../relational/copy.rs"]
mod copy;
#[path = "../relational/crash.rs"]
mod crash;
mod dump;
#[path = "../relational/helpers.rs"]
mod helpers;
#[path = "../relational/many.rs"]
mod many;
#[path = "../relational/many_crash.rs"]
mod many_crash;
#[path = "../relational/races.rs"]
mod races;
mod refused;
#[path = "../relational/sealed.rs"]
mod sealed;
#[path = "../relational/session.rs"]
mod session;
mod standby;
#[path = "../relational/tls.rs"]
mod tls;

use std::process::Command;

use helpers::{journal, make_tenant, refused_at_last, tenants};
use nimbus_test_support::Postgres as Engine;
use nimbus_test_support::{Machine, Postgres, Server};

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
        let schema = format!("\"{}\"", self.metadata());
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

    /// The metadata schema.
    fn metadata(&self) -> String {
        format!("nimbus of {}", self.unique)
    }

    /// Bytes in hex, in SQL.
    fn hex(&self, column: &str) -> String {
        format!("encode({column}, 'hex')")
    }

    /// Bytes as text, in SQL.
    fn text(&self, column: &str) -> String {
        format!("convert_from({column}, 'UTF8')")
    }

    /// Whether there is a schema of this name.
    fn has_space(&self, name: &str) -> bool {
        let found = format!("SELECT count(*) FROM pg_namespace WHERE nspname = '{name}'");
        self.sql(&found) != "0"
    }

    /// The settings of this house, as a file has them.
    fn settings(&self) -> serde_json::Value {
        serde_json::json!({"persistence": {
            "tenant_provider": "postgres",
            "postgres_url": self.url,
            "postgres_metadata_schema": format!("nimbus of {}", self.unique),
            "postgres_tenant_schema_prefix": format!("{}_", self.unique),
        }})
    }

    /// A command with the settings of this house in its environment.
    fn nimbus(&self, arguments: &[&str]) -> Command {
        let mut command = self.machine.nimbus(arguments);
        let _ = command
            .env("NIMBUS_TENANT_PROVIDER", "postgres")
            .env("NIMBUS_POSTGRES_URL", &self.url)
            .env("NIMBUS_POSTGRES_METADATA_SCHEMA", self.metadata())
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

/// The URL of an engine that is asked for TLS.
fn over_tls(engine: &Engine) -> String {
    format!("{}?sslmode=require", engine.url())
}

/// Whether connections of Nimbus are encrypted.
fn is_encrypted(house: &House) -> bool {
    let clear = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'nimbus'";
    house.sql(clear) == "t"
}

/// What messages call the engine, and its settings.
const NAME: &str = "Postgres";
const SETTINGS: &str = "POSTGRES";
/// Crash points of a creation, and whether there is a tenant then.
const CREATION: &[(&str, bool)] = &[("create-noted", false), ("created", true)];
/// Those of a deletion.
const DELETION: &[&str] = &["delete-noted", "deleted", "gone"];
