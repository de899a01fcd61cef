//! Whole numbers from clients. In JSON `20` and `20.0` are the same number, and some clients write
//! the second.

use std::fmt;

use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess};
use serde::{Deserialize, Deserializer, de::Visitor};

/// What a client wrote where a number belongs. What is none is passed over while it is read and
/// never built: a body of 16 MiB that holds a list instead would become a gigabyte of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WrittenNumber {
    /// A number without a fraction.
    Whole(i64),
    /// `null`.
    Null,
    /// Anything else.
    Other,
}

impl WrittenNumber {
    /// The number, whatever its sign, if it is one.
    pub(crate) fn to_integer(self) -> Option<i64> {
        match self {
            Self::Whole(number) => Some(number),
            Self::Null | Self::Other => None,
        }
    }
}

impl<'de> Deserialize<'de> for WrittenNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Number)
    }
}

struct Number;

impl<'de> Visitor<'de> for Number {
    type Value = WrittenNumber;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number")
    }

    fn visit_unit<E>(self) -> Result<WrittenNumber, E> {
        Ok(WrittenNumber::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<WrittenNumber, E> {
        Ok(WrittenNumber::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<WrittenNumber, E> {
        Ok(WrittenNumber::Other)
    }

    fn visit_i64<E>(self, number: i64) -> Result<WrittenNumber, E> {
        Ok(WrittenNumber::Whole(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<WrittenNumber, E> {
        let number = i64::try_from(number);
        Ok(number.map_or(WrittenNumber::Other, WrittenNumber::Whole))
    }

    fn visit_f64<E>(self, number: f64) -> Result<WrittenNumber, E> {
        let is_whole = number.fract() == 0.0 && number.abs() < MAX;
        Ok(match is_whole {
            true => WrittenNumber::Whole(number as i64),
            false => WrittenNumber::Other,
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<WrittenNumber, A::Error> {
        while let Some(IgnoredAny) = items.next_element()? {}
        Ok(WrittenNumber::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<WrittenNumber, A::Error> {
        while let Some((IgnoredAny, IgnoredAny)) = members.next_entry()? {}
        Ok(WrittenNumber::Other)
    }
}

/// Reads a number that has no fraction and no sign, if there is one.
pub(crate) fn optional_integer<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<usize>, D::Error> {
    match WrittenNumber::deserialize(deserializer)? {
        WrittenNumber::Null => Ok(None),
        written => written
            .to_integer()
            .and_then(|number| usize::try_from(number).ok())
            .map(Some)
            .ok_or_else(|| D::Error::custom("a whole number of 0 or more is expected")),
    }
}

/// Beyond it a double does not tell one whole number from the next.
const MAX: f64 = 9_007_199_254_740_992.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Limit {
        #[serde(default, deserialize_with = "optional_integer")]
        limit: Option<usize>,
    }

    fn read(json: &str) -> Option<Option<usize>> {
        let limit: Result<Limit, _> = serde_json::from_str(json);
        limit.ok().map(|limit| limit.limit)
    }

    #[test]
    fn a_number_is_whole_however_it_is_written() {
        for (json, number) in [
            (r#"{"limit":20}"#, Some(20)),
            (r#"{"limit":20.0}"#, Some(20)),
            (r#"{"limit":2e1}"#, Some(20)),
            (r#"{"limit":0}"#, Some(0)),
            (r#"{"limit":-0.0}"#, Some(0)),
            (r#"{"limit":null}"#, None),
            ("{}", None),
        ] {
            assert_eq!(read(json), Some(number), "{json}");
        }
        for json in [
            r#"{"limit":20.5}"#,
            r#"{"limit":-1}"#,
            r#"{"limit":-1.0}"#,
            r#"{"limit":1e300}"#,
            r#"{"limit":"20"}"#,
            r#"{"limit":[]}"#,
        ] {
            assert_eq!(read(json), None, "{json}");
        }
    }

    #[test]
    fn a_number_with_a_sign_is_whole_too() {
        let read = |json: &str| {
            let written: WrittenNumber = serde_json::from_str(json).unwrap();
            written.to_integer()
        };
        for (json, number) in [("20", 20), ("-1", -1), ("2e1", 20), ("-3.0", -3)] {
            assert_eq!(read(json), Some(number), "{json}");
        }
        for json in [
            "0.5",
            "1e300",
            "18446744073709551615",
            "\"1\"",
            "null",
            "[]",
            "[1,[{}],{\"a\":1}]",
            "{\"a\":{\"b\":[1]}}",
            "true",
        ] {
            assert_eq!(read(json), None, "{json}");
        }
    }
}
