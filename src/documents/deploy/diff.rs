//! What an activation changes, as reported to the caller.

use std::{collections::BTreeMap, fmt::Display};

use serde::Serialize;

/// How many names of each kind a [`Diff`] lists; it counts all.
pub const MAX_DIFF_NAMES: usize = 100;

/// What is different after an activation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// The files, by path: against those that are served before it.
    pub files: Changes,
    /// The schemas, by table: against those that stand before it.
    pub schemas: Changes,
    /// The crons, by name: against those that stand before it.
    pub crons: Changes,
}

/// What is different in things of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// Those that were not there.
    pub added: Names,
    /// Those that were there and are not the same any more.
    pub changed: Names,
    /// Those that are not there any more.
    pub removed: Names,
    /// How many stay as they are.
    pub unchanged: usize,
}

/// Names in ascending order: how many there are, and the first [`MAX_DIFF_NAMES`] of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Names {
    /// How many.
    pub count: usize,
    /// The first of them.
    pub names: Vec<String>,
}

impl Names {
    fn add(&mut self, name: &impl Display) {
        self.count += 1;
        if self.names.len() < MAX_DIFF_NAMES {
            self.names.push(name.to_string());
        }
    }
}

impl Changes {
    /// What is different in `after`.
    #[must_use]
    pub fn between<K: Ord + Display, V: PartialEq>(
        before: &BTreeMap<K, V>,
        after: &BTreeMap<K, V>,
    ) -> Self {
        let mut changes = Self::default();
        for (name, value) in after {
            match before.get(name) {
                None => changes.added.add(name),
                Some(old) if old == value => changes.unchanged += 1,
                Some(_) => changes.changed.add(name),
            }
        }
        for name in before.keys().filter(|name| !after.contains_key(name)) {
            changes.removed.add(name);
        }
        changes
    }
}

/// The changes that turn the stored schemas into those of a deploy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<'a, K, T> {
    /// To be taken away, first: then their place is free for what is put.
    pub delete: Vec<&'a K>,
    /// To be put, where none stands or another.
    pub put: Vec<&'a T>,
    /// What is different then.
    pub changes: Changes,
}

impl<'a, K: Ord + Display, T: PartialEq> Plan<'a, K, T> {
    /// What turns those that stand into those that are `wanted`. What the `last` activation has put
    /// belongs to deploys for as long as it stands as it was put, and is taken away when it is not
    /// wanted any more; what somebody put or changed by hand is left.
    #[must_use]
    pub fn new(
        standing: &'a BTreeMap<K, T>,
        last: &BTreeMap<K, T>,
        wanted: &'a BTreeMap<K, T>,
    ) -> Self {
        let concerned: BTreeMap<&K, &T> = standing
            .iter()
            .filter(|(name, value)| wanted.contains_key(name) || last.get(name) == Some(value))
            .collect();
        let delete = concerned.keys().copied();
        let put = wanted
            .iter()
            .filter(|(name, value)| standing.get(name) != Some(value));
        Self {
            delete: delete.filter(|name| !wanted.contains_key(name)).collect(),
            put: put.map(|(_, value)| value).collect(),
            changes: Changes::between(&concerned, &wanted.iter().collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Names {
        Names {
            count: names.len(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn changes_are_named_in_order_and_the_unchanged_counted() {
        let before = BTreeMap::from([("a", 1), ("b", 1), ("c", 1), ("z", 1)]);
        let after = BTreeMap::from([("b", 2), ("c", 1), ("d", 1), ("aa", 1)]);
        assert_eq!(
            Changes::between(&before, &after),
            Changes {
                added: names(&["aa", "d"]),
                changed: names(&["b"]),
                removed: names(&["a", "z"]),
                unchanged: 1,
            }
        );
    }

    #[test]
    fn all_are_counted_and_the_first_hundred_named() {
        let paths: Vec<String> = (0..250).map(|n| format!("{n:03}")).collect();
        let after = paths.iter().map(|path| (path.as_str(), ())).collect();
        let added = Changes::between(&BTreeMap::new(), &after).added;
        assert_eq!(added.count, 250);
        assert_eq!(added.names, paths[..MAX_DIFF_NAMES]);
    }

    #[test]
    fn a_plan_takes_away_its_own_and_leaves_what_was_put_or_changed_by_hand() {
        let standing = BTreeMap::from([
            ("by hand", 1),
            ("changed by hand", 2),
            ("kept", 1),
            ("ours", 1),
            ("taken over", 7),
            ("to be changed", 1),
        ]);
        let last = BTreeMap::from([
            ("changed by hand", 1),
            ("deleted by hand", 1),
            ("kept", 1),
            ("ours", 1),
            ("to be changed", 1),
        ]);
        let wanted = BTreeMap::from([
            ("kept", 1),
            ("new", 3),
            ("taken over", 4),
            ("to be changed", 5),
        ]);
        let plan = Plan::new(&standing, &last, &wanted);
        assert_eq!(plan.delete, [&"ours"]);
        assert_eq!(plan.put, [&3, &4, &5]);
        assert_eq!(
            plan.changes,
            Changes {
                added: names(&["new"]),
                changed: names(&["taken over", "to be changed"]),
                removed: names(&["ours"]),
                unchanged: 1,
            }
        );
    }

    #[test]
    fn a_plan_puts_what_was_deleted_or_changed_by_hand_and_is_wanted_again() {
        let standing = BTreeMap::from([("changed", 2)]);
        let wanted = BTreeMap::from([("changed", 1), ("deleted", 1)]);
        let plan = Plan::new(&standing, &wanted, &wanted);
        assert_eq!((plan.delete.len(), plan.put), (0, vec![&1, &1]));
    }
}
