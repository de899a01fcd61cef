//! Words for people that more than one place needs.

/// `1 file`, `3 files`.
pub(crate) fn pluralize(number: impl TryInto<u64>, thing: &str) -> String {
    let number = number.try_into().unwrap_or(u64::MAX);
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_no_things() {
        assert_eq!(pluralize(0_usize, "file"), "0 files");
        assert_eq!(pluralize(1_usize, "file"), "1 file");
        assert_eq!(pluralize(2_u64, "file"), "2 files");
    }
}
