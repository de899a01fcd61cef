//! Error messages for JSON that cannot be read.

use proptest::prelude::*;

use super::*;
use crate::documents::{Bounded, Mutation, optional_integer, query::Query, schedule::Cron};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "it is read, and looked at no further")]
struct Shape<'a> {
    name: &'a str,
    count: u8,
    #[serde(default)]
    on: bool,
    kind: Option<Kind>,
    #[serde(default, deserialize_with = "optional_integer")]
    limit: Option<usize>,
    list: Option<Bounded<u8, 2>>,
    inner: Option<Inner>,
}

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "it is read, and looked at no further")]
struct Inner {
    a: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    One,
    Two,
}

#[test]
fn says_which_field_is_wrong_and_what_is_expected() {
    for (json, expected) in [
        ("[]", NO_OBJECT),
        (
            "{\n\"name\":}",
            "it is not valid JSON (line 2, column 8): a value is expected here",
        ),
        (
            r#"{"name":"a""#,
            "it is not valid JSON (line 1, column 11): it ends in the middle of an object",
        ),
        (r#"{"count":1}"#, r#""name" is missing"#),
        (
            r#"{"name":"a","count":1,"more":1}"#,
            r#""more" is not a field here; the fields are "name", "count", "on", "kind", "limit", "list", "inner""#,
        ),
        (r#"{"name":"a","name":"b"}"#, r#""name" is there twice"#),
        (
            r#"{"name":5}"#,
            r#""name": text is expected, and this is a number"#,
        ),
        (
            r#"{"name":"a","count":300}"#,
            r#""count": a whole number in range is expected"#,
        ),
        (
            r#"{"name":"a","count":"1"}"#,
            r#""count": a whole number is expected, and this is text"#,
        ),
        (
            r#"{"name":"a","count":1,"on":null}"#,
            r#""on": true or false is expected, and this is null"#,
        ),
        (
            r#"{"name":"a","count":1,"kind":"three, expected `x`"}"#,
            r#""three, expected `x" is not one of the values: "one", "two""#,
        ),
        (
            r#"{"name":"a","count":1,"limit":-1}"#,
            r#""limit": a whole number of 0 or more is expected"#,
        ),
        (
            r#"{"name":"a","count":1,"list":[1,2,3]}"#,
            r#""list": a list of at most 2 is expected"#,
        ),
        (
            r#"{"name":"a","count":1,"inner":{"a":[]}}"#,
            r#""inner.a": text is expected, and this is a list"#,
        ),
        (
            r#"{"name":"a","count":1,"inner":5}"#,
            r#""inner": an object is expected, and this is a number"#,
        ),
    ] {
        let said = read_object::<Shape<'_>>(json.as_bytes()).unwrap_err();
        assert_eq!(said, expected, "{json}");
        assert_eq!(object::<Shape<'_>>(json).unwrap_err(), expected, "{json}");
    }
}

#[test]
fn says_how_deep_it_may_be_nested() {
    let nested = |levels| {
        let text = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let read: Result<serde_json::Value, _> = serde_json::from_str(&text);
        read.err().map(|error| reason(&error))
    };
    assert_eq!(nested(MOST_LEVELS), None);
    let said = nested(MOST_LEVELS + 1).unwrap();
    assert!(
        said.ends_with("it is nested deeper than 127 levels"),
        "{said}"
    );
}

#[test]
fn does_not_quote_a_megabyte() {
    let name = "é".repeat(1 << 19);
    for json in [
        format!(r#"{{"{name}":1}}"#),
        format!(r#"{{"name":"a","count":1,"kind":"{name}"}}"#),
    ] {
        let said = object::<Shape<'_>>(&json).unwrap_err();
        assert!(said.len() < 512, "{}", said.len());
    }
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        any::<f64>().prop_map(serde_json::Value::from),
        ".*".prop_map(serde_json::Value::from),
    ];
    let name = prop_oneof![
        Just("name".to_owned()),
        Just("count".to_owned()),
        Just("kind".to_owned()),
        Just("limit".to_owned()),
        Just("list".to_owned()),
        Just("inner".to_owned()),
        Just("type".to_owned()),
        Just("table".to_owned()),
        Just("filters".to_owned()),
        Just("schedule".to_owned()),
        Just("mutation".to_owned()),
        ".{0,4}",
    ];
    leaf.prop_recursive(3, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
            prop::collection::btree_map(name.clone(), inner, 0..6)
                .prop_map(|members| members.into_iter().collect()),
        ]
    })
}

proptest! {
    #[test]
    fn has_words_for_every_fault_of_syntax(value in any_json(), at in 0.0..1.0, with in "[\\[\\]{},:\"\\\\a-z0-9.eE+\u{1}\u{e9}-]{0,3}", cut in 0_usize..3) {
        let mut json = value.to_string().into_bytes();
        let at = (json.len() as f64 * at) as usize;
        let end = (at + cut).min(json.len());
        drop(json.splice(at..end, with.into_bytes()));
        if let Err(error) = serde_json::from_slice::<serde_json::Value>(&json) {
            let said = reason(&error);
            prop_assert!(!said.ends_with("it cannot be read here"), "{} {}", error, said);
        }
    }

    #[test]
    fn never_speaks_as_serde_does(value in any_json()) {
        let json = value.to_string();
        let said = [
            object::<Shape<'_>>(&json).err(),
            Query::from_json(&json).err().map(|error| error.to_string()),
            Mutation::from_json(&json).err().map(|error| error.to_string()),
            Cron::from_json(&json).err().map(|error| error.to_string()),
        ];
        for said in said.into_iter().flatten() {
            for word in ["struct ", "invalid type", "invalid value", "missing field", "unknown field", "column 1 ", "u8"] {
                prop_assert!(!said.contains(word) || json.contains(word), "{}", said);
            }
        }
    }
}
