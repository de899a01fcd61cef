//! The single writer of a tenant, and its group commit.
//!
//! One thread owns the only connection that writes. It waits on a channel; once something arrives
//! it takes everything that is queued, runs it as one transaction with a savepoint for each
//! caller's work (a lone mutation, which a backend does all or not at all, needs none), commits
//! once, and only then answers. Whatever arrives meanwhile queues up for the next round: the slower
//! the disk, the larger the groups. There is no flag that says whether the thread runs, so none
//! that could be read too early: the channel itself wakes it.
//!
//! | crash point | when |
//! | --- | --- |
//! | `tenants::writer::batch-taken` | mutations have left the queue, no transaction is open |
//! | `tenants::writer::applied` | the transaction holds the whole group, uncommitted |
//! | `tenants::writer::committed` | the group is durable, nobody was answered |
//! | `tenants::writer::answered` | everybody's answer is on its way, the storage was not tidied |
//! | `tenants::writer::checkpointed` | after that, a checkpoint if one was due |

mod queue;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use nimbus_manifests::TenantId;
use tokio::runtime::Handle;

#[cfg(test)]
pub(super) use queue::BatchOutcome;
use queue::{Command, Queued, Undo};
pub(super) use queue::{FileSwap, Size, Writer};

use super::backend::{Storage, Transaction as _};
use super::error::{EngineFault, Limit};
use super::idempotency::AnswerExpiry;
use super::readers::Readers;
use super::writing::{WriterCache, Writing};
use super::{DueLog, StoreError};
use crate::failpoints::crash_point;
use crate::metrics;
use crate::process;
use crate::runtime::{panic_point, short_task};

/// The writer without a connection, until there is something to write.
struct IdleWriter<S: Storage> {
    tenant: TenantId,
    commands: Receiver<Command<S>>,
    queued: Arc<AtomicUsize>,
    readers: Arc<Readers<S>>,
    due: Arc<dyn DueLog>,
    /// Where callers wait for their answers.
    runtime: Option<Handle>,
    _alive: Arc<()>,
}

impl<S: Storage> IdleWriter<S> {
    fn new(
        tenant: TenantId,
        commands: Receiver<Command<S>>,
        queued: Arc<AtomicUsize>,
        readers: Arc<Readers<S>>,
        due: Arc<dyn DueLog>,
        alive: Arc<()>,
    ) -> Self {
        Self {
            tenant,
            commands,
            queued,
            readers,
            due,
            runtime: Handle::try_current().ok(),
            _alive: alive,
        }
    }

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
                Command::Swap(mut swap) => {
                    if !swap.before() {
                        swap.gone_on();
                    } else if !swap.closed(Ok(())) {
                        return Ok(());
                    }
                    continue;
                }
            };
            match self.readers.writer() {
                Ok(connection) => match self.activate(connection).run(Some(first))? {
                    Some(idle) => self = idle,
                    None => return Ok(()),
                },
                Err(error) => {
                    // The next request opens the tenant afresh.
                    first.job.answer(Err(error));
                    return Ok(());
                }
            }
        }
    }

    fn activate(self, connection: S::Transaction) -> ActiveWriter<S> {
        ActiveWriter {
            idle: self,
            connection,
            cache: WriterCache::default(),
            expiry: AnswerExpiry::default(),
            last_group: 0,
            broken: false,
        }
    }

    /// Refuses to go on with a tenant that may not be used any more.
    fn not_halted(&self) -> Result<(), StoreError> {
        if self.readers.is_halted() {
            return Err(self.readers.closed());
        }
        Ok(())
    }

    /// What was interrupted failed because the tenant may not be used any more, and for no other
    /// reason.
    fn unless_halted(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Engine { .. } if self.readers.is_halted() => self.readers.closed(),
            error => error,
        }
    }
}

/// Waits for something to do. Nothing for a while is time to `rest`, which says whether the
/// connection is to rest, too.
fn next<S: Storage>(commands: &Receiver<Command<S>>, mut rest: impl FnMut() -> bool) -> Command<S> {
    loop {
        match commands.recv_timeout(IDLE) {
            Ok(command) => return command,
            Err(RecvTimeoutError::Disconnected) => return Command::Close,
            Err(RecvTimeoutError::Timeout) if rest() => return Command::Rest,
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// The writer's thread with its connection.
struct ActiveWriter<S: Storage> {
    idle: IdleWriter<S>,
    connection: S::Transaction,
    cache: WriterCache,
    /// When answers under keys are old.
    expiry: AnswerExpiry,
    /// How many callers the last group had.
    last_group: usize,
    /// The storage is damaged: this connection is not used again.
    broken: bool,
}

impl<S: Storage> ActiveWriter<S> {
    /// Writes until the tenant is closed or, with an answer, nothing was written for long or the
    /// file was swapped: the connection is closed then, and the next mutation opens another.
    fn run(mut self, mut first: Option<Queued<S>>) -> Result<Option<IdleWriter<S>>, StoreError> {
        loop {
            let command = first.take().map_or_else(|| self.next(), Command::Apply);
            let then = match command {
                Command::Apply(queued) => {
                    let then = self.write(queued);
                    if self.is_broken() {
                        // Its successor starts from a fresh connection; what is still queued is not
                        // answered from this one.
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
                Some(Command::Close) => return self.finish().map(|_idle| None),
                Some(Command::Swap(mut swap)) => {
                    if swap.before() {
                        return self.hand_over(swap);
                    }
                    swap.gone_on();
                }
            }
        }
    }

    fn is_broken(&self) -> bool {
        self.broken || self.connection.is_broken()
    }

    /// One group commit; answers what was met in the queue behind it.
    fn write(&mut self, first: Queued<S>) -> Option<Command<S>> {
        let (group, then) = self.gather(first);
        crash_point!("tenants::writer::batch-taken");
        panic_point!("tenants::writer::commit");
        self.commit(group);
        crash_point!("tenants::writer::answered");
        if self.is_broken() {
            return then;
        }
        self.connection.tidy();
        crash_point!("tenants::writer::checkpointed");
        then
    }

    /// Closes the connection and lets go of the storage for a moment.
    fn hand_over(self, swap: Box<dyn FileSwap>) -> Result<Option<IdleWriter<S>>, StoreError> {
        match self.finish() {
            Ok(idle) => Ok(swap.closed(Ok(())).then_some(idle)),
            Err(error) => {
                let _opened_afresh = swap.closed(Err(error.clone()));
                Err(error)
            }
        }
    }

    fn next(&mut self) -> Command<S> {
        let Self {
            idle,
            connection,
            cache,
            ..
        } = self;
        next(&idle.commands, || {
            // Compiled schemas among it.
            cache.clear();
            idle.readers.shed_unused();
            connection.rest()
        })
    }

    /// Takes what else is queued. A lone client is never made to wait; but where the last group was
    /// a crowd, its members, just answered, are about to send again, and a moment's patience keeps
    /// them together in one commit.
    fn gather(&mut self, first: Queued<S>) -> (Vec<Queued<S>>, Option<Command<S>>) {
        let patience = Instant::now() + LINGER;
        let Size {
            mut bytes,
            mut changes,
        } = first.size;
        let mut group = vec![first];
        let mut then = None;
        while changes < MAX_GROUP && bytes < MAX_GROUP_BYTES {
            let command = self.idle.commands.try_recv().ok().or_else(|| {
                if group.len() >= self.last_group {
                    return None;
                }
                let left = patience.saturating_duration_since(Instant::now());
                self.idle.commands.recv_timeout(left).ok()
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
        self.idle.queued.fetch_sub(bytes, Ordering::Relaxed);
        (group, then)
    }

    /// Applies a group in one transaction and answers every caller.
    fn commit(&mut self, mut group: Vec<Queued<S>>) {
        let started = Instant::now();
        let committed = self
            .first_come(&mut group)
            .map_err(|error| self.idle.unless_halted(error));
        metrics::COMMIT.record(metrics::since(started));
        metrics::GROUP.record(group.len() as f64);
        if committed.is_err() {
            metrics::COMMIT_FAILED.increment(1);
            self.cache.clear();
            self.expiry.unknown();
            // An engine that met damage late may say that it has no memory, and goes on saying so.
            self.broken |= matches!(
                committed,
                Err(StoreError::Corrupt { .. }
                    | StoreError::Engine {
                        fault: EngineFault::Exhausted,
                        ..
                    })
            );
            if self.connection.is_open()
                && let Err(error) = self.connection.roll_back()
            {
                tracing::error!(tenant = %self.idle.tenant, %error, "rollback failed; the tenant is opened afresh");
                self.broken = true;
            }
        }
        self.answer(group, committed);
    }

    /// Answers every caller of a group. Each answer wakes a task: a worker of the runtime does that
    /// for one of a crowd at a fraction of what it costs from here.
    fn answer(&self, group: Vec<Queued<S>>, committed: Result<(), StoreError>) {
        let answering = move |group: Vec<Queued<S>>| {
            for queued in group {
                queued.job.answer(committed.clone());
            }
        };
        match &self.idle.runtime {
            Some(runtime) if group.len() > 1 => {
                let _in_it = runtime.enter();
                drop(short_task(async move { answering(group) }));
            }
            _ => answering(group),
        }
    }

    /// The group's transaction; again while those of other servers come first, as far as the work
    /// can be done again.
    fn first_come(&mut self, group: &mut [Queued<S>]) -> Result<(), StoreError> {
        let until = Instant::now() + CONTENTION;
        loop {
            let done = self.transaction(group);
            let contended = matches!(
                done,
                Err(StoreError::Busy {
                    what: Limit::Contention,
                    ..
                })
            );
            let repeatable = group.iter().all(|queued| queued.job.is_repeatable());
            if !contended || !repeatable || Instant::now() > until {
                return done;
            }
            self.cache.clear();
            self.expiry.unknown();
            if self.connection.is_open() {
                self.connection.roll_back()?;
            }
        }
    }

    /// One transaction of all the group's work. An error means that nothing of it is acknowledged.
    fn transaction(&mut self, group: &mut [Queued<S>]) -> Result<(), StoreError> {
        let Self {
            idle,
            connection,
            cache,
            expiry,
            ..
        } = self;
        idle.not_halted()?;
        let mut writing = Writing::begin(&idle.tenant, connection, cache, &*idle.due)?;
        writing
            .transaction
            .announce(group.iter().map(|queued| queued.job.upcoming()))?;
        expiry.remove_old(writing.transaction)?;
        for queued in group {
            // What was refused alone is kept by the job itself, for its answer.
            let work = |writing: &mut Writing<'_, S::Transaction>| queued.job.apply(writing);
            idle.not_halted()?;
            let done = match queued.undo {
                Undo::Savepoint => writing.all_or_nothing(work),
                Undo::Statement => writing.at_once(work),
            }?;
            self.broken |= matches!(done, Err(StoreError::Corrupt { .. }));
        }
        // Outside the savepoints, each of which may copy the pages that change in it.
        writing.write_journal()?;
        crash_point!("tenants::writer::applied");
        idle.not_halted()?;
        connection.commit()?;
        crash_point!("tenants::writer::committed");
        if std::mem::take(&mut cache.changed) {
            idle.readers.note_schema_change();
        }
        Ok(())
    }

    /// Closes the connection.
    fn finish(self) -> Result<IdleWriter<S>, StoreError> {
        self.connection.finish()?;
        Ok(self.idle)
    }
}

/// Callers' work that may wait; most is of one mutation.
pub(super) const MAX_QUEUED: usize = 1024;
/// Bytes of it: 32 MiB.
pub(super) const MAX_QUEUED_BYTES: usize = 32 << 20;
/// Changes in one commit. The last caller's work may go beyond.
pub(super) const MAX_GROUP: usize = 512;
/// Bytes in one commit: 8 MiB. The last caller's work may go beyond.
pub(super) const MAX_GROUP_BYTES: usize = 8 << 20;
/// How long a group gives way to other servers before its callers are told.
const CONTENTION: Duration = Duration::from_secs(10);
/// How long a crowd is waited for. Far below one flush of most disks.
const LINGER: Duration = Duration::from_micros(200);
/// After this long without a mutation the tenant's memory is given back. Readers rest by the same
/// beat.
pub(super) const IDLE: Duration = Duration::from_secs(10);
