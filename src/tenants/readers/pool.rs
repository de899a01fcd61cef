//! The read connections that are open: one of each tenant that is read, and more of it as long as
//! the process has files for them.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many connections read.
#[derive(Debug, Clone)]
pub struct ReaderLimits {
    /// Of each tenant at most.
    pub(super) per_tenant: u32,
    /// Beyond the first of each tenant, of all tenants together.
    spare: Arc<Semaphore>,
}

impl ReaderLimits {
    /// Connections that a tenant reads with at most, where nothing else is said.
    pub const PER_TENANT: u32 = 4;

    /// At most `per_tenant` connections of each tenant, and `spare` beyond the first of each.
    #[must_use]
    pub fn new(per_tenant: u32, spare: usize) -> Self {
        Self {
            per_tenant: per_tenant.max(1),
            spare: Arc::new(Semaphore::new(spare.min(Semaphore::MAX_PERMITS))),
        }
    }
}

impl Default for ReaderLimits {
    fn default() -> Self {
        Self::new(Self::PER_TENANT, usize::MAX)
    }
}

/// The connections of one tenant.
#[derive(Debug)]
pub(super) struct Pool<R> {
    open: Mutex<Connections<R>>,
    /// A connection was given back, or closed.
    changed: Condvar,
    spare: Arc<Semaphore>,
}

#[derive(Debug)]
struct Connections<R> {
    idle: Vec<Pooled<R>>,
    /// In use, idle, or being opened.
    count: usize,
}

/// A connection of a pool.
#[derive(Debug)]
pub(super) struct Pooled<R> {
    // Closed before its place is another's.
    connection: R,
    _place: Place<R>,
}

/// The right to have a connection open.
#[derive(Debug)]
pub(super) struct Place<R> {
    pool: Weak<Pool<R>>,
    _spare: Option<OwnedSemaphorePermit>,
}

/// What a reader gets.
pub(super) enum Taken<R> {
    Idle(Pooled<R>),
    /// To be opened.
    New(Place<R>),
}

impl<R> Pool<R> {
    pub(super) fn new(limits: &ReaderLimits) -> Arc<Self> {
        Arc::new(Self {
            open: Mutex::new(Connections {
                idle: Vec::new(),
                count: 0,
            }),
            changed: Condvar::new(),
            spare: Arc::clone(&limits.spare),
        })
    }

    /// The connection that was used last, for it has the warmest cache; the place of another one;
    /// or, where there are no files for more, the one that is given back next. Blocks.
    pub(super) fn take(self: &Arc<Self>) -> Taken<R> {
        let mut open = self.open();
        loop {
            if let Some(pooled) = open.idle.pop() {
                return Taken::Idle(pooled);
            }
            let spare = match open.count {
                0 => None,
                _ => match Arc::clone(&self.spare).try_acquire_owned() {
                    Ok(spare) => Some(spare),
                    Err(_none_left) => {
                        // Other tenants tell nobody that they have closed one.
                        let waited = self.changed.wait_timeout(open, NEXT_LOOK);
                        open = waited.unwrap_or_else(PoisonError::into_inner).0;
                        continue;
                    }
                },
            };
            open.count += 1;
            return Taken::New(Place {
                pool: Arc::downgrade(self),
                _spare: spare,
            });
        }
    }

    /// Takes over a connection that is open already.
    pub(super) fn adopt(self: &Arc<Self>, connection: R) {
        self.open().count += 1;
        let place = Place {
            pool: Arc::downgrade(self),
            _spare: None,
        };
        self.give_back(place.filled(connection));
    }

    pub(super) fn give_back(&self, pooled: Pooled<R>) {
        self.open().idle.push(pooled);
        self.changed.notify_one();
    }

    /// Closes the connections that are not in use. Blocks.
    pub(super) fn shed(&self) {
        let idle = std::mem::take(&mut self.open().idle);
        drop(idle);
    }

    /// How many connections are open and not in use.
    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        self.open().idle.len()
    }

    fn open(&self) -> MutexGuard<'_, Connections<R>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R> Drop for Place<R> {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.open().count -= 1;
            pool.changed.notify_one();
        }
    }
}

impl<R> Place<R> {
    pub(super) fn filled(self, connection: R) -> Pooled<R> {
        Pooled {
            connection,
            _place: self,
        }
    }
}

impl<R> std::ops::Deref for Pooled<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.connection
    }
}

impl<R> std::ops::DerefMut for Pooled<R> {
    fn deref_mut(&mut self) -> &mut R {
        &mut self.connection
    }
}

const NEXT_LOOK: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn new(taken: Taken<u8>) -> Place<u8> {
        match taken {
            Taken::New(place) => place,
            Taken::Idle(pooled) => panic!("{} is idle", *pooled),
        }
    }

    #[test]
    fn each_tenant_reads_and_all_share_what_there_is_beyond_the_first() {
        let limits = ReaderLimits::new(4, 1);
        let [one, two] = [(); 2].map(|()| Pool::new(&limits));
        let first = new(one.take()).filled(1);
        let second = new(one.take()).filled(2);
        let other = new(two.take()).filled(3);
        // There is none left for either: who asks gets the next that is given back.
        let (told, next) = mpsc::channel();
        let waiting = Arc::clone(&one);
        let thread = std::thread::spawn(move || {
            told.send(()).unwrap();
            match waiting.take() {
                Taken::Idle(pooled) => *pooled,
                Taken::New(_) => 0,
            }
        });
        next.recv().unwrap();
        one.give_back(first);
        assert_eq!(thread.join().unwrap(), 1);
        // One that is closed leaves its place to any tenant.
        drop(second);
        let more = new(two.take());
        drop((other, more));
        assert_eq!(limits.spare.available_permits(), 1);
        assert_eq!(one.open().count + two.open().count, 0);
    }

    #[test]
    fn one_that_could_not_be_opened_leaves_its_place() {
        let pool = Pool::<u8>::new(&ReaderLimits::new(4, 0));
        drop(new(pool.take()));
        pool.adopt(7);
        assert_eq!(pool.idle(), 1);
        let Taken::Idle(pooled) = pool.take() else {
            panic!("it is idle");
        };
        pool.give_back(pooled);
        pool.shed();
        assert_eq!(pool.open().count, 0);
    }
}
