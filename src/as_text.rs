//! Values that JSON has as text: written by `Display`, read by `FromStr`.

use std::fmt::Display;
use std::str::FromStr;

use serde::{Deserialize as _, Deserializer, Serializer};

/// For `#[serde(with)]`.
pub(crate) fn serialize<T: Display, S: Serializer>(
    value: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// For `#[serde(with)]`.
pub(crate) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    parse(&String::deserialize(deserializer)?)
}

/// The value that `text` stands for; the error shows the text, cut to a printable length.
fn parse<T: FromStr<Err: Display>, E: serde::de::Error>(text: &str) -> Result<T, E> {
    text.parse().map_err(|error: T::Err| {
        let error = error.to_string();
        match error.contains(text) {
            true => E::custom(error),
            false => {
                let shown: String = text.chars().take(SHOWN_CHARS).collect();
                E::custom(format_args!("{shown:?}: {error}"))
            }
        }
    })
}

const SHOWN_CHARS: usize = 64;

/// The same for a value that may be missing or null.
pub(crate) mod option {
    use super::*;

    pub(crate) fn serialize<T: Display, S: Serializer>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.collect_str(value),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| parse(&text)).transpose()
    }
}

/// The same for a list with at most `MAX` items.
pub(crate) mod list {
    use super::*;
    use crate::documents::Bounded;

    pub(crate) fn serialize<T: Display, S: Serializer>(
        values: &[T],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(values.iter().map(ToString::to_string))
    }

    pub(crate) fn deserialize<'de, T, const MAX: usize, D>(
        deserializer: D,
    ) -> Result<Vec<T>, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let texts = Bounded::<String, MAX>::deserialize(deserializer)?.0;
        texts.iter().map(|text| parse(text)).collect()
    }
}

#[cfg(test)]
mod tests {
    use nimbus_manifests::TenantId;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    struct Request {
        #[serde(with = "super")]
        one: TenantId,
        #[serde(default, with = "super::option")]
        maybe: Option<TenantId>,
        #[serde(default, deserialize_with = "super::list::deserialize::<_, 2, _>")]
        list: Vec<TenantId>,
    }

    #[test]
    fn reads_text_and_shows_what_it_cannot_read() {
        let read = |json: &str| serde_json::from_str::<Request>(json);
        let request = read(r#"{"one": "a", "maybe": null, "list": ["b", "c"]}"#).unwrap();
        assert_eq!(request.one.as_str(), "a");
        assert_eq!((request.maybe, request.list.len()), (None, 2));
        for json in [
            r#"{"one": "../x"}"#,
            r#"{"one": "a", "maybe": "../x"}"#,
            r#"{"one": "a", "list": ["../x"]}"#,
        ] {
            let error = read(json).unwrap_err().to_string();
            assert!(error.contains("\"../x\": a tenant id is"), "{error}");
        }
        assert!(read(r#"{"one": "a", "list": ["b", "c", "d"]}"#).is_err());
    }
}
