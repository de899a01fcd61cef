//! Work that many ask for at once and one does for all of them: a flush, a commit.
//!
//! Whoever comes while the work is under way waits for the next one, which begins after it came.
//! So what was written before [`Together::ask`] is in what was done when that returns.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Who waits for work of one kind.
#[derive(Debug)]
pub(crate) struct Together<T, R> {
    waiting: Mutex<Vec<Arc<Asked<T, R>>>>,
    /// Whoever holds it does the work of all who wait.
    turn: Mutex<()>,
}

#[derive(Debug)]
struct Asked<T, R> {
    what: T,
    answer: OnceLock<R>,
}

impl<T, R: Clone> Together<T, R> {
    pub(crate) const fn new() -> Self {
        Self {
            waiting: Mutex::new(Vec::new()),
            turn: Mutex::new(()),
        }
    }

    /// Has `work` done for `what`, with all that others ask for meanwhile, by whoever comes first.
    /// Blocks.
    pub(crate) fn ask(&self, what: T, work: impl FnOnce(&[&T]) -> R) -> R {
        let asked = Arc::new(Asked {
            what,
            answer: OnceLock::new(),
        });
        lock(&self.waiting).push(Arc::clone(&asked));
        let _turn = lock(&self.turn);
        if let Some(answer) = asked.answer.get() {
            return answer.clone();
        }
        let mut all = std::mem::take(&mut *lock(&self.waiting));
        // One who panicked at it took it from the list, and left no answer.
        if !all.iter().any(|other| Arc::ptr_eq(other, &asked)) {
            all.push(asked);
        }
        let whats: Vec<&T> = all.iter().map(|asked| &asked.what).collect();
        let answer = work(&whats);
        for asked in &all {
            let _first = asked.answer.set(answer.clone());
        }
        answer
    }
}

impl<T, R: Clone> Default for Together<T, R> {
    fn default() -> Self {
        Self::new()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        sync::mpsc,
        thread,
    };

    use super::*;

    #[test]
    fn who_comes_during_the_work_shares_the_next() {
        let together = Together::new();
        let rounds = Mutex::new(Vec::new());
        let work = |whats: &[&u32]| {
            let mut whats: Vec<u32> = whats.iter().map(|&&what| what).collect();
            whats.sort_unstable();
            lock(&rounds).push(whats);
            lock(&rounds).len()
        };
        let (begun, begins) = mpsc::channel();
        let (end, ends) = mpsc::channel();
        let ends = Mutex::new(ends);
        thread::scope(|scope| {
            let first = scope.spawn(|| {
                together.ask(0, |whats| {
                    begun.send(()).unwrap();
                    lock(&ends).recv().unwrap();
                    work(whats)
                })
            });
            begins.recv().unwrap();
            let others: Vec<_> = (1..=8)
                .map(|what| {
                    scope.spawn({
                        let (together, work) = (&together, &work);
                        move || together.ask(what, work)
                    })
                })
                .collect();
            while lock(&together.waiting).len() < 8 {
                thread::yield_now();
            }
            end.send(()).unwrap();
            assert_eq!(first.join().unwrap(), 1);
            for other in others {
                assert_eq!(other.join().unwrap(), 2);
            }
        });
        assert_eq!(*lock(&rounds), [vec![0], (1..=8).collect()]);
    }

    #[test]
    fn a_panic_leaves_nobody_without_an_answer() {
        let together = &Together::<u32, usize>::new();
        let (begun, begins) = mpsc::channel();
        let (end, ends) = mpsc::channel::<()>();
        let ends = Mutex::new(ends);
        thread::scope(|scope| {
            let first = scope.spawn(|| {
                together.ask(0, |_| {
                    begun.send(()).unwrap();
                    let _ended = lock(&ends).recv();
                    1
                })
            });
            begins.recv().unwrap();
            let ask = || {
                together.ask(1, |whats| {
                    if whats.len() == 2 {
                        panic!("told to")
                    } else {
                        whats.len()
                    }
                })
            };
            let others: Vec<_> = (0..2)
                .map(|_| scope.spawn(move || catch_unwind(AssertUnwindSafe(ask))))
                .collect();
            while lock(&together.waiting).len() < 2 {
                thread::yield_now();
            }
            drop(end);
            assert_eq!(first.join().unwrap(), 1);
            let answers: Vec<_> = others
                .into_iter()
                .map(|other| other.join().unwrap().ok())
                .collect();
            assert!(
                answers.contains(&None) && answers.contains(&Some(1)),
                "{answers:?}"
            );
        });
    }
}
