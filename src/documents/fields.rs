//! The user's part of a document: one JSON object, checked once and kept as text.

use std::{
    borrow::Cow,
    cell::Cell,
    collections::{HashMap, HashSet},
    fmt,
};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::limits::{MAX_DEPTH, MAX_FIELDS_BYTES};
use super::{InputError, error::excerpt, json_object::reason};

/// The fields of a document, or those of a patch: a JSON object as compact text.
///
/// Names may be any Unicode text, but on the top level none begins with `_`, and none occurs twice
/// in one object. Numbers are kept digit for digit as they were written, so integers beyond 2^53,
/// beyond 64 bits, and `1.10` come back as they went in; a number beyond the range of a double
/// (`1e400`) is refused. Order is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields(Box<str>);

impl Fields {
    /// Checks a JSON object and keeps it without the white space between its tokens.
    pub fn from_json(text: &str) -> Result<Self, InputError> {
        let compact = compact(text);
        // First: to check the names of an object keeps them all.
        if compact.len() > MAX_FIELDS_BYTES {
            return Err(InputError::TooLarge {
                size: compact.len(),
            });
        }
        check(text)?;
        Ok(Self(compact.into()))
    }

    /// Fields that a store gives back: they were checked when they came in.
    ///
    /// `None` when the text is no object at all, which only damage brings about.
    #[must_use]
    pub fn from_stored(text: String) -> Option<Self> {
        (text.starts_with('{') && text.ends_with('}')).then(|| Self(text.into()))
    }

    /// The object as compact JSON text.
    #[must_use]
    pub fn as_json(&self) -> &str {
        &self.0
    }

    /// These fields with those of `patch` set: a merge of the top level alone. A field that is
    /// there is replaced whole, one that is not is added at the end; `null` sets null and removes
    /// nothing.
    pub fn merged_with(&self, patch: &Self) -> Result<Self, InputError> {
        let mut patches = patch.members()?;
        let places: HashMap<Cow<'_, str>, usize> = patches
            .iter()
            .enumerate()
            .map(|(place, (name, _))| (name.clone(), place))
            .collect();
        let mut members = self.members()?;
        let mut added = vec![true; patches.len()];
        for (name, value) in &mut members {
            if let Some(&place) = places.get(name) {
                *value = patches[place].1;
                added[place] = false;
            }
        }
        let mut added = added.into_iter();
        patches.retain(|_| added.next() == Some(true));
        members.append(&mut patches);

        let merged = serde_json::to_string(&Members(members)).map_err(unreadable)?;
        if merged.len() > MAX_FIELDS_BYTES {
            return Err(InputError::TooLarge { size: merged.len() });
        }
        Ok(Self(merged.into()))
    }

    /// The top-level members in their order, each value as text.
    fn members(&self) -> Result<Vec<(Cow<'_, str>, &RawValue)>, InputError> {
        let Members(members) = serde_json::from_str(&self.0).map_err(unreadable)?;
        Ok(members)
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_json::from_str::<&RawValue>(&self.0)
            .map_err(serde::ser::Error::custom)?
            .serialize(serializer)
    }
}

/// Only for JSON: `serde_json` hands the text over as it stands.
impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        Self::from_json(text.get()).map_err(de::Error::custom)
    }
}

/// Reads the whole text once, by the strict parser, and refuses what [`Fields`] does not hold.
fn check(text: &str) -> Result<(), InputError> {
    let fault = Cell::new(None);
    let mut json = serde_json::Deserializer::from_str(text);
    Check {
        level: 0,
        fault: &fault,
    }
    .deserialize(&mut json)
    .and_then(|()| json.end())
    .map_err(|error| fault.take().unwrap_or_else(|| unreadable(error)))
}

/// The refusal for text that the parser does not take.
fn unreadable(error: serde_json::Error) -> InputError {
    InputError::Json {
        reason: reason(&error),
    }
}

/// Checks one value and all below it.
///
/// A visitor's error is text to the parser; what is really wrong goes into `fault`.
#[derive(Clone, Copy)]
struct Check<'a> {
    /// Objects and arrays around this value.
    level: usize,
    fault: &'a Cell<Option<InputError>>,
}

impl Check<'_> {
    fn reject<E: de::Error>(self, error: InputError) -> E {
        self.fault.set(Some(error));
        E::custom("refused")
    }

    /// A value that is neither object nor array.
    fn scalar<E: de::Error>(self) -> Result<(), E> {
        if self.level == 0 {
            Err(self.reject(InputError::NotAnObject))
        } else {
            Ok(())
        }
    }

    /// The check for what lies in this object or array.
    fn deeper<E: de::Error>(self) -> Result<Self, E> {
        if self.level == MAX_DEPTH {
            return Err(self.reject(InputError::TooDeep));
        }
        Ok(Self {
            level: self.level + 1,
            ..self
        })
    }
}

impl<'de> DeserializeSeed<'de> for Check<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Check<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<(), E> {
        self.scalar()
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<(), E> {
        self.scalar()
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.scalar()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        if self.level == 0 {
            return Err(self.reject(InputError::NotAnObject));
        }
        let below = self.deeper()?;
        while let Some(()) = seq.next_element_seed(below)? {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let below = self.deeper()?;
        let mut names = HashSet::new();
        while let Some(Name(name)) = map.next_key::<Name<'de>>()? {
            if self.level == 0 && name.starts_with('_') {
                return Err(self.reject(InputError::ReservedField {
                    name: excerpt(&name),
                }));
            }
            if names.contains(&name) {
                return Err(self.reject(InputError::DuplicateField {
                    name: excerpt(&name),
                }));
            }
            names.insert(name);
            map.next_value_seed(below)?;
        }
        Ok(())
    }
}

/// A member's name, borrowed from the text unless it holds an escape.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// The top-level members of an object, in order.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some((Name(name), value)) =
                    map.next_entry::<Name<'de>, &'de RawValue>()?
                {
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

impl Serialize for Members<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// The same JSON without white space between its tokens. Of text that is no JSON, it is some other
/// text that is none longer.
fn compact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    // White space outside strings goes; strings, with their escapes, are copied whole.
    while let Some(at) = rest.find([' ', '\t', '\n', '\r', '"']) {
        let (plain, tail) = rest.split_at(at);
        out.push_str(plain);
        let len = if tail.starts_with('"') {
            string_len(tail)
        } else {
            1
        };
        let (token, after) = tail.split_at(len);
        if len > 1 {
            out.push_str(token);
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// The length of the JSON string that `text` begins with, quotes included.
fn string_len(text: &str) -> usize {
    let mut escaped = false;
    let end = text.bytes().skip(1).position(|byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    });
    end.map_or(text.len(), |end| end + 2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn nested(levels: usize) -> String {
        format!("{}{}{}", r#"{"a":"#.repeat(levels), 1, "}".repeat(levels))
    }

    fn text(json: &str) -> String {
        Fields::from_json(json).unwrap().as_json().to_owned()
    }

    #[test]
    fn keeps_numbers_names_and_order_as_written() {
        for json in [
            "{}",
            r#"{"b":1,"a":2}"#,
            r#"{"n":[1.10,1e5,-0,9007199254740993,18446744073709551616,123456789012345678901234567890]}"#,
            r#"{"größe":"ein \" und \\","日本":null,"":[{}],"a_b":{"_inner":true}}"#,
            r#"{"nul":"\u0000","pair":"\ud83d\ude00"}"#,
        ] {
            assert_eq!(text(json), json);
        }
    }

    #[test]
    fn drops_white_space_between_tokens_only() {
        assert_eq!(
            text(" {\t\"a b\" :\n [ 1 , \" x \\\" y \" ] }\r\n"),
            r#"{"a b":[1," x \" y "]}"#
        );
    }

    #[test]
    fn rejects_what_is_no_object() {
        for json in ["1", "null", "true", r#""text""#, "[]", "[{}]", "1.5", "-3"] {
            assert_eq!(
                Fields::from_json(json),
                Err(InputError::NotAnObject),
                "{json}"
            );
        }
    }

    #[test]
    fn rejects_broken_json_and_values_nobody_can_read() {
        for json in [
            "",
            "{",
            "{}x",
            "{} {}",
            r#"{"a":}"#,
            r#"{"a":01}"#,
            r#"{"a":1e400}"#,
            r#"{a:1}"#,
            r#"{"a":1,}"#,
            r#"{"a":NaN}"#,
            r#"{"a":"\ud800"}"#,
            r#"{"\ud800":1}"#,
            "{\"a\":\"\n\"}",
            "\u{feff}{}",
        ] {
            assert!(
                matches!(Fields::from_json(json), Err(InputError::Json { .. })),
                "{json}"
            );
        }
    }

    #[test]
    fn rejects_reserved_names_on_the_top_level_alone() {
        for json in [r#"{"_id":1}"#, r#"{"a":1,"_":2}"#, r#"{"\u005fx":1}"#] {
            assert!(
                matches!(
                    Fields::from_json(json),
                    Err(InputError::ReservedField { .. })
                ),
                "{json}"
            );
        }
        assert_eq!(text(r#"{"a":{"_id":1}}"#), r#"{"a":{"_id":1}}"#);
    }

    #[test]
    fn rejects_duplicates_at_every_level() {
        for json in [r#"{"a":1,"a":1}"#, r#"{"x":[{"a":1,"\u0061":2}]}"#] {
            assert_eq!(
                Fields::from_json(json),
                Err(InputError::DuplicateField { name: "a".into() }),
                "{json}"
            );
        }
        assert_eq!(text(r#"{"a":{"a":{"a":1}}}"#), r#"{"a":{"a":{"a":1}}}"#);
    }

    #[test]
    fn the_depth_limit_is_exact() {
        assert_eq!(text(&nested(MAX_DEPTH)), nested(MAX_DEPTH));
        assert_eq!(
            Fields::from_json(&nested(MAX_DEPTH + 1)),
            Err(InputError::TooDeep)
        );
        let arrays = format!(
            r#"{{"a":{}{}}}"#,
            "[".repeat(MAX_DEPTH),
            "]".repeat(MAX_DEPTH)
        );
        assert_eq!(Fields::from_json(&arrays), Err(InputError::TooDeep));
        // Deep enough to end a recursive parser.
        let abyss = format!(r#"{{"a":{}"#, "[".repeat(1_000_000));
        assert!(Fields::from_json(&abyss).is_err());
    }

    #[test]
    fn the_size_limit_is_exact_and_counts_compact_bytes() {
        let sized = |n: usize| format!(r#"{{ "a" : "{}" }}"#, "x".repeat(n - r#"{"a":""}"#.len()));
        assert_eq!(text(&sized(MAX_FIELDS_BYTES)).len(), MAX_FIELDS_BYTES);
        assert_eq!(
            Fields::from_json(&sized(MAX_FIELDS_BYTES + 1)),
            Err(InputError::TooLarge {
                size: MAX_FIELDS_BYTES + 1
            })
        );
    }

    #[test]
    fn a_merge_replaces_adds_and_sets_null() {
        let stored = Fields::from_json(r#"{"a":1.10,"b":{"x":1,"y":2},"c":3}"#).unwrap();
        let patch = Fields::from_json(r#"{"d":[ ],"b":{"z":0},"c":null,"\u0065":1e2}"#).unwrap();
        assert_eq!(
            stored.merged_with(&patch).unwrap().as_json(),
            r#"{"a":1.10,"b":{"z":0},"c":null,"d":[],"e":1e2}"#
        );
        let nothing = Fields::from_json("{}").unwrap();
        assert_eq!(stored.merged_with(&nothing).unwrap(), stored);
        assert_eq!(nothing.merged_with(&stored).unwrap(), stored);
    }

    #[test]
    fn a_merge_keeps_the_size_limit() {
        let half = |name: &str| {
            Fields::from_json(&format!(r#"{{"{name}":"{}"}}"#, "x".repeat(600_000))).unwrap()
        };
        assert!(half("a").merged_with(&half("a")).is_ok());
        assert!(matches!(
            half("a").merged_with(&half("b")),
            Err(InputError::TooLarge { .. })
        ));
    }

    #[test]
    fn serde_keeps_the_text() {
        #[derive(Serialize, Deserialize)]
        struct Body {
            fields: Fields,
        }
        let body: Body = serde_json::from_str(r#"{"fields": {"a": 1.10}}"#).unwrap();
        assert_eq!(
            serde_json::to_string(&body).unwrap(),
            r#"{"fields":{"a":1.10}}"#
        );
        assert!(serde_json::from_str::<Body>(r#"{"fields":{"_a":1}}"#).is_err());
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..6)
                    .prop_map(|m| m.into_iter().collect()),
            ]
        })
    }

    fn object() -> impl Strategy<Value = Value> {
        prop::collection::btree_map("[a-zé\\\\\" ]{0,3}", json(), 0..8)
            .prop_map(|m| m.into_iter().collect())
    }

    proptest! {
        #[test]
        fn any_object_reads_back_as_itself(value in object()) {
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            prop_assert_eq!(text(&pretty), value.to_string());
        }

        #[test]
        fn a_merge_agrees_with_the_plain_model(stored in object(), patch in object()) {
            let merged = Fields::from_json(&stored.to_string()).unwrap()
                .merged_with(&Fields::from_json(&patch.to_string()).unwrap()).unwrap();
            let mut model = stored;
            model.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
            prop_assert_eq!(serde_json::from_str::<Value>(merged.as_json()).unwrap(), model);
        }
    }
}
