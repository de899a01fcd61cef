//! Whole numbers from clients. In JSON `20` and `20.0` are the same number, and some clients write the second.

use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

/// Reads a number that has no fraction and no sign, if there is one.
pub(crate) fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a whole number of 0 or more is expected")]
    enum Number {
        Integer(usize),
        Double(f64),
    }
    match Option::<Number>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Number::Integer(number)) => Ok(Some(number)),
        Some(Number::Double(number)) if (0.0..MAX).contains(&number) && number.fract() == 0.0 => {
            Ok(Some(number as usize))
        }
        Some(Number::Double(number)) => {
            let unexpected = de::Unexpected::Float(number);
            Err(de::Error::invalid_value(
                unexpected,
                &"a whole number of 0 or more",
            ))
        }
    }
}

/// The whole number that a client wrote, whatever its sign; `None` of anything else.
pub(crate) fn whole_number(written: &Value) -> Option<i64> {
    let double =
        |number: f64| (number.fract() == 0.0 && number.abs() < MAX).then_some(number as i64);
    written
        .as_i64()
        .or_else(|| written.as_f64().and_then(double))
}

/// Beyond it a double does not tell one whole number from the next.
const MAX: f64 = 9_007_199_254_740_992.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Limit {
        #[serde(default, deserialize_with = "whole")]
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
        let read = |json: &str| whole_number(&serde_json::from_str(json).unwrap());
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
        ] {
            assert_eq!(read(json), None, "{json}");
        }
    }
}
