//! Documents that are asked for by their id: those that are asked for at the same time are looked
//! up together.
//!
//! Handing work to a blocking thread and waiting for it costs several times what looking a document
//! up does. So a request puts its wish on a list. Whoever finds the list empty sees to it, in a
//! task of its own that first steps behind everything that is ready to run: what the other requests
//! of that moment want is on the list by then. One snapshot answers all of it; it is taken after
//! the last of them came. A lone request makes no list: it goes to a blocking thread by itself.

use std::panic::AssertUnwindSafe;
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use futures_util::FutureExt as _;
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    task::yield_now,
};

use super::{Readers, is_sound};
use crate::documents::{Document, DocumentId, TableName};
use crate::metrics;
use crate::runtime::short_task;
use crate::tenants::StoreError;
use crate::tenants::backend::{Rows, Storage, Wanted};
use crate::tenants::writing::not_found;

/// What is asked for and not being looked up yet.
#[derive(Debug, Default)]
pub(in crate::tenants) struct Lookups {
    list: Mutex<Vec<(Wanted, Answer)>>,
    /// Requests that are not answered yet, on the list or not.
    present: AtomicUsize,
}

/// A request that is not answered yet.
struct Present<'a>(&'a AtomicUsize);

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(in crate::tenants) type Found = Result<Document, StoreError>;
type Answer = oneshot::Sender<Found>;

impl Lookups {
    /// Counts a request; whether there is no other.
    fn enter(&self) -> (Present<'_>, bool) {
        let before = self.present.fetch_add(1, Ordering::Relaxed);
        (Present(&self.present), before == 0)
    }

    /// Puts one on the list; whether it was empty before.
    fn add(&self, lookup: (Wanted, Answer)) -> bool {
        let mut list = self.list();
        list.push(lookup);
        list.len() == 1
    }

    /// Takes as many as are looked up together; whether it leaves any.
    fn take(&self) -> (Vec<(Wanted, Answer)>, bool) {
        let mut list = self.list();
        if list.len() <= MAX_TOGETHER {
            return (std::mem::take(&mut *list), false);
        }
        (list.drain(..MAX_TOGETHER).collect(), true)
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<(Wanted, Answer)>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Storage> Readers<S> {
    /// One document.
    pub(in crate::tenants) async fn get(self: &Arc<Self>, wanted: Wanted) -> Found {
        let (_present, alone) = self.lookups().enter();
        if alone {
            let Wanted { table, id } = wanted;
            return self.read(move |rows| document(rows, &table, id)).await;
        }
        let (answer, found) = oneshot::channel();
        if self.lookups().add((wanted, answer)) {
            let readers = Arc::clone(self);
            drop(short_task(async move {
                let seeing = AssertUnwindSafe(Arc::clone(&readers).see_to_lookups());
                if seeing.catch_unwind().await.is_err() {
                    // Those left in the list are notified, and the next one retries.
                    readers.lookups().list().clear();
                }
            }));
        }
        found.await.unwrap_or_else(|_gone| Err(self.closed()))
    }

    /// Empties the list.
    async fn see_to_lookups(self: Arc<Self>) {
        loop {
            let permit = self.permit().await;
            yield_now().await;
            let (lookups, more) = self.lookups().take();
            let answering = Arc::clone(&self).look_up(permit, lookups);
            if !more {
                return answering.await;
            }
            drop(short_task(answering));
        }
    }

    async fn look_up(
        self: Arc<Self>,
        permit: Result<OwnedSemaphorePermit, StoreError>,
        lookups: Vec<(Wanted, Answer)>,
    ) {
        // Who went away meanwhile wants nothing any more.
        let lookups = lookups.into_iter().filter(|(_, who)| !who.is_closed());
        let (wanted, answers): (Vec<Wanted>, Vec<Answer>) = lookups.unzip();
        let readers = Arc::clone(&self);
        let found = match permit {
            Ok(permit) => {
                let looking = move |_: &OwnedSemaphorePermit| {
                    let found = readers.look_up_all(&wanted, &answers);
                    (answers, found)
                };
                // Where the thread fails, the answers go with it, and each waiting caller gets that
                // error the tenant was closed.
                let Ok((answers, found)) = self.on_a_blocking_thread(permit, looking).await else {
                    return;
                };
                Ok(answers.into_iter().zip(found))
            }
            Err(error) => Err((answers, error)),
        };
        // Sent from here, one worker of the runtime wakes all of them without a word to another
        // thread.
        match found {
            Ok(found) => {
                for (answer, found) in found {
                    drop(answer.send(found));
                }
            }
            Err((answers, error)) => {
                for answer in answers {
                    drop(answer.send(Err(error.clone())));
                }
            }
        }
    }

    /// Looks each of them up, but for those that nobody waits for any more: the disk may be slow,
    /// and others wait behind them. Blocks.
    pub(in crate::tenants) fn look_up_all(
        &self,
        wanted: &[Wanted],
        answers: &[Answer],
    ) -> Vec<Found> {
        let mut found = Vec::with_capacity(wanted.len());
        while found.len() < wanted.len() {
            match self.take() {
                Ok(mut reader) => {
                    let done = found.len();
                    let is_gone = |place: usize| {
                        let gone = answers[done + place].is_closed();
                        if gone {
                            metrics::READ_INTERRUPTED.increment(1);
                        }
                        gone
                    };
                    if get_each(&mut reader.rows, &wanted[done..], is_gone, &mut found) {
                        self.give_back(reader);
                    }
                }
                Err(error) => found.resize_with(wanted.len(), || Err(error.clone())),
            }
        }
        found
    }
}

/// One document.
fn document(
    rows: &mut impl Rows,
    table: &TableName,
    id: DocumentId,
) -> Result<Document, StoreError> {
    let document = match rows.table(table)? {
        Some(number) => rows.document(number, id)?,
        None => None,
    };
    document.ok_or_else(|| not_found(table, id))
}

/// Documents in one state of the tenant; each result goes to the end of `found`. After a failure of
/// the engine the rest is not looked for, and one that nobody waits for any more, by its place in
/// `wanted`, is not read. Gives whether this connection may be used again.
fn get_each<R: Rows>(
    rows: &mut R,
    wanted: &[Wanted],
    is_gone: impl Fn(usize) -> bool,
    found: &mut Vec<Found>,
) -> bool {
    let before = found.len();
    let mut sound = true;
    // Who used the connection before may have gone away.
    let begun = rows.stop_once(None);
    let mut look = |rows: &mut R| -> Result<(), StoreError> {
        for (place, Wanted { table, id }) in wanted.iter().enumerate() {
            if is_gone(place) {
                found.push(Err(not_found(table, *id)));
                continue;
            }
            let result = document(rows, table, *id);
            let result = result.and_then(|found| rows.confirm().map(|()| found));
            sound = is_sound(&result);
            found.push(result);
            if !sound {
                break;
            }
        }
        Ok(())
    };
    let looked = begun.and_then(|()| match wanted {
        [_alone] => look(rows),
        _ => rows.snapshot(|rows| {
            rows.announce(wanted)?;
            look(rows)
        }),
    });
    if let Err(error) = looked {
        sound = false;
        // The snapshot could not be begun.
        if found.len() == before {
            found.push(Err(error));
        }
    }
    sound
}

/// How many are looked up together. Each may have to wait for the disk, and the last one's answer
/// waits for all.
const MAX_TOGETHER: usize = 64;
