//! Numbers of bytes as an operator says them: `1048576`, `64MiB`, `10GiB`.

use std::str::FromStr;

use serde::Deserialize;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Said")]
pub struct Bytes(u64);

/// Text that is no number of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no number of bytes; write 1048576, 64MiB, 10GiB or 2TiB")]
pub struct NoBytes {
    text: String,
}

/// As JSON says it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Said {
    Number(u64),
    Text(String),
}

impl Bytes {
    /// How many.
    #[must_use]
    pub fn count(self) -> u64 {
        self.0
    }
}

impl FromStr for Bytes {
    type Err = NoBytes;

    fn from_str(text: &str) -> Result<Self, NoBytes> {
        let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40), ("", 0)];
        let parsed = units.iter().find_map(|(unit, shift)| {
            let number = text.strip_suffix(unit)?.trim_end();
            let number: u64 = number.parse().ok()?;
            number.checked_mul(1 << shift)
        });
        parsed.map(Self).ok_or_else(|| NoBytes {
            text: text.chars().take(40).collect(),
        })
    }
}

impl TryFrom<Said> for Bytes {
    type Error = NoBytes;

    fn try_from(said: Said) -> Result<Self, NoBytes> {
        match said {
            Said::Number(number) => Ok(Self(number)),
            Said::Text(text) => text.parse(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_operators_write_and_nothing_else() {
        for (text, count) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("3KiB", 3072),
            ("64MiB", 64 << 20),
            ("10 GiB", 10 << 30),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(text.parse::<Bytes>().unwrap().count(), count, "{text}");
        }
        for text in [
            "",
            "-1",
            "1.5GiB",
            "GiB",
            "10GB",
            "10gib",
            "a lot",
            "99999999999TiB",
            "1 2",
        ] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
        let json = |text| serde_json::from_str::<Bytes>(text);
        assert_eq!(json("4096").unwrap(), json("\"4KiB\"").unwrap());
        assert!(json("-1").is_err() && json("\"some\"").is_err());
    }
}
