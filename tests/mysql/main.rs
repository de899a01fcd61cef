//! The real server on a real MariaDB, and on a Galera cluster: a session over the wire, restarts,
//! kills of the server and of the engine, what is refused.

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
mod galera;
#[path = "../relational/helpers.rs"]
mod helpers;
mod making;
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
#[path = "../relational/tls.rs"]
mod tls;

use std::process::Command;

use helpers::{journal, make_tenant, refused_at_last, tenants};
use nimbus_test_support::MariaDb as Engine;
use nimbus_test_support::{Machine, MariaDb, Server};

/// A machine whose server keeps its tenants in databases of their own.
struct House {
    machine: Machine,
    url: String,
    unique: String,
}

impl House {
    /// In the MariaDB that tests share.
    fn new() -> Self {
        Self::on(&MariaDb::shared_url())
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
            // A name that every server takes.
            unique: unique.to_lowercase(),
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

    /// Runs a statement in the MariaDB that tests share; what it gives, a line a row. `{m}` is the
    /// metadata database.
    fn sql(&self, statement: &str) -> String {
        self.try_sql(statement)
            .unwrap_or_else(|said| panic!("{statement}: {said}"))
    }

    /// The same, or what the client said.
    fn try_sql(&self, statement: &str) -> Result<String, String> {
        let metadata = format!("\"{}\"", self.metadata());
        MariaDb::shared().sql(&statement.replace("{m}", &metadata))
    }

    /// The metadata database.
    fn metadata(&self) -> String {
        format!("nimbus-of-{}", self.unique)
    }

    /// Bytes in hex, in SQL.
    fn hex(&self, column: &str) -> String {
        format!("hex({column})")
    }

    /// Bytes as text, in SQL.
    fn text(&self, column: &str) -> String {
        format!("convert({column} USING utf8mb4)")
    }

    /// Whether there is a database of this name.
    fn has_space(&self, name: &str) -> bool {
        let found = format!(
            "SELECT count(*) FROM information_schema.schemata WHERE schema_name = '{name}'"
        );
        self.sql(&found) != "0"
    }

    /// The settings of this house, as a file has them.
    fn settings(&self) -> serde_json::Value {
        serde_json::json!({"persistence": {
            "tenant_provider": "mysql",
            "mysql_url": self.url,
            "mysql_metadata_database": format!("nimbus-of-{}", self.unique),
            "mysql_tenant_database_prefix": format!("{}_", self.unique),
        }})
    }

    /// A command with the settings of this house in its environment.
    fn nimbus(&self, arguments: &[&str]) -> Command {
        let mut command = self.machine.nimbus(arguments);
        let _ = command
            .env("NIMBUS_TENANT_PROVIDER", "mysql")
            .env("NIMBUS_MYSQL_URL", &self.url)
            .env("NIMBUS_MYSQL_METADATA_DATABASE", self.metadata())
            .env(
                "NIMBUS_MYSQL_TENANT_DATABASE_PREFIX",
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
    engine.url().replace("disabled", "required")
}

/// Whether connections of Nimbus are encrypted: the engine lets in no others.
fn is_encrypted(_house: &House) -> bool {
    true
}

/// What messages call the engine, and its settings.
const NAME: &str = "MySQL";
const SETTINGS: &str = "MYSQL";
/// Crash points of a creation, and whether there is a tenant then.
const CREATION: &[(&str, bool)] = &[
    ("create-noted", false),
    ("create-begun", false),
    ("create-made", false),
    ("created", true),
];
/// Those of a deletion.
const DELETION: &[&str] = &["delete-noted", "delete-dropped", "deleted", "gone"];
