//! The way to a tenant's writer: write jobs, and the bounded queue in which they wait.

use std::fmt::{self, Debug, Formatter};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicUsize, Ordering},
    mpsc::{self, SyncSender, TrySendError},
};
use std::thread;

use nimbus_manifests::TenantId;
use tokio::sync::oneshot;

use super::{IdleWriter, MAX_QUEUED, MAX_QUEUED_BYTES};
use crate::budget;
use crate::documents::{Done, Mutation, MutationOutcome, Once};
use crate::metrics::{self, Counted};
use crate::runtime::{self, Background};
use crate::tenants::backend::{Storage, Transaction, Upcoming};
use crate::tenants::error::Limit;
use crate::tenants::readers::Readers;
use crate::tenants::writing::Writing;
use crate::tenants::{DueLog, StoreError};

/// What came of a batch: the outcome of each of its mutations, or why none of them was applied.
pub(in crate::tenants) type BatchOutcome = Result<Done<Vec<MutationOutcome>>, StoreError>;

/// The way to a tenant's writer thread.
#[derive(Debug)]
pub(in crate::tenants) struct Writer<S: Storage> {
    pub(in crate::tenants) tenant: TenantId,
    queue: SyncSender<Command<S>>,
    /// Bytes of the work in the queue.
    pub(in crate::tenants) queued: Arc<AtomicUsize>,
    thread: Mutex<Thread<S>>,
    /// Whether the thread was started, without its lock.
    begun: AtomicBool,
    /// Whether the thread has ended is asked on every use of the tenant; this answers without its
    /// lock.
    alive: std::sync::Weak<()>,
}

/// The writer's thread, which a tenant that is only read does not need.
enum Thread<S: Storage> {
    /// Nothing was written yet. What the thread takes over is shared with it, so that it is still
    /// here when none could be started.
    Waits(Arc<Mutex<Option<IdleWriter<S>>>>),
    Runs(thread::JoinHandle<Result<(), StoreError>>),
    Gone,
}

impl<S: Storage> Debug for Thread<S> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waits(_) => "Waits",
            Self::Runs(_) => "Runs",
            Self::Gone => "Gone",
        })
    }
}

pub(super) enum Command<S: Storage> {
    Apply(Queued<S>),
    Swap(Box<dyn FileSwap>),
    /// The connection is closed until there is something to write again.
    Rest,
    Close,
}

/// What is done to the storage while nothing of the writer is open, between two commits.
pub(in crate::tenants) trait FileSwap: Send {
    /// The last look at the storage while it is open. `false`: that was all, the writer goes on.
    fn before(&mut self) -> bool;

    /// The writer has gone on.
    fn gone_on(self: Box<Self>);

    /// Nothing of the writer is open any more, or its closing failed: `closed`. `false`: the tenant
    /// must be opened afresh.
    fn closed(self: Box<Self>, closed: Result<(), StoreError>) -> bool;
}

/// Work that waits for its turn.
pub(super) struct Queued<S: Storage> {
    pub(super) job: Box<dyn WriteJob<S::Transaction>>,
    pub(super) size: Size,
    pub(super) undo: Undo,
    /// Counted for as long as it is not answered.
    _waiting: Counted,
}

/// How much some work is, so that neither the queue nor a commit grows without bound.
#[derive(Debug, Clone, Copy)]
pub(in crate::tenants) struct Size {
    /// About how many bytes it holds while it waits.
    pub(in crate::tenants) bytes: usize,
    /// About how many documents it changes.
    pub(in crate::tenants) changes: usize,
}

impl Size {
    /// A change without a body.
    pub(in crate::tenants) const SMALL: Self = Self {
        bytes: 64,
        changes: 1,
    };
}

/// What undoes work that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Undo {
    /// A savepoint, which may copy each page that changes in it.
    Savepoint,
    /// The backend itself: the work is one mutation, which it does all or not at all.
    Statement,
}

/// What the thread does for one caller: all of it or nothing.
pub(super) trait WriteJob<T: Transaction>: Send {
    /// What it is about to touch.
    fn upcoming(&self) -> Upcoming<'_>;

    /// Does it; an error undoes all of it.
    fn apply(&mut self, writing: &mut Writing<'_, T>) -> Result<(), StoreError>;

    /// Whether it can be applied again, in another transaction.
    fn is_repeatable(&self) -> bool {
        false
    }

    /// Answers the caller: with what was done, or with what kept the group from being durable.
    fn answer(self: Box<Self>, group: Result<(), StoreError>);
}

/// A batch of mutations.
struct Mutations {
    batch: Vec<Mutation>,
    once: Option<Once>,
    reply: Reply<Done<Vec<MutationOutcome>>>,
}

impl<T: Transaction> WriteJob<T> for Mutations {
    fn upcoming(&self) -> Upcoming<'_> {
        Upcoming {
            mutations: &self.batch,
            once: self.once.as_ref(),
        }
    }

    fn apply(&mut self, writing: &mut Writing<'_, T>) -> Result<(), StoreError> {
        let done = match &self.once {
            Some(once) => writing.apply_once(&self.batch, once),
            None => writing.apply_all(&self.batch).map(|outcome| Done {
                outcome,
                replayed: false,
            }),
        };
        self.reply.keep(done)
    }

    fn is_repeatable(&self) -> bool {
        true
    }

    fn answer(self: Box<Self>, group: Result<(), StoreError>) {
        self.reply.send(group);
    }
}

/// Work of any other kind, as a closure.
struct ClosureJob<F, R> {
    work: Option<F>,
    /// Whether it is not begun when nobody waits for it any more.
    if_awaited: bool,
    reply: Reply<R>,
}

impl<T, F, R> WriteJob<T> for ClosureJob<F, R>
where
    T: Transaction,
    F: FnOnce(&mut Writing<'_, T>) -> Result<R, StoreError> + Send,
    R: Send,
{
    fn upcoming(&self) -> Upcoming<'_> {
        Upcoming::default()
    }

    fn apply(&mut self, writing: &mut Writing<'_, T>) -> Result<(), StoreError> {
        // Not begun, it has the outcome of a writer that was closed first.
        let is_given_up = self.if_awaited && self.reply.answer.is_closed();
        match self.work.take().filter(|_| !is_given_up) {
            Some(work) => self.reply.keep(work(writing)),
            None => self.reply.error(),
        }
    }

    fn answer(self: Box<Self>, group: Result<(), StoreError>) {
        self.reply.send(group);
    }
}

/// What came of a write job, and where its caller waits.
struct Reply<R> {
    outcome: Result<R, StoreError>,
    answer: oneshot::Sender<Result<R, StoreError>>,
}

impl<R> Reply<R> {
    /// Keeps what came of the job for the answer; its error is the job's, too.
    fn keep(&mut self, outcome: Result<R, StoreError>) -> Result<(), StoreError> {
        self.outcome = outcome;
        self.error()
    }

    /// The error of the job, if it has one.
    fn error(&self) -> Result<(), StoreError> {
        self.outcome.as_ref().map(drop).map_err(StoreError::clone)
    }

    fn send(self, group: Result<(), StoreError>) {
        // A caller that went away does not hear it.
        drop(self.answer.send(group.and(self.outcome)));
    }
}

impl<S: Storage> Writer<S> {
    /// A writer, whose thread starts at once with a connection that the opening left. Without one
    /// it starts with the first job, and opens its own.
    pub(in crate::tenants) fn start(
        tenant: &TenantId,
        connection: Option<S::Transaction>,
        readers: Arc<Readers<S>>,
        due: Arc<dyn DueLog>,
    ) -> Result<Self, StoreError> {
        let (queue, commands) = mpsc::sync_channel(MAX_QUEUED);
        let queued = Arc::new(AtomicUsize::new(0));
        let token = Arc::new(());
        let alive = Arc::downgrade(&token);
        let idle = IdleWriter::new(
            tenant.clone(),
            commands,
            Arc::clone(&queued),
            readers,
            due,
            token,
        );
        let thread = match connection {
            Some(connection) => {
                let active = idle.activate(connection);
                let work = move || active.run(None)?.map_or(Ok(()), IdleWriter::run);
                Thread::Runs(start_thread(tenant, work)?)
            }
            None => Thread::Waits(Arc::new(Mutex::new(Some(idle)))),
        };
        Ok(Self {
            tenant: tenant.clone(),
            queue,
            queued,
            begun: AtomicBool::new(matches!(thread, Thread::Runs(_))),
            thread: Mutex::new(thread),
            alive,
        })
    }

    /// Starts the thread, if it was not started yet.
    pub(in crate::tenants) fn begin(&self) -> Result<(), StoreError> {
        if self.begun.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut thread = self.thread();
        if let Thread::Waits(idle) = &*thread {
            let idle = Arc::clone(idle);
            let work = move || {
                let idle = idle.lock().unwrap_or_else(PoisonError::into_inner).take();
                idle.map_or(Ok(()), IdleWriter::run)
            };
            *thread = Thread::Runs(start_thread(&self.tenant, work)?);
            self.begun.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn thread(&self) -> MutexGuard<'_, Thread<S>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a batch of mutations, which are applied all or not at all, and once under a key.
    pub(in crate::tenants) fn submit(
        &self,
        batch: Vec<Mutation>,
        once: Option<Once>,
    ) -> Result<oneshot::Receiver<BatchOutcome>, StoreError> {
        let size = Size {
            bytes: batch.iter().map(Mutation::weight).sum(),
            changes: batch.len(),
        };
        // A lone mutation is done all or not at all by itself. The memory of a key is a second
        // change.
        let undo = match (&once, batch.len()) {
            (None, 1) => Undo::Statement,
            _ => Undo::Savepoint,
        };
        self.queue(size, undo, |reply| {
            Box::new(Mutations { batch, once, reply })
        })
    }

    /// Queues work that is done all or not at all, within a transaction that it shares with others'
    /// work. The answer comes once it is durable or refused; it does not come at all when the
    /// writer was closed first.
    pub(in crate::tenants) fn run<R: Send + 'static>(
        &self,
        size: Size,
        work: impl FnOnce(&mut Writing<'_, S::Transaction>) -> Result<R, StoreError> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<R, StoreError>>, StoreError> {
        self.task(size, false, work)
    }

    /// The same for work that may take long: it is not begun when its caller has gone by then. Once
    /// begun it is done.
    pub(in crate::tenants) fn run_if_awaited<R: Send + 'static>(
        &self,
        size: Size,
        work: impl FnOnce(&mut Writing<'_, S::Transaction>) -> Result<R, StoreError> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<R, StoreError>>, StoreError> {
        self.task(size, true, work)
    }

    fn task<R: Send + 'static>(
        &self,
        size: Size,
        if_awaited: bool,
        work: impl FnOnce(&mut Writing<'_, S::Transaction>) -> Result<R, StoreError> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<R, StoreError>>, StoreError> {
        // What it takes on the writer's thread is its request's.
        let account = budget::account();
        let work = move |writing: &mut Writing<'_, S::Transaction>| {
            budget::charged_to(account, || work(writing))
        };
        self.queue(size, Undo::Savepoint, |reply| {
            Box::new(ClosureJob {
                work: Some(work),
                if_awaited,
                reply,
            })
        })
    }

    fn queue<R: Send + 'static>(
        &self,
        size: Size,
        undo: Undo,
        job: impl FnOnce(Reply<R>) -> Box<dyn WriteJob<S::Transaction>>,
    ) -> Result<oneshot::Receiver<Result<R, StoreError>>, StoreError> {
        self.begin()?;
        let before = self.queued.fetch_add(size.bytes, Ordering::Relaxed);
        let (answer, outcome) = oneshot::channel();
        let closed = || StoreError::Closed {
            tenant: self.tenant.clone(),
        };
        let sent = if before > 0 && before + size.bytes > MAX_QUEUED_BYTES {
            Err(self.busy())
        } else {
            let job = job(Reply {
                outcome: Err(closed()),
                answer,
            });
            self.queue
                .try_send(Command::Apply(Queued {
                    job,
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
            self.queued.fetch_sub(size.bytes, Ordering::Relaxed);
        }
        sent.map(|()| outcome)
    }

    /// Has `swap` done once what is queued so far is written. Waits for a place in the queue:
    /// blocks.
    pub(in crate::tenants) fn swap(&self, swap: Box<dyn FileSwap>) -> Result<(), StoreError> {
        self.begin()?;
        let closed = |_refused| StoreError::Closed {
            tenant: self.tenant.clone(),
        };
        self.queue.send(Command::Swap(swap)).map_err(closed)
    }

    /// Writes what was queued so far and closes the connection. Blocks.
    pub(in crate::tenants) fn close(&self) -> Result<(), StoreError> {
        let thread = std::mem::replace(&mut *self.thread(), Thread::Gone);
        // One that was not started takes its end of the queue along.
        let Thread::Runs(thread) = thread else {
            return Ok(());
        };
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
    pub(in crate::tenants) fn rest(&self) {
        self.begin().unwrap();
        self.queue.send(Command::Rest).expect("the thread runs");
    }

    /// Whether the thread has ended, closed or not.
    pub(in crate::tenants) fn has_ended(&self) -> bool {
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

fn start_thread(
    tenant: &TenantId,
    work: impl FnOnce() -> Result<(), StoreError> + Send + 'static,
) -> Result<thread::JoinHandle<Result<(), StoreError>>, StoreError> {
    runtime::thread(Background::TenantWriter, work).map_err(|source| StoreError::Io {
        action: "start a writer thread for",
        path: tenant.as_str().into(),
        source: Arc::new(source),
    })
}

impl<S: Storage> Drop for Writer<S> {
    /// Waits for the thread, if nobody closed it. SQLCipher frees its memory when the process ends,
    /// and a connection that another thread closes after that brings it down.
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(tenant = %self.tenant, %error, "a tenant was dropped, and did not close cleanly");
        }
    }
}
