//! What one check may cost, whatever the schema and the document.

use serde_json::{Value, json};

use super::{super::Violation, check, refusal, with};
use crate::documents::{Fields, MAX_FIELDS_BYTES};

/// Such an array as fills a document.
fn filled(item: &str) -> Value {
    let count = MAX_FIELDS_BYTES / (item.len() + 1) - 8;
    let json = format!(r#"{{"a":[{}]}}"#, vec![item; count].join(","));
    serde_json::from_str(&json).unwrap()
}

#[test]
fn whatever_keyword_is_slow_a_check_ends() {
    let items = |part: Value| json!({"properties": {"a": {"items": part}}});
    let many =
        |count: usize, part: fn(usize) -> Value| -> Vec<Value> { (0..count).map(part).collect() };
    let names: Vec<String> = (0..5000).map(|n| format!("x{n}")).collect();
    let pattern = "[ab]*a[ab]{1000}c";
    let cases = [
        (
            "not anyOf false",
            items(json!({"not": {"anyOf": vec![false; 9000]}})),
            "0",
        ),
        (
            "not anyOf {}",
            items(json!({"not": {"anyOf": vec![json!({"not": {}}); 3000]}})),
            "0",
        ),
        (
            "$ref",
            json!({"$defs": {"x": {"not": {}}}, "properties": {"a": {"items": {"not": {"anyOf": vec![json!({"$ref": "#/$defs/x"}); 2000]}}}}}),
            "0",
        ),
        (
            "enum",
            items(json!({"not": {"enum": many(5000, |n| json!(n + 1))}})),
            "0",
        ),
        (
            "const",
            items(json!({"allOf": many(1000, |n| json!({"not": {"const": n + 1}}))})),
            "0",
        ),
        (
            "multipleOf",
            items(json!({"allOf": many(500, |_| json!({"multipleOf": 0.5}))})),
            "0",
        ),
        (
            "minimum",
            items(json!({"allOf": many(500, |n| json!({"minimum": -(n as i64)}))})),
            "0",
        ),
        (
            "type",
            items(json!({"allOf": many(1000, |_| json!({"type": ["string", "integer"]}))})),
            "0",
        ),
        (
            "maxLength",
            items(json!({"allOf": many(1000, |_| json!({"maxLength": 3}))})),
            r#""""#,
        ),
        (
            "required",
            items(
                json!({"not": {"anyOf": many(2000, |n| json!({"required": ["b", format!("x{n}")]}))}}),
            ),
            r#"{"b":0}"#,
        ),
        (
            "dependentRequired",
            items(json!({"not": {"dependentRequired": {"b": names}}})),
            r#"{"b":0}"#,
        ),
        (
            "dependentRequired of many",
            items(
                json!({"dependentRequired": names.iter().take(4000).map(|name| (name.clone(), json!(["y"]))).collect::<serde_json::Map<_, _>>()}),
            ),
            r#"{"b":0}"#,
        ),
        (
            "dependentSchemas",
            items(
                json!({"dependentSchemas": {"b": {"allOf": many(1000, |_| json!({"maxProperties": 3}))}}}),
            ),
            r#"{"b":0}"#,
        ),
        (
            "propertyNames",
            items(json!({"propertyNames": {"allOf": many(1000, |_| json!({"maxLength": 3}))}})),
            r#"{"b":0}"#,
        ),
        (
            "contains",
            json!({"properties": {"a": {"allOf": many(300, |n| json!({"contains": {"const": n}, "minContains": 0}))}}}),
            "0",
        ),
        (
            "unevaluatedProperties",
            items(
                json!({"anyOf": many(500, |n| json!({"properties": {format!("p{n}"): {"type": "number"}}})), "unevaluatedProperties": {"type": "number"}}),
            ),
            r#"{"b":0}"#,
        ),
        (
            "unevaluatedItems",
            items(
                json!({"anyOf": many(500, |n| json!({"prefixItems": [{"const": n}]})), "unevaluatedItems": {"type": "number"}}),
            ),
            "[0,0,0]",
        ),
        (
            "uniqueItems",
            json!({"properties": {"a": {"allOf": many(500, |_| json!({"not": {"uniqueItems": true}}))}}}),
            "0",
        ),
        (
            "pattern",
            items(json!({"not": {"pattern": pattern}})),
            r#""abababababababababababababababababababababab""#,
        ),
        (
            "patternProperties",
            items(json!({"patternProperties": {pattern: true}})),
            r#"{"abababababababababababababababababab":0}"#,
        ),
        (
            "additionalProperties",
            items(
                json!({"patternProperties": {pattern: true}, "additionalProperties": {"type": "number"}}),
            ),
            r#"{"abababababababababababababababababab":0}"#,
        ),
    ];
    for (name, schema, item) in cases {
        let schema = with(schema).unwrap_or_else(|error| panic!("{name}: {error}"));
        let found = check(&schema, filled(item));
        // The crate may be quick about these: then there is a verdict.
        let may_be_quick = name == "enum" || name.starts_with("dependentRequired");
        assert!(
            may_be_quick || matches!(found, Err(Violation::TooCostly { .. })),
            "{name}: {found:?}"
        );
        // It is for the document that the check is refused.
        assert!(!matches!(
            check(&schema, json!({"a": []})),
            Err(Violation::TooCostly { .. })
        ));
    }
}

#[test]
fn errors_of_a_failed_check_are_bounded_too() {
    let schema = with(json!({"anyOf": [
        {"properties": {"a": {"items": {"type": "string"}}}},
        {"properties": {"a": {"items": {"type": "boolean"}}}},
    ]}))
    .unwrap();
    let Err(Violation::JsonSchema { at, reason }) = check(&schema, filled("0")) else {
        panic!("it holds");
    };
    assert_eq!(
        (&*at, &*reason),
        ("", "it would take too long to say where and why")
    );
    let Err(Violation::JsonSchema { reason, .. }) = check(&schema, json!({"a": [0]})) else {
        panic!("it holds");
    };
    assert!(reason.contains("anyOf"), "{reason}");
}

#[test]
fn ordinary_schemas_hold_for_the_largest_documents() {
    let text = json!({"type": "string", "minLength": 1, "maxLength": 200});
    let mut properties: serde_json::Map<String, Value> = (0..100)
        .map(|n| (format!("field{n}"), text.clone()))
        .collect();
    let email = r"^[^@\s]+@[^@\s]+\.[a-z]{2,}$";
    properties.extend([
        ("mail".to_owned(), json!({"type": "string", "pattern": email})),
        ("kind".to_owned(), json!({"enum": ["a", "b", "c"]})),
        ("price".to_owned(), json!({"type": "number", "minimum": 0, "multipleOf": 0.01})),
        ("tags".to_owned(), json!({"type": "array", "items": {"type": "string"}, "uniqueItems": true})),
        ("address".to_owned(), json!({"$ref": "#/$defs/address"})),
        ("shape".to_owned(), json!({"oneOf": [{"$ref": "#/$defs/circle"}, {"$ref": "#/$defs/square"}, {"type": "null"}]})),
    ]);
    let shape = |name: &str| json!({"type": "object", "properties": {"type": {"const": name}, "size": {"type": "number"}}, "required": ["type", "size"], "additionalProperties": false});
    let schema = with(json!({
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"$ref": "#/$defs/item"}}},
        "$defs": {
            "item": {"type": "object", "properties": properties, "required": ["mail", "kind"],
                "patternProperties": {"^x-": {"type": "string"}}, "additionalProperties": false,
                "dependentRequired": {"shape": ["price"]}},
            "address": {"type": "object", "properties": {"zip": {"type": "string", "pattern": "^[0-9]{4,5}$"}, "city": text}, "required": ["zip"]},
            "circle": shape("circle"),
            "square": shape("square"),
        },
    }))
    .unwrap();
    let mut item = json!({
        "mail": "someone@example.com", "kind": "b", "price": 12, "tags": ["one", "two", "three"], "x-note": "n",
        "address": {"zip": "8000", "city": "Town"}, "shape": {"type": "square", "size": 3},
    });
    assert_eq!(check(&schema, filled(&item.to_string())), Ok(()));
    for n in 0..100 {
        item[format!("field{n}")] = json!("some text");
    }
    assert_eq!(check(&schema, filled(&item.to_string())), Ok(()));
    assert!(check(&schema, filled(r#"{"mail":"x"}"#)).is_err());
    // As many values as there can be.
    let numbers = with(json!({"properties": {"a": {"items": {"type": "number", "minimum": 0}}}}));
    assert_eq!(check(&numbers.unwrap(), filled("0")), Ok(()));
}

#[test]
fn items_are_unique_as_json_says() {
    let schema = with(json!({"properties": {"a": {"uniqueItems": true}}})).unwrap();
    let unique = |items: &str| {
        let document = Fields::from_json(&format!(r#"{{"a":{items}}}"#)).unwrap();
        schema.check("t", &document).is_ok()
    };
    for alike in [
        "[1,1.0]",
        "[0,-0.0]",
        "[[],[]]",
        r#"[{"a":1,"b":2},3,{"b":2,"a":1.0}]"#,
        r#"["a",null,"b",null]"#,
        "[9007199254740993,1,9007199254740993]",
        "[1e300,1e300]",
    ] {
        assert!(!unique(alike), "{alike}");
    }
    for different in [
        "[]",
        r#"[1,true,"1",[1],{"a":1},null,0,false]"#,
        "[[1],[2],[1,2],[[1],2],[[1,2]]]",
        "[9007199254740993,9007199254740992.0]",
        r#"[{"a":1},{"b":1},{"a":2}]"#,
        "[18446744073709551615,-1,1.5,1.25]",
    ] {
        assert!(unique(different), "{different}");
    }
    // Distinct, and alike to a hash that goes by leaves.
    let nested =
        (0..2000).map(|n| format!("[{}[]{}]", "[],".repeat(n % 40), ",[[]]".repeat(n / 40)));
    assert!(unique(&format!(
        "[{}]",
        nested.collect::<Vec<_>>().join(",")
    )));
}

#[test]
fn a_keyword_that_is_not_known_counts_as_applied() {
    let part = json!({"x-ours": vec![json!({"x-ours": vec![json!({}); 200]}); 100]});
    assert!(refusal(with(part)).contains("could apply more than 10000"));
    let known = with(
        json!({"x-ours": {"order": ["a", "b"]}, "examples": [1], "properties": {"a": {"nullable": true}}}),
    );
    assert_eq!(check(&known.unwrap(), json!({"a": 1})), Ok(()));
}

#[test]
fn patterns_that_take_long_to_compile_are_refused() {
    let flagged = "it sets flags";
    for (pattern, expected) in [
        ("(?i)abc".to_owned(), flagged),
        ("a(?i-s:b)".to_owned(), flagged),
        ("[)](?-u)".to_owned(), flagged),
        ("(?i)".to_owned() + &"[ -\u{10FFFF}]{0}".repeat(20), flagged),
        ("\\cA".repeat(1000), "a control escape"),
        ("a".repeat(4097), "over the limit of 4096"),
    ] {
        let reason = refusal(with(json!({"pattern": pattern})));
        assert!(reason.contains(expected), "{reason}");
        let reason = refusal(with(json!({"patternProperties": {pattern: true}})));
        assert!(reason.contains(expected), "{reason}");
    }
    let many: Vec<Value> = (0..5)
        .map(|n| json!({"pattern": format!("{n}{}", "(a|b)?".repeat(600))}))
        .collect();
    let reason = refusal(with(json!({"allOf": many})));
    assert!(
        reason.contains("more than 16384 bytes together"),
        "{reason}"
    );
    // These set none.
    for pattern in [
        "(?:i)",
        "[(?i]",
        "\\(?i",
        "(?<i>a)",
        "(?P<i>a)",
        "\\\\\\(?i",
        "[\\](?i]",
    ] {
        let schema = with(json!({"pattern": pattern}));
        assert!(schema.is_ok(), "{pattern}: {schema:?}");
    }
}

#[test]
fn numbers_that_are_divided_by_large_fractions_cost_what_they_take() {
    let items = |of: f64| {
        with(
            json!({"properties": {"a": {"items": {"allOf": vec![json!({"anyOf": [{"multipleOf": of}, {"not": {"multipleOf": of}}]}); 20]}}}}),
        )
        .unwrap()
    };
    let document = |number: &str| {
        let numbers = vec![number; 20_000].join(",");
        serde_json::from_str::<Value>(&format!(r#"{{"a":[{numbers}]}}"#)).unwrap()
    };
    for (of, number) in [
        (5e-324, "1.7e308"),
        (5e-324, "1"),
        (0.01, "1.7e308"),
        (3.0, "1.7e308"),
        (0.5, "5e-324"),
    ] {
        let found = check(&items(of), document(number));
        assert!(
            matches!(found, Err(Violation::TooCostly { .. })),
            "{of} {number} {found:?}"
        );
    }
    for (of, number) in [
        (0.01, "12.34"),
        (0.01, "999999999999.99"),
        (3.0, "9007199254740"),
    ] {
        let found = check(&items(of), document(number));
        assert!(
            !matches!(found, Err(Violation::TooCostly { .. })),
            "{of} {number}"
        );
    }
}

#[test]
fn a_stored_schema_that_is_refused_by_now_opens_and_lets_nothing_in() {
    let text = r#"{"table":"t","fields":[],"indexes":[],"json_schema":{"properties":{"a":{"pattern":"(?i)a"}}}}"#;
    assert!(super::TableSchema::from_json(text).is_err());
    let stored = super::TableSchema::from_stored(text).unwrap();
    assert_eq!(stored.to_json(), text);
    let Err(Violation::Unusable { reason }) = check(&stored, json!({"b": 1})) else {
        panic!("it is used");
    };
    assert!(reason.contains("it sets flags"), "{reason}");
}
