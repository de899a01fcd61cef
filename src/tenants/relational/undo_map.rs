//! A map whose changes can be taken back.

use std::{collections::HashMap, hash::Hash};

/// What a transaction knows of rows: as the engine has them, or as it has changed them.
#[derive(Debug)]
pub(super) struct UndoMap<K, V> {
    now: HashMap<K, V>,
    /// What was there before each change.
    before: Vec<(K, Option<V>)>,
}

impl<K, V> Default for UndoMap<K, V> {
    fn default() -> Self {
        Self {
            now: HashMap::new(),
            before: Vec::new(),
        }
    }
}

impl<K: Eq + Hash + Clone, V> UndoMap<K, V> {
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.now.get(key)
    }

    /// The engine has it so, and this transaction has not changed it.
    pub(super) fn learn(&mut self, key: K, value: V) {
        let _known = self.now.entry(key).or_insert(value);
    }

    /// This transaction changes it.
    pub(super) fn set(&mut self, key: K, value: V) {
        let before = self.now.insert(key.clone(), value);
        self.before.push((key, before));
    }

    pub(super) fn mark(&self) -> usize {
        self.before.len()
    }

    /// Takes back the changes since a mark.
    pub(super) fn undo(&mut self, mark: usize) {
        for (key, before) in self.before.drain(mark..).rev() {
            let _undone = match before {
                Some(before) => self.now.insert(key, before),
                None => self.now.remove(&key),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_undone_is_as_it_was_and_what_was_learned_stays() {
        let mut known = UndoMap::default();
        known.learn("a", 1);
        known.set("b", 2);
        let mark = known.mark();
        known.set("a", 3);
        known.set("a", 4);
        known.set("c", 5);
        known.learn("d", 6);
        known.undo(mark);
        let now = ["a", "b", "c", "d"].map(|key| known.get(&key).copied());
        assert_eq!(now, [Some(1), Some(2), None, Some(6)]);
    }
}
