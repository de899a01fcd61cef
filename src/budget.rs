//! What requests under way may hold in all, and each caller of it: places, and bytes that are
//! buffered for them.
//!
//! The credential decides who is charged, never the path: a key's requests are charged to its
//! tenant, whatever they ask for. A part is reserved for the operator, who must be able to act
//! while tenants flood the server.
//!
//! A tenant may hold as much as is free: alone it gets half of all, and however many tenants flood
//! the server at once, the last part stays free for the others (*n* floods leave 1/(*n* + 1) of
//! it). Nobody is kept back while there is room. It is the rule by which switches share their
//! buffers (Choudhury and Hahne, "Dynamic queue length thresholds", 1998).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nimbus_manifests::TenantId;
use tokio::time::Instant;

use crate::metrics::{self, Counted};
use crate::process;

/// Something that there is so much of, taken and free.
#[derive(Debug)]
pub(crate) struct Shares {
    all: usize,
    /// How much of it only the operator may take.
    reserved: usize,
    taken: Mutex<Taken>,
}

/// Who is charged for a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Payer {
    /// The holder of the admin token.
    Operator,
    /// A tenant, whose key the request carries.
    Tenant(TenantId),
    /// Everybody whose credential is missing or not known: all of them together.
    Stranger,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_payer: HashMap<Payer, usize>,
}

/// A part of it, until dropped.
#[derive(Debug)]
struct Share {
    shares: Arc<Shares>,
    payer: Payer,
    amount: usize,
}

/// Why there was none left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// All of it is taken.
    #[error("all of it is taken")]
    Full,
    /// The caller has its share.
    #[error("the caller has its share")]
    Share,
}

impl Shares {
    /// So much, of which `reserved` is for the operator alone.
    pub(crate) fn new(all: usize, reserved: usize) -> Arc<Self> {
        Arc::new(Self {
            all,
            reserved,
            taken: Mutex::default(),
        })
    }

    /// A share of `payer` that is still empty.
    fn share(self: &Arc<Self>, payer: &Payer) -> Share {
        Share {
            shares: Arc::clone(self),
            payer: payer.clone(),
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
        if more == 0 {
            return Ok(());
        }
        let Shares { all, reserved, .. } = *self.shares;
        let mut taken = self.shares.taken();
        let of = |payer| taken.by_payer.get(payer).copied().unwrap_or(0);
        // What is left of the reserve is not free.
        let left = reserved.saturating_sub(of(&Payer::Operator));
        let free = all.saturating_sub(taken.all + left);
        let held = of(&self.payer);
        let (held, more_of_all) = match self.payer {
            // The reserve first, then a share like any other.
            Payer::Operator => (held.saturating_sub(reserved), more.saturating_sub(left)),
            Payer::Tenant(_) | Payer::Stranger => (held, more),
        };
        if more_of_all > free {
            return Err(Refused::Full);
        }
        if held > 0 && held + more_of_all > free {
            return Err(Refused::Share);
        }
        *taken.by_payer.entry(self.payer.clone()).or_default() += more;
        taken.all += more;
        self.amount += more;
        Ok(())
    }

    fn shrink(&mut self, less: usize) {
        let mut taken = self.shares.taken();
        taken.all -= less;
        self.amount -= less;
        if let Some(held) = taken.by_payer.get_mut(&self.payer) {
            *held -= less;
            if *held == 0 {
                taken.by_payer.remove(&self.payer);
            }
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink(self.amount);
    }
}

/// What one request holds until the last byte of its answer is sent or dropped: its place, and the
/// bytes buffered for it.
#[derive(Debug)]
pub(crate) struct Account {
    place: Share,
    state: Mutex<State>,
    _under_way: Counted,
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
    /// The account of a request that `payer` is charged for, with a place where it `needs_place`.
    pub(crate) fn open(
        places: &Arc<Shares>,
        bytes: &Arc<Shares>,
        payer: &Payer,
        needs_place: bool,
        due: Instant,
    ) -> Result<Arc<Self>, Refused> {
        let mut place = places.share(payer);
        place.grow(usize::from(needs_place))?;
        let state = State {
            used: 0,
            share: bytes.share(payer),
            leaving: false,
            due,
        };
        Ok(Arc::new(Self {
            place,
            state: Mutex::new(state),
            _under_way: Counted::new(&metrics::UNDER_WAY),
        }))
    }

    /// Who is charged for the request.
    pub(crate) fn payer(&self) -> &Payer {
        &self.place.payer
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

/// Takes room for `bytes` more that the request at work holds until it is answered. The server's
/// own work is not held to it.
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
    Shares::new(most, RESERVED)
}

/// How many bytes may be buffered: an eighth of the machine's memory, within bounds.
fn most_buffered(memory: Option<u64>) -> usize {
    let eighth = memory.map_or(MOST_BUFFERED, |memory| {
        usize::try_from(memory / 8).unwrap_or(MOST_BUFFERED)
    });
    eighth.clamp(LEAST_BUFFERED, MOST_BUFFERED)
}

/// What the operator's requests may buffer, whoever floods the server.
const RESERVED: usize = 8 << 20;
/// A tenant that is alone, and so has half of the rest, can have an answer of 64 MiB.
const LEAST_BUFFERED: usize = 192 << 20;
const MOST_BUFFERED: usize = 512 << 20;
/// What a request may buffer without taking a share: most need no more.
const WITH_A_PLACE: usize = 16 << 10;
/// Shares are taken in steps: each costs a lock that all requests have in common.
const STEP: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(id: &str) -> Payer {
        Payer::Tenant(id.parse().unwrap())
    }

    /// Takes places for a payer until there is none.
    fn fill(places: &Arc<Shares>, payer: &Payer) -> Vec<Share> {
        std::iter::from_fn(|| {
            let mut share = places.share(payer);
            share.grow(1).ok().map(|()| share)
        })
        .collect()
    }

    fn refused(shares: &Arc<Shares>, payer: &Payer) -> Refused {
        shares.share(payer).grow(1).unwrap_err()
    }

    #[test]
    fn a_flood_takes_half_and_the_others_have_the_rest() {
        let places = Shares::new(96, 0);
        let first = fill(&places, &tenant("first"));
        assert_eq!(first.len(), 48);
        assert_eq!(refused(&places, &tenant("first")), Refused::Share);
        let second = fill(&places, &tenant("second"));
        assert_eq!(second.len(), 24);
        let mut third = places.share(&tenant("third"));
        third.grow(1).unwrap();
        drop(first);
        assert!(!fill(&places, &tenant("second")).is_empty());
        drop((second, third));
        assert_eq!(fill(&places, &tenant("second")).len(), 48);
    }

    #[test]
    fn strangers_have_one_share_and_all_is_given_back() {
        let places = Shares::new(8, 0);
        let strangers = fill(&places, &Payer::Stranger);
        assert_eq!(strangers.len(), 4);
        assert_eq!(refused(&places, &Payer::Stranger), Refused::Share);
        let tenants = ["a", "b", "c", "d"].map(|id| fill(&places, &tenant(id)));
        assert_eq!(refused(&places, &tenant("e")), Refused::Full);
        drop((strangers, tenants));
        let taken = places.taken();
        assert_eq!((taken.all, taken.by_payer.len()), (0, 0));
    }

    #[test]
    fn the_reserve_is_the_operators_alone() {
        let places = Shares::new(104, 8);
        let floods: Vec<_> = (0..20)
            .map(|n| fill(&places, &tenant(&format!("t{n}"))))
            .collect();
        assert_eq!(floods.iter().map(Vec::len).sum::<usize>(), 96);
        assert_eq!(refused(&places, &Payer::Stranger), Refused::Full);
        let reserve = fill(&places, &Payer::Operator);
        assert_eq!(reserve.len(), 8);
        // What the operator holds is not taken from tenants.
        drop(floods);
        assert_eq!(fill(&places, &tenant("a")).len(), 48);
        drop(reserve);
        // Beyond the reserve the operator has a share like any other.
        assert_eq!(fill(&places, &Payer::Operator).len(), 8 + 48);
        assert_eq!(fill(&places, &tenant("a")).len(), 48);
    }

    #[test]
    fn an_account_covers_what_is_buffered_and_gives_back_what_was_sent() {
        let (places, bytes) = (Shares::new(8, 0), Shares::new(64 * STEP, 0));
        let open = |id| Account::open(&places, &bytes, &tenant(id), true, Instant::now()).unwrap();
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
