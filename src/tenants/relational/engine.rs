//! What a relational engine does for the store, and how it spells what the store says.
//!
//! The store writes its statements once: `@name` is a table in the space of a tenant or of the
//! provider, `?` a parameter, and `{bytes}`, `{key}` and `{rows}` are [words](Word). A dialect says
//! what these are; it decides nothing.

use std::{
    error::Error as StdError,
    fmt::{Debug, Write as _},
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use nimbus_manifests::TenantId;

/// A value in a statement or in a row. There are two types, so that no engine compares, converts or
/// cuts anything: names and documents are bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Value {
    /// An integer, or none.
    Integer(Option<i64>),
    /// Bytes, or none.
    Bytes(Option<Vec<u8>>),
}

impl From<i64> for Value {
    fn from(integer: i64) -> Self {
        Self::Integer(Some(integer))
    }
}

impl From<usize> for Value {
    fn from(integer: usize) -> Self {
        Self::Integer(Some(i64::try_from(integer).unwrap_or(i64::MAX)))
    }
}

impl From<Option<i64>> for Value {
    fn from(integer: Option<i64>) -> Self {
        Self::Integer(integer)
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(Some(bytes))
    }
}

impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(Some(bytes.to_vec()))
    }
}

impl<const N: usize> From<&[u8; N]> for Value {
    fn from(bytes: &[u8; N]) -> Self {
        Self::Bytes(Some(bytes.to_vec()))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Bytes(Some(text.as_bytes().to_vec()))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Bytes(Some(text.into_bytes()))
    }
}

impl From<Option<&[u8]>> for Value {
    fn from(bytes: Option<&[u8]>) -> Self {
        Self::Bytes(bytes.map(<[u8]>::to_vec))
    }
}

impl From<Option<&str>> for Value {
    fn from(text: Option<&str>) -> Self {
        Self::Bytes(text.map(|text| text.as_bytes().to_vec()))
    }
}

/// A statement as an engine takes it.
#[derive(Debug, Clone)]
pub struct Statement {
    pub(super) sql: String,
    pub(super) values: Vec<Value>,
}

impl Statement {
    /// One without parameters or names.
    pub(super) fn bare(sql: &str) -> Self {
        Self {
            sql: sql.to_owned(),
            values: Vec::new(),
        }
    }
}

/// Values for a statement.
macro_rules! values {
    ($($value:expr),* $(,)?) => { vec![$($crate::tenants::relational::engine::Value::from($value)),*] };
}
pub(super) use values;

/// A row. Its values are taken out one by one.
#[derive(Debug)]
pub struct Row(pub(super) Vec<Value>);

/// A stored value of the wrong kind.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("{what} {how}")]
pub(super) struct Malformed {
    what: &'static str,
    how: &'static str,
}

impl Malformed {
    pub(super) const fn of(what: &'static str) -> Self {
        let how = "is malformed";
        Self { what, how }
    }

    /// It is not what Nimbus sealed for this place.
    pub(super) const fn forged(what: &'static str) -> Self {
        let how = "does not open under the tenant's key: it was changed in the database, or put there from another row, tenant or time";
        Self { what, how }
    }

    pub(super) const fn other_key(what: &'static str) -> Self {
        let how = "is sealed under another data key than the tenant's manifest has: one of the two was put back";
        Self { what, how }
    }

    pub(super) const fn unsealed(what: &'static str) -> Self {
        let how = "is not sealed, and the tenant is: it was not written by Nimbus";
        Self { what, how }
    }
}

impl Row {
    pub(super) fn integer(&self, column: usize) -> Result<i64, Malformed> {
        self.maybe_integer(column)?
            .ok_or(Malformed::of("an integer"))
    }

    pub(super) fn maybe_integer(&self, column: usize) -> Result<Option<i64>, Malformed> {
        match self.0.get(column) {
            Some(Value::Integer(integer)) => Ok(*integer),
            _ => Err(Malformed::of("an integer")),
        }
    }

    pub(super) fn bytes(&mut self, column: usize) -> Result<Vec<u8>, Malformed> {
        self.maybe_bytes(column)?.ok_or(Malformed::of("a value"))
    }

    pub(super) fn maybe_bytes(&mut self, column: usize) -> Result<Option<Vec<u8>>, Malformed> {
        match self.0.get_mut(column) {
            Some(Value::Bytes(bytes)) => Ok(bytes.take()),
            _ => Err(Malformed::of("a value")),
        }
    }

    pub(super) fn array<const N: usize>(&mut self, column: usize) -> Result<[u8; N], Malformed> {
        let bytes = self.bytes(column)?;
        bytes.try_into().map_err(|_| Malformed::of("an id"))
    }

    pub(super) fn text(&mut self, column: usize) -> Result<String, Malformed> {
        String::from_utf8(self.bytes(column)?).map_err(|_| Malformed::of("a text"))
    }
}

/// What an engine did not do.
#[derive(Debug, Clone)]
pub struct Failure {
    pub(super) kind: FailureKind,
    /// Names the engine's place and never a password.
    pub(super) source: Arc<dyn StdError + Send + Sync>,
}

/// What can be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// There is no connection, or no longer: what was sent may have been done.
    Lost,
    /// Undone in favour of another transaction. It can be tried again.
    Undone,
    /// All connections are in use.
    Exhausted,
    /// The table or its space is not there.
    Missing,
    /// There is such a row, or such a space, already.
    Duplicate,
    /// Nobody waits for it any more.
    Stopped,
    /// The engine does not let this server in, or has no room.
    Refused,
    /// The engine rejects the statement.
    Statement,
}

/// Who may have a read or a write end early.
#[derive(Debug, Clone, Default)]
pub struct Stops(pub(super) Vec<Arc<AtomicBool>>);

impl Stops {
    pub(super) fn is_set(&self) -> bool {
        self.0.iter().any(|stop| stop.load(Ordering::Relaxed))
    }
}

/// What engines have different words for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// `{bytes}`, the type of bytes of any length.
    Bytes,
    /// `{key}`, the type of bytes that can be part of a key.
    Key,
    /// `{rows}`, what stands before rows of parameters behind `IN (`.
    Rows,
}

/// A relational engine. Its calls block, on a runtime of its own where it needs one.
pub trait Engine: Debug + Send + Sync + 'static {
    /// A connection to it.
    type Connection: Connection;

    /// Begins a transaction that writes. It sees what others commit until it locks.
    const BEGIN: &'static str;
    /// Begin a transaction that reads one state.
    const BEGIN_READING: &'static [&'static str];
    /// Whether what makes or removes tables and spaces is a transaction of its own, and ends one
    /// that is open.
    const DDL_COMMITS: bool;
    /// What makes a `SELECT` lock its rows.
    const LOCKING: &'static str;
    /// The same, of those rows that nobody else has locked.
    const LOCKING_FREE: &'static str;
    /// The engine's clock, in milliseconds since the Unix epoch.
    const NOW_MS: &'static str;

    /// Hosts and database, for messages.
    fn place(&self) -> &str;

    /// A connection from the pool, or another.
    fn connect(&self, stops: &Stops) -> Result<Self::Connection, Failure>;

    /// The space of the provider's own tables.
    fn provider_space(&self) -> &str;

    /// The space of a tenant's tables: another for every tenant.
    fn tenant_space(&self, tenant: &TenantId) -> String;

    /// A table in a space, quoted.
    fn table(&self, space: &str, name: &str, out: &mut String);

    /// The parameter of this number, the first being 1.
    fn parameter(&self, number: usize, out: &mut String);

    /// A word that each engine has in its own way.
    fn word(&self, word: Word) -> &'static str;

    /// What holds of rows whose two columns come after such values; before them with `<`.
    fn beyond(columns: [&str; 2], sign: &str, values: [Value; 2]) -> (String, Vec<Value>) {
        let [first, second] = columns;
        (format!("({first}, {second}) {sign} (?, ?)"), values.into())
    }

    /// Statements that make or remove something where `found` has a row, and do nothing where it
    /// has none. They are sent together: nothing of the network comes between the look and the
    /// deed. For engines whose [DDL commits](Self::DDL_COMMITS).
    fn only_where(&self, _found: &Statement, ddl: String) -> Vec<Statement> {
        vec![Statement::bare(&ddl)]
    }

    /// Makes a space, unless it is there. What is in it is made by the statements after it.
    fn create_space(&self, space: &str) -> String;

    /// Removes a space and all that is in it, if it is there.
    fn drop_space(&self, space: &str) -> String;
}

/// A connection to an engine. Dropped, it is closed, whatever was under way on it.
pub trait Connection: Debug + Send + 'static {
    /// Sends statements in one round trip, and gives the rows of each. Those after one that fails
    /// are not done, within a transaction; outside of one send a single statement.
    fn run(&mut self, statements: &[Statement], stops: &Stops) -> Result<Vec<Vec<Row>>, Failure>;

    /// Hands out the rows of a statement as they come, until told to stop.
    fn each(
        &mut self,
        statement: &Statement,
        stops: &Stops,
        each: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), Failure>;

    /// Gives it back to the pool. No transaction is open on it.
    fn give_back(self);
}

/// A statement of the store in the spelling of an engine.
pub(super) fn spell<E: Engine>(engine: &E, space: &str, sql: &str) -> String {
    let mut out = String::with_capacity(sql.len() + 64);
    let mut parameters = 0;
    let mut rest = sql;
    while let Some(at) = rest.find(['@', '?', '{']) {
        out.push_str(&rest[..at]);
        let (sign, after) = rest[at..].split_at(1);
        rest = after;
        match sign {
            "@" => {
                let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_');
                let (name, after) = rest.split_at(end.unwrap_or(rest.len()));
                engine.table(space, name, &mut out);
                rest = after;
            }
            "?" => {
                parameters += 1;
                engine.parameter(parameters, &mut out);
            }
            _ => {
                let (name, after) = rest.split_once('}').unwrap_or((rest, ""));
                out.push_str(engine.word(match name {
                    "bytes" => Word::Bytes,
                    "key" => Word::Key,
                    _ => Word::Rows,
                }));
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

/// The statements that begin a transaction which reads one state.
pub(super) fn begin_reading<E: Engine>() -> Vec<Statement> {
    E::BEGIN_READING
        .iter()
        .map(|sql| Statement::bare(sql))
        .collect()
}

/// So many rows of so many parameters: `(?, ?), (?, ?)`.
pub(super) fn parameter_rows(columns: usize, rows: usize) -> String {
    let mut out = String::new();
    for row in 0..rows {
        let comma = if row > 0 { ", " } else { "" };
        let parameters = vec!["?"; columns].join(", ");
        write!(out, "{comma}({parameters})").expect("a String takes every write");
    }
    out
}
