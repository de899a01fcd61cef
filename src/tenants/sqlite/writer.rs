//! The single writer of a tenant, and its group commit.
//!
//! One thread owns the only connection that writes. It waits on a channel; once something arrives it takes everything
//! that is queued, runs it as one transaction with a savepoint for each caller's work (a lone mutation, which is one statement, needs
//! none), commits once, and only then answers.
//! Whatever arrives meanwhile queues up for the next round: the slower the disk, the larger the groups. There is no
//! flag that says whether the thread runs, so none that could be read too early: the channel itself wakes it.
//!
//! | crash point | when |
//! | --- | --- |
//! | `tenants::writer::batch-taken` | mutations have left the queue, no transaction is open |
//! | `tenants::writer::applied` | the transaction holds the whole group, uncommitted |
//! | `tenants::writer::committed` | the group is durable, nobody was answered |
//! | `tenants::writer::answered` | everybody's answer is on its way, no checkpoint was made |
//! | `tenants::writer::checkpointed` | after a checkpoint, if one was due |

use std::{
    ffi::c_int,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError},
    },
    thread,
    time::{Duration, Instant},
};

use nimbus_manifests::TenantId;
use rusqlite::{Connection, MAIN_DB, wal::CheckpointMode};
use tokio::{runtime::Handle, sync::oneshot};

use super::{
    apply::{Bounds, Known, Writing},
    checkpoint::Checkpoints,
    failure,
    files::{Files, Replaced},
    layout,
    readers::Readers,
    remembered::Expiry,
    room::{self, Room},
};
use crate::{
    documents::{Done, Mutation, MutationOutcome, Once},
    failpoints::crash_point,
    metrics::{self, Counted},
    process,
    runtime::{self, Background, panic_point, short_task},
    tenants::{
        DueLog, StoreError,
        error::{Limit, NoRoom},
    },
};

/// What came of a batch: the outcome of each of its mutations, or why none of them was applied.
pub(super) type Outcome = Result<Done<Vec<MutationOutcome>>, StoreError>;

/// The way to a tenant's writer thread.
#[derive(Debug)]
pub(super) struct Writer {
    tenant: TenantId,
    queue: SyncSender<Command>,
    /// Bytes of the work in the queue.
    queued: Arc<AtomicUsize>,
    thread: Mutex<Option<thread::JoinHandle<Result<(), StoreError>>>>,
    /// Whether the thread has ended is asked on every use of the tenant; this answers without its lock.
    alive: std::sync::Weak<()>,
}

enum Command {
    Apply(Queued),
    Renew(Box<dyn Renewal>),
    /// The connection is closed until there is something to write again.
    Rest,
    Close,
}

/// What is done to the file while the writer has it for itself, between two commits.
pub(super) trait Renewal: Send {
    /// The last look at the file while it is open. `false`: that was all, the writer goes on.
    fn before(&mut self) -> bool;

    /// The writer has gone on.
    fn gone_on(self: Box<Self>);

    /// Nothing of the writer is open any more, and its WAL is folded in (or was not: `closed`). `false`: the tenant must be opened afresh.
    fn closed(self: Box<Self>, closed: Result<(), StoreError>) -> bool;
}

/// Work that waits for its turn.
struct Queued {
    work: Box<dyn Errand>,
    size: Size,
    undo: Undo,
    /// Counted for as long as it is not answered.
    _waiting: Counted,
}

/// How much some work is, so that neither the queue nor a commit grows without bound.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// About how many bytes it holds while it waits.
    pub(super) bytes: usize,
    /// About how many documents it changes.
    pub(super) changes: usize,
}

impl Size {
    /// A change without a body.
    pub(super) const SMALL: Self = Self {
        bytes: 64,
        changes: 1,
    };
}

/// What undoes work that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Undo {
    /// A savepoint, which copies each page that changes in it.
    Savepoint,
    /// SQLite itself: the work is one mutation, whose one statement it does all or not at all.
    Statement,
}

/// What the thread does for one caller: all of it or nothing.
trait Errand: Send {
    /// Does it; an error undoes all of it.
    fn apply(&mut self, writing: &mut Writing<'_>) -> Result<(), StoreError>;

    /// Answers the caller: with what was done, or with what kept the group from being durable.
    fn answer(self: Box<Self>, group: Result<(), StoreError>);
}

/// A closure, and where its caller waits.
struct Task<F, T> {
    work: Option<F>,
    /// Whether it is not begun when nobody waits for it any more.
    if_awaited: bool,
    outcome: Result<T, StoreError>,
    answer: oneshot::Sender<Result<T, StoreError>>,
}

impl<F, T> Errand for Task<F, T>
where
    F: FnOnce(&mut Writing<'_>) -> Result<T, StoreError> + Send,
    T: Send,
{
    fn apply(&mut self, writing: &mut Writing<'_>) -> Result<(), StoreError> {
        // Not begun, it has the outcome of a writer that was closed first.
        let is_given_up = self.if_awaited && self.answer.is_closed();
        if let Some(work) = self.work.take().filter(|_| !is_given_up) {
            self.outcome = work(writing);
        }
        self.outcome.as_ref().map(drop).map_err(StoreError::clone)
    }

    fn answer(self: Box<Self>, group: Result<(), StoreError>) {
        // A caller that went away does not hear it.
        drop(self.answer.send(group.and(self.outcome)));
    }
}

impl Writer {
    /// Starts the thread, on a connection whose file has the layout of this version. Without one it opens its own with
    /// the first mutation.
    pub(super) fn start(
        tenant: &TenantId,
        connection: Option<Connection>,
        readers: Arc<Readers>,
        due: Arc<dyn DueLog>,
        room: Arc<Room>,
    ) -> Result<Self, StoreError> {
        let (queue, commands) = mpsc::sync_channel(MAX_QUEUED);
        let queued = Arc::new(AtomicUsize::new(0));
        let token = Arc::new(());
        let alive = Arc::downgrade(&token);
        let station = Station {
            tenant: tenant.clone(),
            commands,
            queued: Arc::clone(&queued),
            readers,
            due,
            room,
            runtime: Handle::try_current().ok(),
            _alive: token,
        };
        let work: Box<dyn FnOnce() -> Result<(), StoreError> + Send> = match connection {
            Some(connection) => {
                let work = station.begin(connection)?;
                Box::new(move || work.run(None)?.map_or(Ok(()), Station::run))
            }
            None => Box::new(move || station.run()),
        };
        let thread =
            runtime::thread(Background::TenantWriter, work).map_err(|source| StoreError::Io {
                action: "start a writer thread for",
                path: tenant.as_str().into(),
                source: Arc::new(source),
            })?;
        Ok(Self {
            tenant: tenant.clone(),
            queue,
            queued,
            thread: Mutex::new(Some(thread)),
            alive,
        })
    }

    /// Queues a batch of mutations, which are applied all or not at all, and once under a key.
    pub(super) fn submit(
        &self,
        batch: Vec<Mutation>,
        once: Option<Once>,
    ) -> Result<oneshot::Receiver<Outcome>, StoreError> {
        let size = Size {
            bytes: batch.iter().map(Mutation::weight).sum(),
            changes: batch.len(),
        };
        // A lone mutation is one statement. The memory of a key is a second one.
        let undo = match (&once, batch.len()) {
            (None, 1) => Undo::Statement,
            _ => Undo::Savepoint,
        };
        self.queue(size, undo, false, move |writing| match once {
            Some(once) => writing.apply_once(&batch, &once),
            None => writing.apply_all(&batch).map(|outcome| Done {
                outcome,
                replayed: false,
            }),
        })
    }

    /// Queues work that is done all or not at all, within a transaction that it shares with others' work. The answer comes
    /// once it is durable or refused; it does not come at all when the writer was closed first.
    pub(super) fn run<T: Send + 'static>(
        &self,
        size: Size,
        work: impl FnOnce(&mut Writing<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T, StoreError>>, StoreError> {
        self.queue(size, Undo::Savepoint, false, work)
    }

    /// The same for work that may take long: it is not begun when its caller has gone by then. Once begun it is done.
    pub(super) fn run_if_awaited<T: Send + 'static>(
        &self,
        size: Size,
        work: impl FnOnce(&mut Writing<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T, StoreError>>, StoreError> {
        self.queue(size, Undo::Savepoint, true, work)
    }

    fn queue<T: Send + 'static>(
        &self,
        size: Size,
        undo: Undo,
        if_awaited: bool,
        work: impl FnOnce(&mut Writing<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T, StoreError>>, StoreError> {
        let before = self.queued.fetch_add(size.bytes, Ordering::Relaxed);
        let (answer, outcome) = oneshot::channel();
        let closed = || StoreError::Closed {
            tenant: self.tenant.clone(),
        };
        let sent = if before > 0 && before + size.bytes > MAX_QUEUED_BYTES {
            Err(self.busy())
        } else {
            let work = Box::new(Task {
                work: Some(work),
                if_awaited,
                outcome: Err(closed()),
                answer,
            });
            self.queue
                .try_send(Command::Apply(Queued {
                    work,
                    size,
                    undo,
                    _waiting: Counted::new(&metrics::QUEUED),
                }))
                .map_err(|error| match error {
                    TrySendError::Full(_) => self.busy(),
                    TrySendError::Disconnected(_) => closed(),
                })
        };
        if sent.is_err() {
            let _before = self.queued.fetch_sub(size.bytes, Ordering::Relaxed);
        }
        sent.map(|()| outcome)
    }

    /// Has `renewal` done once what is queued so far is written. Waits for a place in the queue: blocks.
    pub(super) fn renew(&self, renewal: Box<dyn Renewal>) -> Result<(), StoreError> {
        let closed = |_refused| StoreError::Closed {
            tenant: self.tenant.clone(),
        };
        self.queue.send(Command::Renew(renewal)).map_err(closed)
    }

    /// Writes what was queued so far, empties the WAL and closes the connection. Blocks.
    pub(super) fn close(&self) -> Result<(), StoreError> {
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(thread) = thread else { return Ok(()) };
        // Refused only when the thread has ended already; joining it tells why.
        drop(self.queue.send(Command::Close));
        thread.join().unwrap_or_else(|_panic| {
            Err(StoreError::Closed {
                tenant: self.tenant.clone(),
            })
        })
    }

    /// As after a long time without a mutation.
    #[cfg(test)]
    fn rest(&self) {
        self.queue.send(Command::Rest).expect("the thread runs");
    }

    /// Whether the thread has ended, closed or not.
    pub(super) fn has_ended(&self) -> bool {
        self.alive.strong_count() == 0
    }

    fn busy(&self) -> StoreError {
        metrics::QUEUE_REFUSED.increment(1);
        StoreError::Busy {
            what: Limit::WriteQueue,
            tenant: self.tenant.clone(),
        }
    }
}

impl Drop for Writer {
    /// Waits for the thread, if nobody closed it. SQLCipher frees its memory when the process ends, and a connection that
    /// another thread closes after that brings it down.
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(tenant = %self.tenant, %error, "a tenant was dropped, and did not close cleanly");
        }
    }
}

/// Where the thread waits until there is something to write.
struct Station {
    tenant: TenantId,
    commands: Receiver<Command>,
    queued: Arc<AtomicUsize>,
    readers: Arc<Readers>,
    due: Arc<dyn DueLog>,
    room: Arc<Room>,
    /// Where callers wait for their answers.
    runtime: Option<Handle>,
    _alive: Arc<()>,
}

impl Station {
    /// Waits for the first mutation, and opens the connection for it.
    fn run(mut self) -> Result<(), StoreError> {
        loop {
            let resting = || {
                self.readers.shed_unused();
                process::give_back();
                false
            };
            let first = match next(&self.commands, resting) {
                Command::Apply(first) => first,
                Command::Rest => continue,
                Command::Close => return Ok(()),
                Command::Renew(mut renewal) => {
                    if !renewal.before() {
                        renewal.gone_on();
                    } else if !renewal.closed(Ok(())) {
                        return Ok(());
                    }
                    continue;
                }
            };
            let begun = match self.readers.writer() {
                Ok(connection) => self.begin(connection),
                Err(error) => Err(error),
            };
            match begun {
                Ok(work) => match work.run(Some(first))? {
                    Some(station) => self = station,
                    None => return Ok(()),
                },
                Err(error) => {
                    // The next request opens the tenant afresh.
                    first.work.answer(Err(error));
                    return Ok(());
                }
            }
        }
    }

    /// Refuses to go on with a tenant that may not be used any more.
    fn not_halted(&self) -> Result<(), StoreError> {
        if self.readers.is_halted() {
            return Err(self.readers.closed());
        }
        Ok(())
    }

    /// What was interrupted failed because the tenant may not be used any more, and for no other reason.
    fn unless_halted(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Engine { .. } if self.readers.is_halted() => self.readers.closed(),
            error => error,
        }
    }

    fn begin(self, mut connection: Connection) -> Result<Work, StoreError> {
        let sqlite = |error| failure(&self.tenant, error);
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        connection
            .pragma_update(None, "cache_size", CACHE_KIB)
            .map_err(sqlite)?;
        let halted = Arc::clone(self.readers.halted());
        connection
            .progress_handler(STEPS, Some(move || halted.load(Ordering::Relaxed)))
            .map_err(sqlite)?;
        let checkpoints = Checkpoints::install(&mut connection).map_err(sqlite)?;
        let sequence = layout::last_sequence(&connection).map_err(sqlite)?;
        let files = Files::opened(self.readers.path());
        Ok(Work {
            station: self,
            connection,
            checkpoints,
            known: Known::default(),
            expiry: Expiry::default(),
            files,
            sequence,
            last_group: 0,
            broken: false,
        })
    }
}

/// Waits for something to do. Nothing for a while is time to `rest`, which says whether the connection is to rest, too.
fn next(commands: &Receiver<Command>, mut rest: impl FnMut() -> bool) -> Command {
    loop {
        match commands.recv_timeout(IDLE) {
            Ok(command) => return command,
            Err(RecvTimeoutError::Disconnected) => return Command::Close,
            Err(RecvTimeoutError::Timeout) if rest() => return Command::Rest,
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// What the thread owns once it writes.
struct Work {
    station: Station,
    connection: Connection,
    checkpoints: Checkpoints,
    known: Known,
    /// When keys of requests are old.
    expiry: Expiry,
    /// What it writes to.
    files: Files,
    /// The number of the last write.
    sequence: i64,
    /// How many callers the last group had.
    last_group: usize,
    /// The file is damaged, or not where it was: this connection is not used again.
    broken: bool,
}

impl Work {
    /// Writes until the tenant is closed or, with an answer, nothing was written for long or the file was renewed: the connection is closed
    /// then, and the next mutation opens another.
    fn run(mut self, mut first: Option<Queued>) -> Result<Option<Station>, StoreError> {
        loop {
            let command = first.take().map_or_else(|| self.next(), Command::Apply);
            let then = match command {
                Command::Apply(queued) => {
                    let then = self.write(queued);
                    if self.broken {
                        // Its successor starts from a fresh connection; what is still queued is not answered from this one.
                        return Ok(None);
                    }
                    then
                }
                other => Some(other),
            };
            match then {
                None | Some(Command::Apply(_)) => {}
                Some(Command::Rest) => {
                    let rested = self.finish();
                    process::note_freed();
                    return rested.map(Some);
                }
                Some(Command::Close) => return self.finish().map(|_station| None),
                Some(Command::Renew(mut renewal)) => {
                    if renewal.before() {
                        return self.hand_over(renewal);
                    }
                    renewal.gone_on();
                }
            }
        }
    }

    /// One group commit; answers what was met in the queue behind it.
    fn write(&mut self, first: Queued) -> Option<Command> {
        let (group, then) = self.gather(first);
        crash_point!("tenants::writer::batch-taken");
        panic_point!("tenants::writer::commit");
        self.commit(group);
        crash_point!("tenants::writer::answered");
        if self.broken {
            return then;
        }
        let pinned = self.station.readers.is_followed();
        if let Err(error) = self.checkpoints.after_commit(&self.connection, pinned) {
            // The commits are safe in the WAL. The next checkpoint tries again.
            tracing::warn!(tenant = %self.station.tenant, %error, "checkpoint failed");
        }
        crash_point!("tenants::writer::checkpointed");
        then
    }

    /// Closes the connection and lets go of the file for a moment.
    fn hand_over(self, renewal: Box<dyn Renewal>) -> Result<Option<Station>, StoreError> {
        match self.finish() {
            Ok(station) => Ok(renewal.closed(Ok(())).then_some(station)),
            Err(error) => {
                let _opened_afresh = renewal.closed(Err(error.clone()));
                Err(error)
            }
        }
    }

    fn next(&mut self) -> Command {
        let Self {
            station,
            connection,
            checkpoints,
            known,
            ..
        } = self;
        next(&station.commands, || {
            // Compiled schemas among it.
            known.clear();
            rest(station, connection, checkpoints)
        })
    }

    /// Takes what else is queued. A lone client is never made to wait; but where the last group was a crowd, its
    /// members, just answered, are about to send again, and a moment's patience keeps them together in one commit.
    fn gather(&mut self, first: Queued) -> (Vec<Queued>, Option<Command>) {
        let patience = Instant::now() + LINGER;
        let Size {
            mut bytes,
            mut changes,
        } = first.size;
        let mut group = vec![first];
        let mut then = None;
        while changes < MAX_GROUP && bytes < MAX_GROUP_BYTES {
            let command = self.station.commands.try_recv().ok().or_else(|| {
                if group.len() >= self.last_group {
                    return None;
                }
                let left = patience.saturating_duration_since(Instant::now());
                self.station.commands.recv_timeout(left).ok()
            });
            match command {
                Some(Command::Apply(queued)) => {
                    bytes += queued.size.bytes;
                    changes += queued.size.changes;
                    group.push(queued);
                }
                other => {
                    then = other;
                    break;
                }
            }
        }
        self.last_group = group.len();
        let _before = self.station.queued.fetch_sub(bytes, Ordering::Relaxed);
        (group, then)
    }

    /// Applies a group in one transaction and answers every caller.
    fn commit(&mut self, mut group: Vec<Queued>) {
        let (sequence, started) = (self.sequence, Instant::now());
        let committed = self
            .transaction(&mut group)
            .and_then(|()| self.still_there())
            .map_err(|error| self.station.unless_halted(error));
        metrics::COMMIT.record(metrics::since(started));
        metrics::GROUP.record(group.len() as f64);
        if let Err(error) = &committed {
            metrics::COMMIT_FAILED.increment(1);
            self.sequence = sequence;
            self.known.clear();
            self.expiry.unknown();
            self.broken |= matches!(error, StoreError::Corrupt { .. });
            if !self.connection.is_autocommit()
                && let Err(error) = self.connection.execute_batch("ROLLBACK")
            {
                tracing::error!(tenant = %self.station.tenant, %error, "rollback failed; the tenant is opened afresh");
                self.broken = true;
            }
        }
        self.answer(group, committed);
    }

    /// Answers every caller of a group. Each answer wakes a task: a worker of the runtime does that for one of a crowd at a fraction
    /// of what it costs from here.
    fn answer(&self, group: Vec<Queued>, committed: Result<(), StoreError>) {
        let answering = move |group: Vec<Queued>| {
            for queued in group {
                queued.work.answer(committed.clone());
            }
        };
        match &self.station.runtime {
            Some(runtime) if group.len() > 1 => {
                let _in_it = runtime.enter();
                drop(short_task(async move { answering(group) }));
            }
            _ => answering(group),
        }
    }

    /// Whether what was written is in the files that the next opening finds. If not, this connection acknowledges nothing any more.
    fn still_there(&mut self) -> Result<(), StoreError> {
        let Some(replaced) = self.files.replaced() else {
            return Ok(());
        };
        self.broken = true;
        metrics::FILES_REPLACED.increment(1);
        let tenant = self.station.tenant.clone();
        let Replaced { path, wal } = &replaced;
        if !wal {
            tracing::error!(%tenant, path = %path.display(), "{replaced}; what was written since its last checkpoint may be lost");
            let source = Arc::new(replaced);
            return Err(StoreError::Corrupt { tenant, source });
        }
        let saved = self.save();
        match &saved {
            Ok(()) => {
                tracing::error!(%tenant, path = %path.display(), "{replaced}; all that it held is in the database now")
            }
            Err(error) => {
                tracing::error!(%tenant, path = %path.display(), %error, "{replaced}; what was written since the last checkpoint may be lost")
            }
        }
        Err(StoreError::WalReplaced {
            tenant,
            path: path.clone(),
            saved: saved.is_ok(),
        })
    }

    /// Brings what a WAL holds that has lost its name into the database, before it goes with the last connection.
    fn save(&self) -> rusqlite::Result<()> {
        let emptied = self
            .connection
            .wal_checkpoint_v2(Some(MAIN_DB), CheckpointMode::TRUNCATE);
        match emptied {
            // A reader is in the way of beginning the WAL afresh, which does not matter if nothing else is.
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => {
                let (frames, done) = self
                    .connection
                    .wal_checkpoint_v2(Some(MAIN_DB), CheckpointMode::NOOP)?;
                if frames == done { Ok(()) } else { Err(error) }
            }
            other => other.map(drop),
        }
    }

    /// Why the tenant may not grow, if it may not.
    fn room(&mut self) -> rusqlite::Result<Option<NoRoom>> {
        if let Some(limit) = self.station.room.tenant() {
            let mut bytes = room::in_use(&self.connection)? + self.checkpoints.bytes();
            // What the WAL holds is in the database twice, for most of it.
            if bytes >= limit && self.checkpoints.pending() && !self.station.readers.is_followed() {
                self.checkpoints.truncate(&self.connection)?;
                bytes = room::in_use(&self.connection)? + self.checkpoints.bytes();
            }
            if bytes >= limit {
                return Ok(Some(NoRoom::Tenant { bytes, limit }));
            }
        }
        Ok(self.station.room.on_disk().err())
    }

    /// One transaction of all the group's work. An error means that nothing of it is there.
    fn transaction(&mut self, group: &mut [Queued]) -> Result<(), StoreError> {
        self.station.not_halted()?;
        let room = self.room();
        let no_room = room.map_err(|error| failure(&self.station.tenant, error))?;
        self.execute("BEGIN IMMEDIATE")?;
        let before = self.sequence;
        let station = &self.station;
        let mut writing = Writing::new(
            &station.tenant,
            &self.connection,
            &mut self.known,
            &*station.due,
            before,
        );
        writing.forget(&mut self.expiry)?;
        writing.no_room = no_room;
        writing.bounds = Some(Bounds {
            room: &station.room,
            readers: &station.readers,
        });
        for queued in group {
            // What was refused alone is kept by the work itself, for its answer.
            let work = |writing: &mut Writing<'_>| queued.work.apply(writing);
            station.not_halted()?;
            let done = match queued.undo {
                Undo::Savepoint => writing.all_or_nothing(work),
                Undo::Statement => writing.at_once(work),
            }?;
            self.broken |= matches!(done, Err(StoreError::Corrupt { .. }));
        }
        // Outside the savepoints, each of which copies the pages that change in it.
        self.sequence = writing
            .write_journal(before)
            .map_err(|error| failure(&self.station.tenant, error))?;
        crash_point!("tenants::writer::applied");
        self.station.not_halted()?;
        self.execute("COMMIT")?;
        crash_point!("tenants::writer::committed");
        if std::mem::take(&mut self.known.changed) {
            self.station.readers.note_schema_change();
        }
        Ok(())
    }

    fn execute(&self, sql: &'static str) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute([]))
            .map(drop)
            .map_err(|error| failure(&self.station.tenant, error))
    }

    /// Empties the WAL and closes the connection.
    fn finish(mut self) -> Result<Station, StoreError> {
        let emptied = self.checkpoints.truncate(&self.connection);
        let closed = self
            .connection
            .close()
            .map_err(|(_connection, error)| error);
        match emptied.and(closed) {
            Ok(()) => Ok(self.station),
            Err(error) => Err(failure(&self.station.tenant, error)),
        }
    }
}

/// Gives back what an idle tenant does not need: read connections, the WAL's space, cached pages and statements. Whether the
/// connection itself is not needed either: it had nothing to give back, and no copy follows what is in the WAL.
fn rest(station: &Station, connection: &Connection, checkpoints: &mut Checkpoints) -> bool {
    station.readers.shed_unused();
    if !checkpoints.pending() {
        return !station.readers.is_followed();
    }
    connection.flush_prepared_statement_cache();
    let emptied = checkpoints.truncate(connection);
    if let Err(error) = emptied.and_then(|()| connection.release_memory()) {
        tracing::warn!(tenant = %station.tenant, %error, "checkpoint of an idle tenant failed");
    }
    false
}

/// Callers' work that may wait; most is of one mutation.
const MAX_QUEUED: usize = 1024;
/// Bytes of it: 32 MiB.
const MAX_QUEUED_BYTES: usize = 32 << 20;
/// Changes in one commit. The last caller's work may go beyond.
const MAX_GROUP: usize = 512;
/// Bytes in one commit: 8 MiB. The last caller's work may go beyond.
const MAX_GROUP_BYTES: usize = 8 << 20;
/// How long a crowd is waited for. Far below one flush of most disks.
const LINGER: Duration = Duration::from_micros(200);
/// After this long without a mutation the tenant's memory is given back. Readers rest by the same beat.
const IDLE: Duration = Duration::from_secs(10);
/// Prepared statements kept: a handful for each of the tables in use.
const STATEMENTS: usize = 64;
/// Steps of SQLite's machine between two looks whether the tenant may still be used. An index of few large documents takes few.
const STEPS: c_int = 200;
/// Page cache of the writer, in KiB (negative: the unit is KiB and not pages).
const CACHE_KIB: i32 = -2048;

#[cfg(test)]
mod tests;
