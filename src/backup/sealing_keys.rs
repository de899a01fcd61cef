//! The data keys of the control file that seal entries, one after the other.
//!
//! One that another replaced seals nothing any more: each entry names the keys that sealed before
//! its own, so that somebody who learns of an old one makes no newer entry with it.

use std::collections::BTreeSet;

/// The data keys of the control file that seal, one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SealingKeys {
    /// The last one.
    pub(super) current: Option<String>,
    /// Those that another one replaced.
    pub(super) replaced: BTreeSet<String>,
}

impl SealingKeys {
    /// Goes on with an authentic entry; `false`, and nothing of it counts, where its key was
    /// replaced before.
    #[must_use]
    pub(super) fn go_on(&mut self, key: &str, before: &[String]) -> bool {
        if self.replaced.contains(key) {
            return false;
        }
        let last = self.current.replace(key.to_owned());
        self.replaced
            .extend(last.into_iter().filter(|last| last != key));
        let before = before.iter().filter(|before| *before != key);
        self.replaced.extend(before.cloned());
        true
    }

    /// Those that sealed before this one does.
    pub(super) fn before(&self, key: &str) -> Vec<String> {
        let all: BTreeSet<_> = self.replaced.iter().chain(&self.current).collect();
        let before = all.into_iter().filter(|before| *before != key);
        before.cloned().collect()
    }
}

/// What is wrong with what an old key seals.
pub(super) fn sealed_by_old_key(key: &str) -> String {
    format!(
        "it is sealed with the data key {key} of the control file, which another one had replaced before: somebody who has that key made it, or a \
         deployment that was restored from before; move it away"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_was_replaced_seals_nothing_any_more_whatever_it_says() {
        let before = |keys: &[&str]| keys.iter().map(|&key| key.to_owned()).collect::<Vec<_>>();
        let mut keys = SealingKeys::default();
        assert!(keys.go_on("1", &[]) && keys.go_on("1", &[]));
        assert!(keys.go_on("2", &before(&["1"])));
        // With an old key somebody says that the new one was replaced.
        assert!(!keys.go_on("1", &before(&["2"])));
        assert!(keys.go_on("2", &before(&["1"])));
        // The entries in between were pruned.
        assert!(keys.go_on("5", &before(&["1", "2", "3", "4"])));
        for old in ["1", "2", "3", "4"] {
            assert!(!keys.go_on(old, &[]), "{old}");
        }
        assert_eq!(keys.current.as_deref(), Some("5"));
        assert_eq!(keys.before("6"), before(&["1", "2", "3", "4", "5"]));
        assert_eq!(keys.before("5"), before(&["1", "2", "3", "4"]));
    }
}
