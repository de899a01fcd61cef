//! What JSON Schemas were compiled into, for the whole process.
//!
//! It is kept while there is room, and compiled again when it is needed after that. The large have
//! room of their own, so that a tenant that has many of them takes nothing from all the others,
//! whose schemas are small.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use jsonschema::Validator;

use super::metered::{Counting, Rates};
use crate::metrics;

/// A compiled JSON Schema.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) validator: Validator<Counting>,
    /// What a look at a document costs.
    pub(super) rates: Rates,
    /// How many bytes of the schema an error may hold.
    pub(super) error_bytes: u64,
    /// About how much memory it takes.
    pub(super) bytes: usize,
}

/// Where what a JSON Schema is compiled into is found while it is there. It goes with this.
#[derive(Debug)]
pub(super) struct Place(u64);

impl Default for Place {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Relaxed))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(kept().forget(self.0));
    }
}

impl Place {
    /// What is there, or what `compile` makes.
    pub(super) fn get_or_compile(
        &self,
        compile: impl FnOnce() -> Result<Compiled, String>,
    ) -> Result<Arc<Compiled>, String> {
        if let Some(found) = kept().get(self.0) {
            return Ok(found);
        }
        // Not under the lock: it can take a second.
        let compiled = Arc::new(compile()?);
        metrics::SCHEMAS_COMPILED.increment(1);
        drop(kept().keep(self.0, Arc::clone(&compiled)));
        Ok(compiled)
    }
}

fn kept() -> MutexGuard<'static, Kept> {
    static KEPT: LazyLock<Mutex<Kept>> = LazyLock::new(|| Mutex::new(Kept::new(SMALL, LARGE)));
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All that is kept.
#[derive(Debug)]
struct Kept {
    small: Shelf,
    large: Shelf,
}

/// What is kept in one room, by place and by when it was used last.
#[derive(Debug)]
struct Shelf {
    room: usize,
    bytes: usize,
    uses: u64,
    by_place: HashMap<u64, (u64, Arc<Compiled>)>,
    by_use: BTreeMap<u64, u64>,
}

impl Kept {
    fn new(small: usize, large: usize) -> Self {
        Self {
            small: Shelf::new(small),
            large: Shelf::new(large),
        }
    }

    fn get(&mut self, place: u64) -> Option<Arc<Compiled>> {
        self.small.get(place).or_else(|| self.large.get(place))
    }

    /// Gives back what had to go, to be dropped when nobody waits for it.
    fn keep(&mut self, place: u64, compiled: Arc<Compiled>) -> Vec<Arc<Compiled>> {
        let shelf = if compiled.bytes <= SMALL_BYTES {
            &mut self.small
        } else {
            &mut self.large
        };
        let gone = shelf.keep(place, compiled);
        self.publish();
        gone
    }

    fn forget(&mut self, place: u64) -> Option<Arc<Compiled>> {
        let gone = self
            .small
            .forget(place)
            .or_else(|| self.large.forget(place));
        self.publish();
        gone
    }

    fn publish(&self) {
        metrics::SCHEMA_BYTES.set((self.small.bytes + self.large.bytes) as f64);
    }
}

impl Shelf {
    fn new(room: usize) -> Self {
        Self {
            room,
            bytes: 0,
            uses: 0,
            by_place: HashMap::new(),
            by_use: BTreeMap::new(),
        }
    }

    fn get(&mut self, place: u64) -> Option<Arc<Compiled>> {
        let (used, compiled) = self.by_place.get_mut(&place)?;
        self.by_use.remove(used);
        self.uses += 1;
        *used = self.uses;
        self.by_use.insert(self.uses, place);
        Some(Arc::clone(compiled))
    }

    fn keep(&mut self, place: u64, compiled: Arc<Compiled>) -> Vec<Arc<Compiled>> {
        let mut gone: Vec<_> = self.forget(place).into_iter().collect();
        self.uses += 1;
        self.bytes += compiled.bytes;
        self.by_use.insert(self.uses, place);
        self.by_place.insert(place, (self.uses, compiled));
        while self.bytes > self.room {
            let Some((_, &oldest)) = self.by_use.first_key_value() else {
                break;
            };
            gone.extend(self.forget(oldest));
        }
        gone
    }

    fn forget(&mut self, place: u64) -> Option<Arc<Compiled>> {
        let (used, compiled) = self.by_place.remove(&place)?;
        self.by_use.remove(&used);
        self.bytes -= compiled.bytes;
        Some(compiled)
    }
}

/// What is larger is large.
const SMALL_BYTES: usize = 1 << 20;
/// How much is kept of the small.
const SMALL: usize = 64 << 20;
/// How much is kept of the large.
const LARGE: usize = 128 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: usize) -> Arc<Compiled> {
        let rates = Rates {
            value: 1,
            name: 1,
            text: 1,
            number: 1,
            error: None,
        };
        let validator = jsonschema::options_for::<Counting>()
            .build(&serde_json::json!(true))
            .unwrap();
        Arc::new(Compiled {
            validator,
            rates,
            error_bytes: 0,
            bytes,
        })
    }

    #[test]
    fn what_was_not_used_for_longest_goes_and_the_large_take_no_room_of_the_small() {
        let mut kept = Kept::new(3 * SMALL_BYTES, 4 * SMALL_BYTES);
        for place in 0..3 {
            assert!(kept.keep(place, of(SMALL_BYTES)).is_empty());
        }
        assert!(kept.get(0).is_some());
        assert_eq!(kept.keep(3, of(1)).len(), 1);
        assert!(kept.get(1).is_none() && kept.get(0).is_some() && kept.get(2).is_some());
        for place in 10..20 {
            let _gone = kept.keep(place, of(2 * SMALL_BYTES));
            assert!(kept.large.bytes <= 4 * SMALL_BYTES);
        }
        assert!(kept.get(19).is_some() && kept.get(17).is_none() && kept.get(0).is_some());
        // One that does not fit at all is not kept.
        assert_eq!(kept.keep(30, of(5 * SMALL_BYTES)).len(), 3);
        for place in 0..40 {
            let _gone = kept.forget(place);
        }
        let Kept { small, large } = kept;
        for shelf in [small, large] {
            assert_eq!(
                (shelf.bytes, shelf.by_use.len(), shelf.by_place.len()),
                (0, 0, 0)
            );
        }
    }
}
