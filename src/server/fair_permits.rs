//! Permits for work that takes a core for a while, handed out fairly.
//!
//! There are few, and each caller has one at most, however many requests it sends: one permit is
//! always free for somebody else. Waiting callers are served round robin, one request of each.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::budget::Payer;

/// The permits, and the callers that wait for one.
#[derive(Debug)]
pub(super) struct FairPermits {
    places: usize,
    state: Mutex<Option<State>>,
}

#[derive(Debug, Default)]
struct State {
    at_work: HashSet<Payer>,
    /// Waiting callers, the next one first.
    waiting: VecDeque<(Payer, VecDeque<oneshot::Sender<Permit>>)>,
}

/// A permit, until dropped.
#[derive(Debug)]
pub(super) struct Permit {
    permits: &'static FairPermits,
    /// `None`: it was given back.
    payer: Option<Payer>,
}

impl FairPermits {
    pub(super) const fn new(places: usize) -> Self {
        Self {
            places,
            state: Mutex::new(None),
        }
    }

    /// Waits for a permit. A caller that stops waiting leaves the queue.
    pub(super) async fn wait(&'static self, payer: Payer) -> Option<Permit> {
        let (place, given) = oneshot::channel();
        self.with(|state| state.queue(payer, place));
        self.hand_out();
        given.await.ok()
    }

    /// Hands free permits to the callers that are next.
    fn hand_out(&'static self) {
        while let Some((payer, place)) = self.with(|state| state.next(self.places)) {
            let permit = Permit {
                permits: self,
                payer: Some(payer),
            };
            if let Err(mut refused) = place.send(permit)
                && let Some(payer) = refused.payer.take()
            {
                self.give_back(&payer);
            }
        }
    }

    fn give_back(&self, payer: &Payer) {
        self.with(|state| state.at_work.remove(payer));
    }

    fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state: MutexGuard<'_, Option<State>> =
            self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(state.get_or_insert_default())
    }
}

impl State {
    fn queue(&mut self, payer: Payer, place: oneshot::Sender<Permit>) {
        match self.waiting.iter_mut().find(|(other, _)| *other == payer) {
            Some((_, places)) => {
                places.retain(|place| !place.is_closed());
                places.push_back(place);
            }
            None => self.waiting.push_back((payer, VecDeque::from([place]))),
        }
    }

    /// The next caller, at work from now on.
    fn next(&mut self, places: usize) -> Option<(Payer, oneshot::Sender<Permit>)> {
        for (_, waiting) in &mut self.waiting {
            waiting.retain(|place| !place.is_closed());
        }
        self.waiting.retain(|(_, waiting)| !waiting.is_empty());
        if self.at_work.len() >= places {
            return None;
        }
        let at_work = &self.at_work;
        let mut idle = self.waiting.iter();
        let next = idle.position(|(payer, _)| !at_work.contains(payer))?;
        let (payer, mut waiting) = self.waiting.remove(next)?;
        let place = waiting.pop_front()?;
        // Behind all others that wait.
        if !waiting.is_empty() {
            self.waiting.push_back((payer.clone(), waiting));
        }
        self.at_work.insert(payer.clone());
        Some((payer, place))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(payer) = self.payer.take() {
            self.permits.give_back(&payer);
            self.permits.hand_out();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn payer(id: &str) -> Payer {
        Payer::Tenant(id.parse().unwrap())
    }

    fn poll(waiting: Pin<&mut impl Future<Output = Option<Permit>>>) -> Option<Permit> {
        match waiting.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(permit) => permit,
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_caller_has_one_place_and_others_are_taken_in_turn() {
        static PERMITS: FairPermits = FairPermits::new(2);
        let mut flood: Vec<_> = (0..100)
            .map(|_| Box::pin(PERMITS.wait(payer("a"))))
            .collect();
        let first = poll(flood[0].as_mut()).unwrap();
        assert!(
            flood[1..]
                .iter_mut()
                .all(|one| poll(one.as_mut()).is_none())
        );
        // The other place is for the others.
        let mut b = pin!(PERMITS.wait(payer("b")));
        let b = poll(b.as_mut()).unwrap();
        let mut c = pin!(PERMITS.wait(payer("c")));
        assert!(poll(c.as_mut()).is_none());
        drop(first);
        // The flood's next was waiting for longer; its third is behind the other.
        let second = poll(flood[1].as_mut()).unwrap();
        assert!(poll(c.as_mut()).is_none());
        drop(second);
        assert!(poll(flood[2].as_mut()).is_none());
        let c = poll(c.as_mut()).unwrap();
        drop(b);
        let third = poll(flood[2].as_mut()).unwrap();
        drop((c, third));
        assert!(poll(flood[3].as_mut()).is_some());
    }

    #[test]
    fn who_is_gone_is_passed_over() {
        static PERMITS: FairPermits = FairPermits::new(1);
        let mut first = Box::pin(PERMITS.wait(payer("a")));
        let first = poll(first.as_mut()).unwrap();
        let mut gone: Vec<_> = (0..10_000)
            .map(|_| Box::pin(PERMITS.wait(payer("b"))))
            .collect();
        for one in &mut gone[..100] {
            assert!(poll(one.as_mut()).is_none());
        }
        let mut last = Box::pin(PERMITS.wait(payer("c")));
        assert!(poll(last.as_mut()).is_none());
        drop(gone);
        drop(first);
        let permit = poll(last.as_mut()).unwrap();
        // A place that was given and not taken is free again.
        let mut given = Box::pin(PERMITS.wait(payer("d")));
        assert!(poll(given.as_mut()).is_none());
        drop(permit);
        drop(given);
        PERMITS.with(|state| assert!(state.at_work.is_empty() && state.waiting.is_empty()));
    }
}
