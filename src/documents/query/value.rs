//! Values that fields are compared with.

use std::cmp::Ordering;

use serde::Serialize;

use super::super::json_object::reason;

/// A value in a filter. Lists and objects are not compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Value {
    /// `null`, which is a value: a field that is not there has none.
    Null,
    /// `true` or `false`; false comes first.
    Bool(bool),
    /// A number.
    Number(Number),
    /// Text, in the order of its Unicode code points.
    String(String),
}

impl Value {
    /// Reads a value from valid JSON.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let text = text.trim();
        match text {
            "null" => Ok(Self::Null),
            "true" => Ok(Self::Bool(true)),
            "false" => Ok(Self::Bool(false)),
            _ if text.starts_with('"') => serde_json::from_str(text)
                .map(Self::String)
                .map_err(|error| reason(&error)),
            _ if text.starts_with(['[', '{']) => {
                Err("lists and objects are not compared: name a field within".to_owned())
            }
            _ => Number::from_json(text).map(Self::Number),
        }
    }
}

/// A number as it was written. An integer that fits 64 bits with a sign counts exactly, any other
/// number as the nearest double; both kinds compare by what they are worth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Number(Box<str>);

impl Number {
    fn from_json(text: &str) -> Result<Self, String> {
        let finite = text.parse::<f64>().is_ok_and(f64::is_finite);
        finite
            .then(|| Self(text.into()))
            .ok_or_else(|| "the number is out of the range of a double".to_owned())
    }

    /// The number as JSON.
    #[must_use]
    pub fn as_json(&self) -> &str {
        &self.0
    }

    /// The greatest integer of 64 bits that is not greater; `None` where all are.
    #[must_use]
    pub fn floor(&self) -> Option<i64> {
        match self.worth() {
            Worth::Integer(integer) => Some(integer),
            Worth::Double(double) if double < LEAST => None,
            // Beyond the greatest it saturates.
            Worth::Double(double) => Some(double.floor() as i64),
        }
    }

    /// The least integer of 64 bits that is not less; `None` where all are.
    #[must_use]
    pub fn ceil(&self) -> Option<i64> {
        match self.worth() {
            Worth::Integer(integer) => Some(integer),
            Worth::Double(double) if double >= -LEAST => None,
            Worth::Double(double) => Some(double.ceil() as i64),
        }
    }

    fn worth(&self) -> Worth {
        match self.0.parse::<i64>() {
            Ok(integer) => Worth::Integer(integer),
            Err(_) => Worth::Double(self.0.parse().unwrap_or(f64::NAN)),
        }
    }
}

/// The least integer of 64 bits, which is a double as well. The greatest is none.
const LEAST: f64 = -9_223_372_036_854_775_808.0;

impl From<i64> for Number {
    fn from(integer: i64) -> Self {
        Self(integer.to_string().into())
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (self.worth(), other.worth()) {
            (Worth::Integer(a), Worth::Integer(b)) => Some(a.cmp(&b)),
            (Worth::Double(a), Worth::Double(b)) => a.partial_cmp(&b),
            (Worth::Integer(a), Worth::Double(b)) => Some(integer_with_double(a, b)),
            (Worth::Double(a), Worth::Integer(b)) => Some(integer_with_double(b, a).reverse()),
        }
    }
}

enum Worth {
    Integer(i64),
    Double(f64),
}

/// Exact, also where a double cannot hold the integer.
fn integer_with_double(integer: i64, double: f64) -> Ordering {
    // A finite double has an integral part that saturates here beyond what any i64 reaches.
    let whole = double.trunc() as i128;
    i128::from(integer)
        .cmp(&whole)
        .then_with(|| 0.0_f64.total_cmp(&(double.fract() + 0.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> Number {
        Number::from_json(text).unwrap()
    }

    #[test]
    fn numbers_compare_by_their_worth() {
        let ascending = [
            "-1e300",
            "-9223372036854775809",
            "-9223372036854775807",
            "-2.5",
            "-2",
            "-0.5",
            "0",
            "0.5",
            "1",
            "1.5",
            "9007199254740992",
            "9007199254740993",
            "9223372036854775807",
            "9223372036854775808",
            "1e300",
        ];
        for (i, a) in ascending.iter().enumerate() {
            for (j, b) in ascending.iter().enumerate() {
                assert_eq!(
                    number(a).partial_cmp(&number(b)),
                    Some(i.cmp(&j)),
                    "{a} {b}"
                );
            }
        }
        for (a, b) in [
            ("1", "1.0"),
            ("-0", "0"),
            ("-0.0", "0"),
            ("100", "1e2"),
            ("9007199254740992", "9007199254740992.0"),
            ("-9223372036854775808", "-9223372036854775809"),
            ("18446744073709551616", "18446744073709551615"),
        ] {
            assert_eq!(
                number(a).partial_cmp(&number(b)),
                Some(Ordering::Equal),
                "{a} {b}"
            );
        }
    }
}
