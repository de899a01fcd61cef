//! Parts of lists.

use super::MAX_PAGE_BYTES;

/// Part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed<T> {
    /// The items, in the list's order.
    pub items: Vec<T>,
    /// Whether there are more after the last of them.
    pub more: bool,
}

impl<T> Listed<T> {
    /// Takes items while there is room: `limit`, and [`MAX_PAGE_BYTES`] by what `weigh` says. The
    /// first always fits.
    pub(crate) fn take<E>(
        items: impl Iterator<Item = Result<T, E>>,
        limit: usize,
        weigh: impl Fn(&T) -> usize,
    ) -> Result<Self, E> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        for item in items {
            let item = item?;
            bytes += weigh(&item);
            if taken.len() == limit || (bytes > MAX_PAGE_BYTES && !taken.is_empty()) {
                return Ok(Self {
                    items: taken,
                    more: true,
                });
            }
            taken.push(item);
        }
        Ok(Self {
            items: taken,
            more: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_has_room_and_says_whether_more_is_left() {
        let take = |weights: &[usize], limit| {
            let items = weights.iter().map(|weight| Ok::<_, ()>(*weight));
            let Listed { items, more } = Listed::take(items, limit, |weight| *weight).unwrap();
            (items.len(), more)
        };
        let half = MAX_PAGE_BYTES / 2;
        assert_eq!(take(&[], 1), (0, false));
        assert_eq!(take(&[1, 1], 2), (2, false));
        assert_eq!(take(&[1, 1, 1], 2), (2, true));
        assert_eq!(take(&[half, half], 9), (2, false));
        assert_eq!(take(&[half, half, 1], 9), (2, true));
        assert_eq!(take(&[3 * half, 1], 9), (1, true));
        assert_eq!(take(&[3 * half], 9), (1, false));
    }
}
