//! What requests under way may hold in all, and each tenant of it: places, and bytes that are buffered for them.
//!
//! A tenant may hold as much as is free: alone it gets half of all, and however many tenants flood the server at once, the
//! last part stays free for the others (*n* floods leave 1/(*n* + 1) of it). Nobody is kept back while there is room. It is the
//! rule by which switches share their buffers (Choudhury and Hahne, "Dynamic queue length thresholds", 1998).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::metrics::{self, Held};
use crate::process;

/// Something that there is so much of, taken and free.
#[derive(Debug)]
pub(crate) struct Shares {
    all: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_tenant: HashMap<Box<str>, usize>,
}

/// A part of it, until dropped.
#[derive(Debug)]
struct Share {
    shares: Arc<Shares>,
    tenant: Option<Box<str>>,
    amount: usize,
}

/// Why there was none left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// All of it is taken.
    #[error("all of it is taken")]
    Full,
    /// The tenant has its share.
    #[error("the tenant has its share")]
    Share,
}

impl Shares {
    pub(crate) fn new(all: usize) -> Arc<Self> {
        let taken = Mutex::default();
        Arc::new(Self { all, taken })
    }

    /// A share of `tenant`, or of none, that is still empty.
    fn share(self: &Arc<Self>, tenant: Option<&str>) -> Share {
        Share {
            shares: Arc::clone(self),
            tenant: tenant.map(Box::from),
            amount: 0,
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Every change under the lock is complete in itself: a panic leaves no half of it.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    fn grow(&mut self, more: usize) -> Result<(), Refused> {
        let mut taken = self.shares.taken();
        let free = self.shares.all - taken.all;
        if more > free {
            return Err(Refused::Full);
        }
        if let Some(tenant) = &self.tenant {
            match taken.by_tenant.get_mut(tenant) {
                Some(held) if *held + more > free => return Err(Refused::Share),
                Some(held) => *held += more,
                None => {
                    let _none = taken.by_tenant.insert(Box::clone(tenant), more);
                }
            }
        }
        taken.all += more;
        self.amount += more;
        Ok(())
    }

    fn shrink(&mut self, less: usize) {
        let mut taken = self.shares.taken();
        taken.all -= less;
        self.amount -= less;
        if let Some(tenant) = &self.tenant
            && let Some(held) = taken.by_tenant.get_mut(tenant)
        {
            *held -= less;
            if *held == 0 {
                let _none = taken.by_tenant.remove(tenant);
            }
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink(self.amount);
    }
}

/// What one request holds until the last byte of its answer is sent or dropped: its place, and the bytes buffered for it.
#[derive(Debug)]
pub(crate) struct Account {
    _place: Share,
    state: Mutex<State>,
    _under_way: Held,
}

#[derive(Debug)]
struct State {
    used: usize,
    /// Covers what is used beyond what comes with a place.
    share: Share,
    /// The answer is complete, and each part of it that is sent is given back.
    leaving: bool,
    /// When the request is given up.
    due: Instant,
}

impl Account {
    /// The account of a request on `tenant`, or on none.
    pub(crate) fn open(
        places: &Arc<Shares>,
        bytes: &Arc<Shares>,
        tenant: Option<&str>,
        due: Instant,
    ) -> Result<Arc<Self>, Refused> {
        let mut place = places.share(tenant);
        place.grow(1)?;
        let state = State {
            used: 0,
            share: bytes.share(tenant),
            leaving: false,
            due,
        };
        Ok(Arc::new(Self {
            _place: place,
            state: Mutex::new(state),
            _under_way: Held::new(&metrics::UNDER_WAY),
        }))
    }

    /// Takes room for `bytes` more.
    pub(crate) fn take(&self, bytes: usize) -> Result<(), Refused> {
        let mut state = self.state();
        let used = state.used + bytes;
        state.set(used)
    }

    /// Gives back the room of `bytes`.
    pub(crate) fn give_back(&self, bytes: usize) {
        let mut state = self.state();
        let used = state.used.saturating_sub(bytes);
        // Less is never refused.
        let _less = state.set(used);
    }

    /// From now on it holds an answer of so many bytes, and nothing else.
    pub(crate) fn settle(&self, bytes: usize) -> Result<(), Refused> {
        let mut state = self.state();
        state.leaving = true;
        state.set(bytes)
    }

    /// So many bytes of the answer were sent.
    pub(crate) fn sent(&self, bytes: usize) {
        if self.state().leaving {
            self.give_back(bytes);
        }
    }

    /// When the request is given up.
    pub(crate) fn due(&self) -> Instant {
        self.state().due
    }

    /// Has the request given up then.
    pub(crate) fn set_due(&self, due: Instant) {
        self.state().due = due;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn set(&mut self, used: usize) -> Result<(), Refused> {
        let needed = used.saturating_sub(WITH_A_PLACE).next_multiple_of(STEP);
        let held = self.share.amount;
        if needed > held {
            if let Err(refused) = self.share.grow(needed - held) {
                metrics::BUFFER_REFUSED.increment(1);
                return Err(refused);
            }
            metrics::BUFFERED.increment((needed - held) as f64);
        } else if needed < held {
            self.share.shrink(held - needed);
            metrics::BUFFERED.decrement((held - needed) as f64);
        }
        self.used = used;
        Ok(())
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if self.share.amount > 0 {
            metrics::BUFFERED.decrement(self.share.amount as f64);
        }
    }
}

tokio::task_local! {
    static ACCOUNT: Option<Arc<Account>>;
}

/// Runs a request whose account is `account`.
pub(crate) async fn charged<F: Future>(account: Arc<Account>, request: F) -> F::Output {
    ACCOUNT.scope(Some(account), request).await
}

/// Runs a part of a request that is on another thread.
pub(crate) fn charged_to<T>(account: Option<Arc<Account>>, part: impl FnOnce() -> T) -> T {
    ACCOUNT.sync_scope(account, part)
}

/// The account of the request that this is a part of. Work of the server's own has none.
pub(crate) fn account() -> Option<Arc<Account>> {
    ACCOUNT.try_with(Option::clone).ok().flatten()
}

/// Takes room for `bytes` more that the request at work holds until it is answered. The server's own work is not held to it.
pub(crate) fn take(bytes: usize) -> Result<(), Refused> {
    let taken = ACCOUNT.try_with(|account| match account {
        Some(account) => account.take(bytes),
        None => Ok(()),
    });
    taken.unwrap_or(Ok(()))
}

/// The bytes that may be buffered on this machine.
pub(crate) fn bytes() -> Arc<Shares> {
    let most = most_buffered(process::memory_limit());
    metrics::BUFFER_LIMIT.set(most as f64);
    Shares::new(most)
}

/// How many bytes may be buffered: an eighth of the machine's memory, within bounds.
fn most_buffered(memory: Option<u64>) -> usize {
    let eighth = memory.map_or(MOST_BUFFERED, |memory| {
        usize::try_from(memory / 8).unwrap_or(MOST_BUFFERED)
    });
    eighth.clamp(LEAST_BUFFERED, MOST_BUFFERED)
}

/// A tenant that is alone, and so has half, can have an answer of 64 MiB.
const LEAST_BUFFERED: usize = 192 << 20;
const MOST_BUFFERED: usize = 512 << 20;
/// What a request may buffer without taking a share: most need no more.
const WITH_A_PLACE: usize = 16 << 10;
/// Shares are taken in steps: each costs a lock that all requests have in common.
const STEP: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes places for a tenant until there is none.
    fn fill(places: &Arc<Shares>, tenant: Option<&str>) -> Vec<Share> {
        std::iter::from_fn(|| {
            let mut share = places.share(tenant);
            share.grow(1).ok().map(|()| share)
        })
        .collect()
    }

    fn refused(shares: &Arc<Shares>, tenant: Option<&str>) -> Refused {
        shares.share(tenant).grow(1).unwrap_err()
    }

    #[test]
    fn a_flood_takes_half_and_the_others_have_the_rest() {
        let places = Shares::new(96);
        let first = fill(&places, Some("first"));
        assert_eq!(first.len(), 48);
        assert_eq!(refused(&places, Some("first")), Refused::Share);
        let second = fill(&places, Some("second"));
        assert_eq!(second.len(), 24);
        let mut third = places.share(Some("third"));
        third.grow(1).unwrap();
        drop(first);
        assert!(!fill(&places, Some("second")).is_empty());
        drop((second, third));
        assert_eq!(fill(&places, Some("second")).len(), 48);
    }

    #[test]
    fn what_names_no_tenant_may_take_all_and_all_is_given_back() {
        let places = Shares::new(8);
        let held = fill(&places, None);
        assert_eq!(held.len(), 8);
        assert_eq!(refused(&places, None), Refused::Full);
        assert_eq!(refused(&places, Some("a")), Refused::Full);
        drop(held);
        drop(fill(&places, Some("a")));
        let taken = places.taken();
        assert_eq!((taken.all, taken.by_tenant.len()), (0, 0));
    }

    #[test]
    fn an_account_covers_what_is_buffered_and_gives_back_what_was_sent() {
        let (places, bytes) = (Shares::new(8), Shares::new(64 * STEP));
        let open = |tenant| Account::open(&places, &bytes, Some(tenant), Instant::now()).unwrap();
        let held = || bytes.taken().all;
        let account = open("a");
        account.take(WITH_A_PLACE).unwrap();
        assert_eq!(held(), 0);
        account.take(1).unwrap();
        assert_eq!(held(), STEP);
        account.take(20 * STEP).unwrap();
        assert_eq!(held(), 21 * STEP);
        // Refused, it holds what it held.
        assert_eq!(account.take(30 * STEP), Err(Refused::Share));
        assert_eq!(held(), 21 * STEP);
        open("b").take(20 * STEP).unwrap();
        assert_eq!(held(), 21 * STEP);
        account.sent(STEP);
        assert_eq!(held(), 21 * STEP);
        account.settle(WITH_A_PLACE + 10 * STEP).unwrap();
        assert_eq!(held(), 10 * STEP);
        account.sent(3 * STEP);
        assert_eq!(held(), 7 * STEP);
        account.sent(usize::MAX);
        assert_eq!((held(), places.taken().all), (0, 1));
        drop(account);
        assert_eq!(places.taken().all, 0);
    }

    #[test]
    fn memory_decides_how_much_is_buffered() {
        for (memory, most) in [
            (None, MOST_BUFFERED),
            (Some(512 << 20), LEAST_BUFFERED),
            (Some(2 << 30), 256 << 20),
            (Some(u64::MAX), MOST_BUFFERED),
        ] {
            assert_eq!(most_buffered(memory), most, "{memory:?}");
        }
    }
}
