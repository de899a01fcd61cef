//! The single writer of a tenant, and its group commit.
//!
//! One thread owns the only connection that writes. It waits on a channel; once something arrives it takes everything
//! that is queued, runs it as one transaction with a savepoint for each batch, commits once, and only then answers.
//! Whatever arrives meanwhile queues up for the next round: the slower the disk, the larger the groups. There is no
//! flag that says whether the thread runs, so none that could be read too early: the channel itself wakes it.
//!
//! | crash point | when |
//! | --- | --- |
//! | `tenants::writer::batch-taken` | mutations have left the queue, no transaction is open |
//! | `tenants::writer::applied` | the transaction holds the whole group, uncommitted |
//! | `tenants::writer::committed` | the group is durable, nobody was answered |
//! | `tenants::writer::answered` | everybody was answered, no checkpoint was made |
//! | `tenants::writer::checkpointed` | after a checkpoint, if one was due |

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError},
    },
    thread,
    time::{Duration, Instant},
};

use nimbus_manifests::TenantId;
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::{
    apply::{Applied, Tables, Writing},
    checkpoint::Checkpoints,
    failure,
    readers::Readers,
    schema,
};
use crate::{
    documents::{Mutation, MutationOutcome},
    failpoints::crash_point,
    tenants::{StoreError, error::Limit},
};

/// What came of a batch: the outcome of each of its mutations, or why none of them was applied.
type Outcome = Result<Vec<MutationOutcome>, StoreError>;

/// The way to a tenant's writer thread.
#[derive(Debug)]
pub(super) struct Writer {
    tenant: TenantId,
    queue: SyncSender<Command>,
    /// Bytes of the mutations in the queue.
    queued: Arc<AtomicUsize>,
    thread: Mutex<Option<thread::JoinHandle<Result<(), StoreError>>>>,
    /// Whether the thread has ended is asked on every use of the tenant; this answers without its lock.
    alive: std::sync::Weak<()>,
}

#[derive(Debug)]
enum Command {
    Apply(Queued),
    Close,
}

/// Mutations that are applied all or not at all, and where their caller waits.
#[derive(Debug)]
struct Queued {
    batch: Vec<Mutation>,
    weight: usize,
    answer: oneshot::Sender<Outcome>,
}

impl Writer {
    /// Starts the thread, on a connection whose file has the layout of this version. Without one it opens its own with
    /// the first mutation.
    pub(super) fn start(
        tenant: &TenantId,
        connection: Option<Connection>,
        readers: Arc<Readers>,
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
            _alive: token,
        };
        let work: Box<dyn FnOnce() -> Result<(), StoreError> + Send> = match connection {
            Some(connection) => {
                let work = station.begin(connection)?;
                Box::new(move || work.run(None))
            }
            None => Box::new(move || station.run()),
        };
        let thread = thread::Builder::new()
            .name("tenant-writer".into())
            .spawn(work)
            .map_err(|source| StoreError::Io {
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

    /// Queues a batch. The answer comes once it is durable or refused; it does not come at all when the writer was
    /// closed first.
    pub(super) fn submit(
        &self,
        batch: Vec<Mutation>,
    ) -> Result<oneshot::Receiver<Outcome>, StoreError> {
        let weight = batch.iter().map(Mutation::weight).sum();
        let before = self.queued.fetch_add(weight, Ordering::Relaxed);
        let (answer, outcome) = oneshot::channel();
        let sent = if before > 0 && before + weight > MAX_QUEUED_BYTES {
            Err(self.busy())
        } else {
            self.queue
                .try_send(Command::Apply(Queued {
                    batch,
                    weight,
                    answer,
                }))
                .map_err(|error| match error {
                    TrySendError::Full(_) => self.busy(),
                    TrySendError::Disconnected(_) => StoreError::Closed {
                        tenant: self.tenant.clone(),
                    },
                })
        };
        if sent.is_err() {
            let _before = self.queued.fetch_sub(weight, Ordering::Relaxed);
        }
        sent.map(|()| outcome)
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

    /// Whether the thread has ended, closed or not.
    pub(super) fn has_ended(&self) -> bool {
        self.alive.strong_count() == 0
    }

    fn busy(&self) -> StoreError {
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
    _alive: Arc<()>,
}

impl Station {
    /// Waits for the first mutation, and opens the connection for it.
    fn run(self) -> Result<(), StoreError> {
        let Some(first) = next(&self.commands, || self.readers.shed_unused()) else {
            return Ok(());
        };
        let begun = match self.readers.writer() {
            Ok(connection) => self.begin(connection),
            Err(error) => Err(error),
        };
        match begun {
            Ok(work) => work.run(Some(first)),
            Err(error) => {
                // The next request opens the tenant afresh.
                drop(first.answer.send(Err(error)));
                Ok(())
            }
        }
    }

    fn begin(self, mut connection: Connection) -> Result<Work, StoreError> {
        let sqlite = |error| failure(&self.tenant, error);
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        connection
            .pragma_update(None, "cache_size", CACHE_KIB)
            .map_err(sqlite)?;
        let checkpoints = Checkpoints::install(&mut connection).map_err(sqlite)?;
        let sequence = schema::last_sequence(&connection).map_err(sqlite)?;
        let file = identity(self.readers.path());
        Ok(Work {
            station: self,
            connection,
            checkpoints,
            tables: Tables::new(),
            file,
            sequence,
            last_group: 0,
            broken: false,
        })
    }
}

/// Waits for a mutation; `None` once the tenant is to be closed. Nothing to do for a while is time to `rest`.
fn next(commands: &Receiver<Command>, mut rest: impl FnMut()) -> Option<Queued> {
    loop {
        match commands.recv_timeout(IDLE) {
            Ok(Command::Apply(queued)) => return Some(queued),
            Ok(Command::Close) | Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => rest(),
        }
    }
}

/// What the thread owns once it writes.
struct Work {
    station: Station,
    connection: Connection,
    checkpoints: Checkpoints,
    tables: Tables,
    /// Which file it is, by device and number.
    file: Option<(u64, u64)>,
    /// The number of the last write.
    sequence: i64,
    /// How many batches the last group had.
    last_group: usize,
    /// The file is damaged: this connection is not used again.
    broken: bool,
}

impl Work {
    fn run(mut self, mut first: Option<Queued>) -> Result<(), StoreError> {
        while let Some(first) = first.take().or_else(|| self.next()) {
            let (group, closing) = self.gather(first);
            crash_point!("tenants::writer::batch-taken");
            self.commit(group);
            crash_point!("tenants::writer::answered");
            if self.broken {
                // Its successor starts from a fresh connection; what is still queued is not answered from this one.
                return Ok(());
            }
            if let Err(error) = self.checkpoints.after_commit(&self.connection) {
                // The commits are safe in the WAL. The next checkpoint tries again.
                tracing::warn!(tenant = %self.station.tenant, %error, "checkpoint failed");
            }
            crash_point!("tenants::writer::checkpointed");
            if closing {
                break;
            }
        }
        self.finish()
    }

    fn next(&mut self) -> Option<Queued> {
        let Self {
            station,
            connection,
            checkpoints,
            ..
        } = self;
        next(&station.commands, || rest(station, connection, checkpoints))
    }

    /// Takes what else is queued. A lone client is never made to wait; but where the last group was a crowd, its
    /// members, just answered, are about to send again, and a moment's patience keeps them together in one commit.
    fn gather(&mut self, first: Queued) -> (Vec<Queued>, bool) {
        let patience = Instant::now() + LINGER;
        let mut bytes = first.weight;
        let mut mutations = first.batch.len();
        let mut group = vec![first];
        let mut closing = false;
        while mutations < MAX_GROUP && bytes < MAX_GROUP_BYTES {
            let command = self.station.commands.try_recv().ok().or_else(|| {
                if group.len() >= self.last_group {
                    return None;
                }
                let left = patience.saturating_duration_since(Instant::now());
                self.station.commands.recv_timeout(left).ok()
            });
            match command {
                Some(Command::Apply(queued)) => {
                    bytes += queued.weight;
                    mutations += queued.batch.len();
                    group.push(queued);
                }
                Some(Command::Close) => {
                    closing = true;
                    break;
                }
                None => break,
            }
        }
        self.last_group = group.len();
        let _before = self.station.queued.fetch_sub(bytes, Ordering::Relaxed);
        (group, closing)
    }

    /// Applies a group in one transaction and answers every caller.
    fn commit(&mut self, group: Vec<Queued>) {
        let (batches, answers): (Vec<_>, Vec<_>) = group
            .into_iter()
            .map(|queued| (queued.batch, queued.answer))
            .unzip();
        let sequence = self.sequence;
        let outcomes = self
            .transaction(&batches)
            .and_then(|outcomes| self.still_there().map(|()| outcomes));
        if outcomes.is_err() {
            self.sequence = sequence;
            self.tables.clear();
            if !self.connection.is_autocommit()
                && let Err(error) = self.connection.execute_batch("ROLLBACK")
            {
                tracing::error!(tenant = %self.station.tenant, %error, "rollback failed; the tenant is opened afresh");
                self.broken = true;
            }
        }
        let outcomes = outcomes.unwrap_or_else(|error| vec![Err(error); answers.len()]);
        self.broken |= outcomes
            .iter()
            .any(|outcome| matches!(outcome, Err(StoreError::Corrupt { .. })));
        for (answer, outcome) in answers.into_iter().zip(outcomes) {
            // A caller that went away does not hear it.
            drop(answer.send(outcome));
        }
    }

    /// Whether the file that was written is the one that the next opening finds. What is written to a file that was removed or replaced
    /// under its open tenant is gone with it, and must not be acknowledged.
    fn still_there(&self) -> Result<(), StoreError> {
        if identity(self.station.readers.path()) == self.file {
            return Ok(());
        }
        Err(StoreError::Corrupt {
            tenant: self.station.tenant.clone(),
            source: Arc::new(Replaced(self.station.readers.path().to_owned())),
        })
    }

    /// One transaction: each batch's own outcome, or the failure that none of them survived.
    fn transaction(&mut self, batches: &[Vec<Mutation>]) -> Result<Vec<Outcome>, StoreError> {
        self.execute("BEGIN IMMEDIATE")?;
        let before = self.sequence;
        let mut outcomes = Vec::with_capacity(batches.len());
        let mut applied = Vec::with_capacity(batches.len());
        for batch in batches {
            outcomes.push(self.apply(batch, &mut applied)?);
        }
        // Outside the savepoints, each of which copies the pages that change in it.
        (before + 1..)
            .zip(&applied)
            .try_for_each(|(sequence, applied)| applied.note(&self.connection, sequence))
            .and_then(|()| schema::trim_journal(&self.connection, before, self.sequence))
            .map_err(|error| failure(&self.station.tenant, error))?;
        crash_point!("tenants::writer::applied");
        self.execute("COMMIT")?;
        crash_point!("tenants::writer::committed");
        Ok(outcomes)
    }

    /// Applies one batch in a savepoint of its own, and adds what it did to `applied`. The outer error means that the
    /// whole transaction is gone.
    fn apply(
        &mut self,
        batch: &[Mutation],
        applied: &mut Vec<Applied>,
    ) -> Result<Outcome, StoreError> {
        self.execute("SAVEPOINT batch")?;
        let first = applied.len();
        let mut sequence = self.sequence;
        for (index, mutation) in batch.iter().enumerate() {
            let writing = Writing {
                tenant: &self.station.tenant,
                connection: &self.connection,
                tables: &self.tables,
                sequence: sequence + 1,
            };
            match writing.apply(mutation) {
                Ok(done) => {
                    sequence += 1;
                    applied.push(done);
                }
                // Some failures, a full disk among them, end the transaction.
                Err(error) if self.connection.is_autocommit() => return Err(error),
                Err(error) => {
                    self.execute("ROLLBACK TO batch")?;
                    self.execute("RELEASE batch")?;
                    applied.truncate(first);
                    return Ok(Err(if error.concerns_mutation() {
                        StoreError::InBatch {
                            index,
                            source: Box::new(error),
                        }
                    } else {
                        error
                    }));
                }
            }
        }
        self.execute("RELEASE batch")?;
        self.sequence = sequence;
        let applied = &mut applied[first..];
        self.tables
            .extend(applied.iter_mut().filter_map(|done| done.created.take()));
        Ok(Ok(applied.iter().map(|done| done.outcome).collect()))
    }

    fn execute(&self, sql: &'static str) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute([]))
            .map(drop)
            .map_err(|error| failure(&self.station.tenant, error))
    }

    /// Empties the WAL and closes the connection.
    fn finish(mut self) -> Result<(), StoreError> {
        let emptied = self.checkpoints.truncate(&self.connection);
        let closed = self
            .connection
            .close()
            .map_err(|(_connection, error)| error);
        emptied
            .and(closed)
            .map_err(|error| failure(&self.station.tenant, error))
    }
}

/// Gives back what an idle tenant does not need: read connections, the WAL's space, cached pages and statements.
fn rest(station: &Station, connection: &Connection, checkpoints: &mut Checkpoints) {
    station.readers.shed_unused();
    if !checkpoints.pending() {
        return;
    }
    connection.flush_prepared_statement_cache();
    let emptied = checkpoints.truncate(connection);
    if let Err(error) = emptied.and_then(|()| connection.release_memory()) {
        tracing::warn!(tenant = %station.tenant, %error, "checkpoint of an idle tenant failed");
    }
}

/// A database file that is not where it was opened.
#[derive(Debug, thiserror::Error)]
#[error("{} was removed or replaced while the tenant was open", .0.display())]
struct Replaced(PathBuf);

/// Which file stands at `path`.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let file = std::fs::symlink_metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

/// Batches that may wait; most are of one mutation.
const MAX_QUEUED: usize = 1024;
/// Bytes of mutations that may wait: 32 MiB.
const MAX_QUEUED_BYTES: usize = 32 << 20;
/// Mutations in one commit. The last batch may go beyond.
const MAX_GROUP: usize = 512;
/// Bytes of mutations in one commit: 8 MiB. The last batch may go beyond.
const MAX_GROUP_BYTES: usize = 8 << 20;
/// How long a crowd is waited for. Far below one flush of most disks.
const LINGER: Duration = Duration::from_micros(200);
/// After this long without a mutation the tenant's memory is given back. Readers rest by the same beat.
const IDLE: Duration = Duration::from_secs(10);
/// Prepared statements kept: a handful for each of the tables in use.
const STATEMENTS: usize = 64;
/// Page cache of the writer, in KiB (negative: the unit is KiB and not pages).
const CACHE_KIB: i32 = -2048;

#[cfg(test)]
mod tests;
