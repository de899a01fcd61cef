//! How many tenants may be open at a time: a number, or `auto`.

use std::{fmt, num::NonZeroUsize, str::FromStr};

use serde::{
    Deserialize, Deserializer,
    de::{self, Visitor},
};

use crate::process::{FileLimit, most_open_tenants};

/// How many tenants may be open at a time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OpenTenants {
    /// As many as memory and file descriptors allow.
    #[default]
    Auto,
    /// At most this many.
    AtMost(NonZeroUsize),
}

/// Text that says no number of tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a whole number from 1 is accepted, or auto")]
pub struct NoNumber;

impl OpenTenants {
    /// The number for a process that may have these files open. A setting beyond what the files
    /// suffice for is lowered, with a line in the log.
    #[must_use]
    pub fn within(self, files: FileLimit) -> usize {
        let Self::AtMost(wanted) = self else {
            return most_open_tenants(files);
        };
        let (wanted, most) = (wanted.get(), files.tenants());
        if wanted > most {
            tracing::warn!(
                ?files,
                max_open_tenants = wanted,
                open_tenants = most,
                "the files that this process may have open do not suffice for --max-open-tenants: fewer are kept open; \
                 raise the hard limit (`ulimit -Hn`, or LimitNOFILE= of the service), or lower --max-open-tenants"
            );
        }
        wanted.min(most)
    }
}

impl FromStr for OpenTenants {
    type Err = NoNumber;

    fn from_str(text: &str) -> Result<Self, NoNumber> {
        match text.trim() {
            "auto" => Ok(Self::Auto),
            text => text.parse().map(Self::AtMost).map_err(|_error| NoNumber),
        }
    }
}

impl<'de> Deserialize<'de> for OpenTenants {
    fn deserialize<D: Deserializer<'de>>(said: D) -> Result<Self, D::Error> {
        said.deserialize_any(NumberOrAuto)
    }
}

struct NumberOrAuto;

impl Visitor<'_> for NumberOrAuto {
    type Value = OpenTenants;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number from 1, or \"auto\"")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<OpenTenants, E> {
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        let number = NonZeroUsize::new(number).ok_or_else(|| E::custom(NoNumber))?;
        Ok(OpenTenants::AtMost(number))
    }

    fn visit_i64<E: de::Error>(self, _negative: i64) -> Result<OpenTenants, E> {
        Err(E::custom(NoNumber))
    }

    fn visit_f64<E: de::Error>(self, _fraction: f64) -> Result<OpenTenants, E> {
        Err(E::custom(NoNumber))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<OpenTenants, E> {
        text.parse().map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_from_one_or_auto() {
        let seven = OpenTenants::AtMost(NonZeroUsize::new(7).unwrap());
        let json = |text: &str| serde_json::from_str::<OpenTenants>(text);
        for text in ["auto", "7"] {
            let said: OpenTenants = text.parse().unwrap();
            assert_eq!(said == seven, text == "7");
            assert_eq!(json(&format!("\"{text}\"")).unwrap(), said);
        }
        assert_eq!(json("7").unwrap(), seven);
        for text in ["", "0", "-1", "1.5", "Auto", "many"] {
            assert_eq!(text.parse::<OpenTenants>(), Err(NoNumber), "{text}");
        }
        assert!(json("0").is_err() && json("-1").is_err() && json("\"some\"").is_err());
    }
}
