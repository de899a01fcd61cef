//! An engine whose round trips are counted, and whose commits fail on demand.

use super::*;

/// An engine, and what is done to it on the way.
#[derive(Debug)]
pub(super) struct Watched<E, const LATE: bool = false> {
    pub(super) inner: E,
    pub(super) watch: Arc<Watch>,
}

#[derive(Debug, Default)]
pub(super) struct Watch {
    pub(super) round_trips: AtomicUsize,
    pub(super) next_commit: Mutex<Option<Fault>>,
    /// The next look at a table's indexes, in a transaction that writes, finds that another server
    /// was first: its table has the number that this one would have had.
    pub(super) taken_table: AtomicBool,
}

/// What happens to a commit whose connection breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is done, and not answered.
    Done,
    /// It never arrives.
    NotDone,
    /// It never arrives, and another server commits before anybody asks.
    Overtaken,
}

#[derive(Debug)]
pub(super) struct WatchedConnection<C> {
    inner: C,
    pub(super) watch: Arc<Watch>,
    tenant_space: String,
}

impl<E: Tested, const LATE: bool> Engine for Watched<E, LATE> {
    type Connection = WatchedConnection<E::Connection>;

    const BEGIN: &'static str = E::BEGIN;
    const BEGIN_READING: &'static [&'static str] = E::BEGIN_READING;
    const DDL_COMMITS: bool = E::DDL_COMMITS;
    const LOCKING: &'static str = E::LOCKING;
    const LOCKING_FREE: &'static str = E::LOCKING_FREE;
    const NOW_MS: &'static str = if LATE { E::LATE } else { E::NOW_MS };

    fn place(&self) -> &str {
        self.inner.place()
    }

    fn connect(&self, stops: &Stops) -> Result<WatchedConnection<E::Connection>, Failure> {
        Ok(WatchedConnection {
            inner: self.inner.connect(stops)?,
            watch: self.watch.clone(),
            tenant_space: self.inner.tenant_space(&id("acme")),
        })
    }

    fn provider_space(&self) -> &str {
        self.inner.provider_space()
    }

    fn tenant_space(&self, tenant: &TenantId) -> String {
        self.inner.tenant_space(tenant)
    }

    fn table(&self, space: &str, name: &str, out: &mut String) {
        self.inner.table(space, name, out);
    }

    fn parameter(&self, number: usize, out: &mut String) {
        self.inner.parameter(number, out);
    }

    fn word(&self, word: Word) -> &'static str {
        self.inner.word(word)
    }

    fn beyond(columns: [&str; 2], sign: &str, values: [Value; 2]) -> (String, Vec<Value>) {
        E::beyond(columns, sign, values)
    }

    fn only_where(&self, found: &Statement, ddl: String) -> Vec<Statement> {
        self.inner.only_where(found, ddl)
    }

    fn create_space(&self, space: &str) -> String {
        self.inner.create_space(space)
    }

    fn drop_space(&self, space: &str) -> String {
        self.inner.drop_space(space)
    }
}

impl<C: Connection> Connection for WatchedConnection<C> {
    fn run(&mut self, statements: &[Statement], stops: &Stops) -> Result<Vec<Vec<Row>>, Failure> {
        // The looks at what other servers do come when they come.
        let tenant = |statement: &Statement| statement.sql.contains(&self.tenant_space);
        if !statements.iter().any(tenant) {
            return self.inner.run(statements, stops);
        }
        let _before = self.watch.round_trips.fetch_add(1, Ordering::SeqCst);
        let writes =
            statements.len() > 1 && statements.last().is_some_and(|last| last.sql == "COMMIT");
        let fault = writes.then(|| self.watch.next_commit.lock().unwrap().take());
        let looks = |last: &Statement| last.sql.contains("FROM") && last.sql.contains("indexes");
        if statements.last().is_some_and(looks)
            && self.watch.taken_table.swap(false, Ordering::SeqCst)
        {
            let _none = self.inner.run(&[Statement::bare("ROLLBACK")], stops)?;
            let space = &self.tenant_space;
            for sql in [
                "tables (number, name) VALUES (1, 'taken')",
                "commits (number, id) VALUES (1, '0123456789abcdef')",
            ] {
                let sql = format!("INSERT INTO \"{space}\".{sql}");
                let _none = self.inner.run(&[Statement::bare(&sql)], stops)?;
            }
            let sql = format!(
                "UPDATE \"{space}\".head SET commits = commits + 1, structure = structure + 1"
            );
            let _none = self.inner.run(&[Statement::bare(&sql)], stops)?;
            return Err(Failure {
                kind: FailureKind::Undone,
                source: Arc::new(std::io::Error::other("another one was first")),
            });
        }
        let lost = Failure {
            kind: FailureKind::Lost,
            source: Arc::new(std::io::Error::other("the line is cut")),
        };
        match fault.flatten() {
            None => self.inner.run(statements, stops),
            Some(Fault::Done) => {
                let _rows = self.inner.run(statements, stops)?;
                Err(lost)
            }
            Some(Fault::NotDone) => Err(lost),
            Some(Fault::Overtaken) => {
                // The lock goes with the transaction, and another one is faster.
                let _none = self.inner.run(&[Statement::bare("ROLLBACK")], stops)?;
                let space = &self.tenant_space;
                let sql = format!("UPDATE \"{space}\".head SET commits = commits + 1");
                let _none = self.inner.run(&[Statement::bare(&sql)], stops)?;
                Err(lost)
            }
        }
    }

    fn each(
        &mut self,
        statement: &Statement,
        stops: &Stops,
        each: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        let _before = self.watch.round_trips.fetch_add(1, Ordering::SeqCst);
        self.inner.each(statement, stops, each)
    }

    fn give_back(self) {
        self.inner.give_back();
    }
}
