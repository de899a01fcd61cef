//! The order of types, by which values of different types are compared. `docs/queries.md` defines
//! it.

use super::Value;

/// The place of a type among types. The numbers are persisted: cursors and the indexes of stores
/// hold them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum TypeRank {
    /// The document has no such field.
    Missing = 0,
    /// `null`.
    Null = 1,
    /// `true` and `false`.
    Boolean = 2,
    /// Integers and doubles.
    Number = 3,
    /// Text.
    String = 4,
    /// Lists, which are not compared with each other.
    List = 5,
    /// Objects, which are not compared with each other.
    Object = 6,
}

impl TypeRank {
    /// All ranks, in their order.
    pub const ALL: [Self; 7] = [
        Self::Missing,
        Self::Null,
        Self::Boolean,
        Self::Number,
        Self::String,
        Self::List,
        Self::Object,
    ];

    /// The rank as it is persisted.
    #[must_use]
    pub const fn number(self) -> i64 {
        self as i64
    }

    /// Reads a persisted rank; `None` for a number that is no rank.
    #[must_use]
    pub fn from_number(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|rank| rank.number() == number)
    }

    /// The rank of a value in a filter.
    #[must_use]
    pub const fn of(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(_) => Self::Boolean,
            Value::Number(_) => Self::Number,
            Value::String(_) => Self::String,
        }
    }

    /// Whether values of this type are compared with each other. All values of another type count
    /// as equal.
    #[must_use]
    pub const fn is_compared(self) -> bool {
        matches!(self, Self::Boolean | Self::Number | Self::String)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_persisted_numbers_are_those_of_earlier_releases() {
        let numbers: Vec<i64> = TypeRank::ALL.into_iter().map(TypeRank::number).collect();
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6]);
        for rank in TypeRank::ALL {
            assert_eq!(TypeRank::from_number(rank.number()), Some(rank));
        }
        for number in [-1, 7, 256, i64::MAX] {
            assert_eq!(TypeRank::from_number(number), None);
        }
    }
}
