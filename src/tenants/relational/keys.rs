//! Index keys: the values of an index's fields as bytes whose order is that of `docs/queries.md`.
//!
//! ```text
//! key    = value for each field
//! value  = rank (1 byte), then
//!          boolean: 0 or 1
//!          number:  nearest double, sortable (8 bytes) || integer - double, + 32768 (2 bytes)
//!          string:  UTF-8 with 00 as 00 FF, then 00 01
//!                   one beyond the limit: its first bytes the same way, 00 02, SHA-256 of all of it
//! ```
//!
//! No value is the beginning of another. A key is bounded, for engines bound theirs; where a text
//! was cut its key still tells it from every other, but not its order among those with the same
//! beginning. Keys are stored: this encoding belongs to the layout.

use sha2::{Digest as _, Sha256};

use crate::documents::query::{Key, Number, Position, TypeRank, Value, evaluate::Found};

/// What a key is made with: how much of a text is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut(usize);

impl Cut {
    /// All of a text.
    pub(super) const NOTHING: Self = Self(usize::MAX);

    /// For an index of so many fields.
    pub(super) fn for_fields(count: usize) -> Self {
        Self((MAX_KEY_BYTES / count.max(1) - OVERHEAD) / 2)
    }

    /// Whether the order of a text is not that of its key.
    pub(super) fn cuts(self, found: &Found) -> bool {
        matches!(&found.value, Some(Value::String(text)) if text.len() > self.0)
    }

    /// The same of the text of a position.
    pub(super) fn cuts_position(self, position: &Position) -> bool {
        matches!(&position.key, Key::Text(text) if text.len() > self.0)
    }

    /// Appends a field's value.
    pub(super) fn push(self, key: &mut Vec<u8>, found: &Found) {
        key.push(found.rank as u8);
        match &found.value {
            Some(Value::Bool(value)) => key.push(u8::from(*value)),
            Some(Value::Number(number)) => push_number(key, number),
            Some(Value::String(text)) => self.push_text(key, text.as_bytes()),
            Some(Value::Null) | None => {}
        }
    }

    /// Appends the place of a position.
    pub(super) fn push_position(self, key: &mut Vec<u8>, position: &Position) {
        key.push(position.rank as u8);
        match (&position.key, position.rank) {
            (Key::Integer(value), TypeRank::Boolean) => key.push(u8::from(*value != 0)),
            (Key::Integer(integer), TypeRank::Number) => push_integer(key, *integer),
            (Key::Double(double), TypeRank::Number) => push_double(key, *double),
            (Key::Text(text), TypeRank::String) => self.push_text(key, text.as_bytes()),
            _ => {}
        }
    }

    /// The beginning that the keys of all texts from this one on have, or come after.
    pub(super) fn push_least(self, key: &mut Vec<u8>, value: &Value) {
        let found = Found::of(value.clone());
        if let (true, Value::String(text)) = (self.cuts(&found), value) {
            key.push(TypeRank::String as u8);
            push_escaped(key, &text.as_bytes()[..self.0]);
        } else {
            self.push(key, &found);
        }
    }

    /// The end of the keys of all texts up to this one, or a place after it.
    pub(super) fn push_most(self, key: &mut Vec<u8>, value: &Value) {
        self.push_least(key, value);
        key.push(u8::MAX);
    }

    fn push_text(self, key: &mut Vec<u8>, text: &[u8]) {
        match text.get(..self.0) {
            Some(beginning) if text.len() > self.0 => {
                push_escaped(key, beginning);
                key.extend([0, 2]);
                key.extend(Sha256::digest(text));
            }
            _ => {
                push_escaped(key, text);
                key.extend([0, 1]);
            }
        }
    }
}

/// The place of a value in an order, whole: for one field, and not stored.
pub(super) fn order_key(found: &Found) -> Vec<u8> {
    let mut key = Vec::new();
    Cut::NOTHING.push(&mut key, found);
    key
}

/// The same of a position.
pub(super) fn order_key_of(position: &Position) -> Vec<u8> {
    let mut key = Vec::new();
    Cut::NOTHING.push_position(&mut key, position);
    key
}

/// What a position says of a value.
pub(super) fn position_key(found: &Found) -> Key {
    match &found.value {
        Some(Value::Bool(value)) => Key::Integer(i64::from(*value)),
        Some(Value::Number(number)) => match number.as_json().parse::<i64>() {
            Ok(integer) => Key::Integer(integer),
            Err(_) => Key::Double(double(number)),
        },
        Some(Value::String(text)) => Key::Text(text.clone()),
        // A type that has but one value.
        Some(Value::Null) | None => Key::Integer(0),
    }
}

fn double(number: &Number) -> f64 {
    // Numbers were checked to be finite doubles when they came in.
    number.as_json().parse().unwrap_or(0.0)
}

fn push_number(key: &mut Vec<u8>, number: &Number) {
    match number.as_json().parse::<i64>() {
        Ok(integer) => push_integer(key, integer),
        Err(_) => push_double(key, double(number)),
    }
}

/// The nearest doubles of integers are in their order. Where two have the same, what is left tells
/// them apart, and from that double.
fn push_integer(key: &mut Vec<u8>, integer: i64) {
    let nearest = integer as f64;
    push_sortable(key, nearest);
    // Both are below 2^63 by amount, or it is 2^63 itself, and 512 apart at most.
    let left = i128::from(integer) - nearest as i128;
    push_left(key, left as i16);
}

fn push_double(key: &mut Vec<u8>, double: f64) {
    // Minus zero is zero.
    push_sortable(key, double + 0.0);
    push_left(key, 0);
}

fn push_sortable(key: &mut Vec<u8>, double: f64) {
    let bits = double.to_bits();
    let sortable = if bits >> 63 == 0 {
        bits | 1 << 63
    } else {
        !bits
    };
    key.extend(sortable.to_be_bytes());
}

fn push_left(key: &mut Vec<u8>, left: i16) {
    key.extend((left as u16 ^ 0x8000).to_be_bytes());
}

fn push_escaped(key: &mut Vec<u8>, text: &[u8]) {
    for &byte in text {
        key.push(byte);
        if byte == 0 {
            key.push(u8::MAX);
        }
    }
}

/// The most bytes of a key. Postgres refuses 2704 and more in a row of an index, InnoDB 3072.
const MAX_KEY_BYTES: usize = 2600;
/// What a text takes beside its own bytes: rank, end, hash.
const OVERHEAD: usize = 35;

#[cfg(test)]
mod tests {
    use super::*;

    fn found(json: &str) -> Found {
        Found::of(Value::from_json(json).unwrap())
    }

    fn key(json: &str) -> Vec<u8> {
        let mut key = Vec::new();
        Cut(8).push(&mut key, &found(json));
        key
    }

    #[test]
    fn keys_are_in_the_order_of_values() {
        let ascending = [
            "null",
            "false",
            "true",
            "-1e300",
            "-9223372036854775809",
            "-9223372036854775807",
            "-2.5",
            "-2",
            "-0.5",
            "0",
            "5e-324",
            "0.5",
            "1",
            "1.5",
            "9007199254740991",
            "9007199254740992",
            "9007199254740993",
            "9007199254740994",
            "9223372036854774784",
            "9223372036854775296",
            "9223372036854775807",
            "9223372036854775808",
            "1e300",
            r#""""#,
            r#""\u0000""#,
            r#""\u0000a""#,
            r#""\u0001""#,
            r#""a""#,
            r#""a\u0000""#,
            r#""aa""#,
            r#""b""#,
            r#""é""#,
            r#""\ud83d\ude00""#,
        ];
        for pair in ascending.windows(2) {
            assert!(key(pair[0]) < key(pair[1]), "{pair:?}");
            assert!(
                order_key(&found(pair[0])) < order_key(&found(pair[1])),
                "{pair:?}"
            );
        }
        for (a, b) in [
            ("1", "1.0"),
            ("-0", "0"),
            ("-0.0", "0"),
            ("100", "1e2"),
            ("9007199254740992", "9007199254740992.0"),
            ("-9223372036854775808", "-9223372036854775809"),
        ] {
            assert_eq!(key(a), key(b), "{a} {b}");
        }
    }

    #[test]
    fn a_position_has_the_key_of_its_value() {
        for json in [
            "null",
            "true",
            "false",
            "7",
            "9007199254740993",
            "0.1",
            "1e300",
            "-0.0",
            r#""""#,
            r#""a long text that is cut""#,
        ] {
            let found = found(json);
            let position = Position {
                rank: found.rank,
                key: position_key(&found),
                seq: 1,
            };
            let mut from_position = Vec::new();
            Cut(8).push_position(&mut from_position, &position);
            assert_eq!(from_position, key(json), "{json}");
            assert_eq!(order_key_of(&position), order_key(&found), "{json}");
        }
    }

    #[test]
    fn long_texts_are_told_apart_and_lie_between_their_bounds() {
        let [a, b] = [r#""12345678a""#, r#""12345678b""#];
        assert_ne!(key(a), key(b));
        assert!(key(r#""12345678""#) < key(a) && key(a) < key(r#""12345679""#));
        for text in [a, b] {
            let value = Value::from_json(text).unwrap();
            let (mut least, mut most) = (Vec::new(), Vec::new());
            Cut(8).push_least(&mut least, &value);
            Cut(8).push_most(&mut most, &value);
            for other in [a, b] {
                assert!(least < key(other) && key(other) < most);
            }
        }
    }

    #[test]
    fn no_key_is_longer_than_engines_take() {
        let nulls = format!("\"{}\"", "\\u0000".repeat(5000));
        for fields in 1..=8 {
            let mut key = Vec::new();
            for _ in 0..fields {
                Cut::for_fields(fields).push(&mut key, &found(&nulls));
            }
            assert!(key.len() <= MAX_KEY_BYTES, "{fields}: {}", key.len());
        }
    }
}
