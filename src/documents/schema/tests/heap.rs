//! What checks and compiled schemas may take of the heap.

use serde_json::{Value, json};

use super::super::Violation;
use super::{refusal, with};
use crate::documents::Fields;

/// As many of an item as a schema may have, between two texts.
fn filled(before: &str, item: &str, after: &str) -> String {
    let count = (60_000 - before.len() - after.len()) / (item.len() + 1);
    format!("{before}{}{after}", vec![item; count].join(","))
}

fn numbered(count: usize, item: impl Fn(usize) -> String) -> String {
    (0..count).map(item).collect::<Vec<_>>().join(",")
}

#[test]
fn an_error_shows_nothing_of_the_document_and_says_what_does_not_hold() {
    let check = |schema: Value, document: &str| {
        let found = with(schema)
            .unwrap()
            .check("t", &Fields::from_json(document).unwrap());
        match found {
            Err(Violation::JsonSchema { at, reason }) => (at, reason),
            other => panic!("{other:?}"),
        }
    };
    let (at, reason) = check(
        json!({"properties": {"a": {"prefixItems": [true], "items": false}}}),
        r#"{"a":[1,7777]}"#,
    );
    assert!(
        at.starts_with("/a") && !reason.contains("7777"),
        "{at} {reason}"
    );
    let (_, reason) = check(
        json!({"properties": {"a": {"unevaluatedItems": false}}}),
        r#"{"a":[7777,8888]}"#,
    );
    assert!(reason.contains("2 items"), "{reason}");
    let (at, reason) = check(
        json!({"properties": {"a": {"type": "string"}}}),
        r#"{"a":7777}"#,
    );
    assert_eq!((&*at, &*reason), ("/a", r#"value is not of type "string""#));
}

#[test]
fn schemas_that_would_take_much_more_than_their_text_are_refused() {
    let long = "n".repeat(30_000);
    let nots =
        r#"{"not":"#.repeat(58) + &filled(r#"{"enum":["#, r#"{"":0}"#, "]}")[..] + &"}".repeat(58);
    let branches = numbered(1000, |n| format!(r#"{{"properties":{{"{n}":{{}}}}}}"#));
    let beside = |keyword: &str| {
        let parts = vec![format!(r##"{{"$ref":"#/$defs/a","{keyword}":false}}"##); 500].join(",");
        format!(r##"{{"$defs":{{"a":{{"anyOf":[{branches}]}}}},"prefixItems":[{parts}]}}"##)
    };
    for schema in [
        filled(
            &format!(r#"{{"properties":{{"{long}":{{"prefixItems":["#),
            "{}",
            "]}}}",
        ),
        filled(
            &format!(r#"{{"properties":{{"{long}":{{"anyOf":["#),
            "false",
            "]}}}",
        ),
        filled(
            &format!(r#"{{"properties":{{"{long}":{{"prefixItems":["#),
            r##"{"$ref":"#"}"##,
            "]}}}",
        ),
        nots,
        beside("unevaluatedProperties"),
        beside("unevaluatedItems"),
    ] {
        let reason = refusal(with(serde_json::from_str(&schema).unwrap()));
        assert!(
            reason.contains("compiled it could take more than 16 MiB"),
            "{reason}"
        );
    }
}
