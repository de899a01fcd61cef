mod bounds;
mod heap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn read(json: Value) -> Result<TableSchema, InputError> {
    TableSchema::from_json(&json.to_string())
}

fn with(json_schema: Value) -> Result<TableSchema, InputError> {
    read(json!({"table": "t", "json_schema": json_schema}))
}

#[track_caller]
fn refusal(result: Result<TableSchema, InputError>) -> String {
    match result {
        Err(InputError::Schema { reason }) => reason,
        other => panic!("{other:?}"),
    }
}

fn check(schema: &TableSchema, document: Value) -> Result<(), Violation> {
    schema.check("t", &Fields::from_json(&document.to_string()).unwrap())
}

#[test]
fn a_schema_is_read_and_written_canonically() {
    let text = r#"{"table":"t","fields":[{"name":"a.ü","field_type":"number","required":true}],"indexes":[{"name":"i","fields":["a.ü","b"],"unique":false}],"json_schema":{"type":"object","maxProperties":3}}"#;
    let schema = TableSchema::from_json(text).unwrap();
    assert_eq!(schema.to_json(), text);
    assert_eq!(TableSchema::from_stored(text), Some(schema.clone()));
    let written_otherwise = r#" {"indexes": [{"fields": ["a.ü", "b"], "name": "i"}], "table": "t",
        "json_schema": {"type": "object", "maxProperties": 3},
        "fields": [{"required": true, "field_type": "number", "name": "a.\u00fc"}]}"#;
    assert_eq!(
        TableSchema::from_json(written_otherwise).unwrap().to_json(),
        text
    );
    let bare = read(json!({"table": "t"})).unwrap();
    assert_eq!(bare.to_json(), r#"{"table":"t","fields":[],"indexes":[]}"#);
    assert!(!bare.constrains());
    assert_eq!(TableSchema::from_stored("{}"), None);
}

#[test]
fn what_is_no_schema_is_refused_with_its_place() {
    let field = |name: &str| json!({"name": name, "field_type": "any"});
    let index = |name: &str, fields: &[&str]| json!({"name": name, "fields": fields});
    let long = "x".repeat(1025);
    for (schema, reason) in [
        (
            json!({"table": "t", "more": 1}),
            "\"more\" is not a field here",
        ),
        (
            json!({"table": "t", "fields": [field("a"), field("a")]}),
            "fields: \"a\" occurs twice",
        ),
        (
            json!({"table": "t", "fields": [field("a"), field("_id")]}),
            "fields[1]: field \"_id\" is the server's own",
        ),
        (json!({"table": "t", "fields": [field("_x")]}), "fields[0]"),
        (json!({"table": "t", "fields": [field("")]}), "is no path"),
        (
            json!({"table": "t", "fields": [field("a..b")]}),
            "is no path",
        ),
        (
            json!({"table": "t", "fields": [field(&long)]}),
            "longer than",
        ),
        (
            json!({"table": "t", "fields": [field(&["x"; 65].join("."))]}),
            "deeper than",
        ),
        (
            json!({"table": "t", "fields": [{"name": "a"}]}),
            "\"field_type\" is missing",
        ),
        (
            json!({"table": "t", "fields": [{"name": "a", "field_type": "integer"}]}),
            "\"integer\" is not one of the values",
        ),
        (
            json!({"table": "t", "fields": [["a", "any"]]}),
            "must be a JSON object",
        ),
        (
            json!({"table": "t", "fields": {}}),
            "a list of at most 1000",
        ),
        (
            json!({"table": "t", "indexes": [index("i", &["a"]), index("i", &["b"])]}),
            "indexes: \"i\" occurs twice",
        ),
        (
            json!({"table": "t", "indexes": [index("i", &["a"]), index("j", &["a"])]}),
            "are the same index",
        ),
        (
            json!({"table": "t", "indexes": [index("i", &["a", "a"])]}),
            "its fields: \"a\" occurs twice",
        ),
        (
            json!({"table": "t", "indexes": [index("i", &[])]}),
            "names no field",
        ),
        (
            json!({"table": "t", "indexes": [index("i", &["_id"])]}),
            "indexed already",
        ),
        (
            json!({"table": "t", "indexes": [index("i", &["_creationTime"])]}),
            "the server's own",
        ),
        (
            json!({"table": "t", "indexes": [index("i'; DROP", &["a"])]}),
            "is not valid",
        ),
        (
            json!({"table": "t", "indexes": [index("", &["a"])]}),
            "is not valid",
        ),
        (
            json!({"table": "t", "json_schema": []}),
            "json_schema: it must be an object",
        ),
    ] {
        let found = refusal(read(schema.clone()));
        assert!(found.contains(reason), "{found}, not {reason}: {schema}");
    }
    assert!(matches!(
        read(json!({"table": "_t"})),
        Err(InputError::TableName { .. })
    ));
    let twice = TableSchema::from_json(r#"{"table":"t","fields":[],"fields":[]}"#);
    assert!(refusal(twice).contains("occurs twice"));
    let deep_twice = TableSchema::from_json(
        r#"{"table":"t","json_schema":{"not":{"type":"null","type":"array"}}}"#,
    );
    assert!(refusal(deep_twice).contains("\"type\" occurs twice"));
    assert!(refusal(TableSchema::from_json("[]")).contains("must be a JSON object"));
}

#[test]
fn the_limits_are_exact() {
    let fields = |n: usize| -> Vec<Value> {
        (0..n)
            .map(|n| json!({"name": format!("f{n}"), "field_type": "any"}))
            .collect()
    };
    assert!(read(json!({"table": "t", "fields": fields(MAX_SCHEMA_FIELDS)})).is_ok());
    let many = |n| refusal(read(json!({"table": "t", "fields": fields(n)})));
    assert!(many(MAX_SCHEMA_FIELDS + 1).contains("at most 1000"));
    assert!(many(10_000).contains("over the limit of 262144"));
    let indexes = |n: usize| -> Vec<Value> {
        (0..n)
            .map(|n| json!({"name": format!("i{n}"), "fields": [format!("f{n}")]}))
            .collect()
    };
    assert!(read(json!({"table": "t", "indexes": indexes(MAX_INDEXES)})).is_ok());
    let many = read(json!({"table": "t", "indexes": indexes(MAX_INDEXES + 1)}));
    assert!(refusal(many).contains("at most 32"));
    let compound = |n: usize| {
        let fields: Vec<String> = (0..n).map(|n| format!("f{n}")).collect();
        read(json!({"table": "t", "indexes": [{"name": "i", "fields": fields}]}))
    };
    assert!(compound(MAX_INDEX_FIELDS).is_ok());
    assert!(refusal(compound(MAX_INDEX_FIELDS + 1)).contains("at most 8"));
    let described =
        |n: usize| with(json!({"description": "x".repeat(n - r#"{"description":""}"#.len())}));
    assert!(described(64 << 10).is_ok());
    assert!(refusal(described((64 << 10) + 1)).contains("over the limit of 65536"));
    let huge = json!({"table": "t", "fields": [{"name": "a", "field_type": "any"}], "json_schema": {"description": "x".repeat(MAX_SCHEMA_BYTES)}});
    assert!(refusal(read(huge)).contains("over the limit of 262144"));
}

#[test]
fn types_are_held_to() {
    let values = [
        ("string", json!("")),
        ("number", json!(1.5)),
        ("boolean", json!(false)),
        ("array", json!([])),
        ("object", json!({})),
    ];
    for (expected, _) in &values {
        let schema =
            read(json!({"table": "t", "fields": [{"name": "a", "field_type": expected}]})).unwrap();
        for (found, value) in &values {
            let result = check(&schema, json!({"a": value}));
            assert_eq!(result.is_ok(), expected == found, "{expected} {found}");
            if let Err(violation) = result {
                assert_eq!(
                    violation.to_string(),
                    format!("field \"a\" must be a {expected} and is a {found}")
                );
            }
        }
        // Not required: it may be missing, and be null. What the schema does not name is free.
        assert_eq!(check(&schema, json!({"b": [null]})), Ok(()));
        assert_eq!(check(&schema, json!({"a": null})), Ok(()));
    }
    let any = read(
        json!({"table": "t", "fields": [{"name": "a", "field_type": "any", "required": true}]}),
    )
    .unwrap();
    for (_, value) in &values {
        assert_eq!(check(&any, json!({"a": value})), Ok(()));
    }
    assert_eq!(check(&any, json!({"a": null})), Ok(()));
    assert_eq!(
        check(&any, json!({})),
        Err(Violation::Missing { field: "a".into() })
    );
}

#[test]
fn a_required_field_is_there_and_not_null() {
    let schema = read(json!({"table": "t", "fields": [{"name": "a.b", "field_type": "string", "required": true}]})).unwrap();
    let missing = Err(Violation::Missing {
        field: "a.b".into(),
    });
    assert_eq!(check(&schema, json!({"a": {"b": "x"}})), Ok(()));
    for document in [
        json!({}),
        json!({"a": null}),
        json!({"a": {}}),
        json!({"a": [{"b": "x"}]}),
        json!({"a.b": "x"}),
    ] {
        assert_eq!(check(&schema, document), missing);
    }
    assert_eq!(
        check(&schema, json!({"a": {"b": null}})),
        Err(Violation::Null {
            field: "a.b".into(),
            expected: FieldType::String
        })
    );
}

#[test]
fn json_schema_is_held_to_and_the_value_is_not_told() {
    let schema = with(json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "properties": {"code": {"type": "string", "pattern": "^[A-Z]{2}$"}, "n": {"minimum": 3}},
        "additionalProperties": false,
    }))
    .unwrap();
    assert_eq!(check(&schema, json!({"code": "CH", "n": 3})), Ok(()));
    let found = check(&schema, json!({"code": "secret"})).unwrap_err();
    let Violation::JsonSchema { at, reason } = &found else {
        panic!("{found:?}")
    };
    assert_eq!(at, "/code");
    assert!(
        reason.contains("pattern") || reason.contains("match"),
        "{reason}"
    );
    assert!(!found.to_string().contains("secret"), "{found}");
    assert!(check(&schema, json!({"other": 1})).is_err());
    assert!(check(&schema, json!({"n": 2})).is_err());
}

#[test]
fn json_schema_that_leads_elsewhere_is_refused() {
    for reference in [
        "https://example.com/s.json",
        "file:///etc/passwd",
        "other.json#/a",
        "urn:x",
    ] {
        let reason = refusal(with(json!({"properties": {"a": {"$ref": reference}}})));
        assert!(reason.contains("nothing is fetched"), "{reason}");
    }
    for (schema, expected) in [
        (json!({"$ref": "#/$defs/none"}), "leads nowhere"),
        (json!({"$ref": "#anchor"}), "not supported"),
        (json!({"$dynamicRef": "#x"}), "not supported"),
        (
            json!({"properties": {"a": {"$id": "http://x/"}}}),
            "top level alone",
        ),
        (
            json!({"$schema": "http://json-schema.org/draft-07/schema#"}),
            "$schema",
        ),
        (json!({"type": "sometimes"}), "at \"/type\""),
        (json!({"pattern": "("}), "at \"/pattern\""),
        (json!({"pattern": "(?=a)b"}), "at \"/pattern\""),
        (
            json!({"properties": {"a": {"pattern": "(?<!a)b"}}}),
            "the pattern \"(?<!a)b\" cannot be used: it looks around",
        ),
        (json!({"pattern": "(a)\\1"}), "it refers back to a group"),
        (json!({"pattern": "("}), "it is no regular expression"),
        (
            json!({"patternProperties": {"a": true, "(?=a)b": true}}),
            "the pattern \"(?=a)b\" cannot be used: it looks around",
        ),
        (json!({"pattern": "(\\w{200}){200}"}), "at \"/pattern\""),
        (json!({"minLength": -1}), "at \"/minLength\""),
    ] {
        let reason = refusal(with(schema.clone()));
        assert!(
            reason.starts_with("json_schema: ") && reason.contains(expected),
            "{reason}: {schema}"
        );
    }
}

#[test]
fn a_pattern_that_blows_up_elsewhere_takes_time_in_proportion() {
    let schema = with(json!({"properties": {"a": {"pattern": "^(a+)+$"}, "b": {"pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"}}})).unwrap();
    let long = "a".repeat(100_000);
    assert!(check(&schema, json!({"a": long, "b": ""})).is_err());
    assert!(check(&schema, json!({"a": format!("{long}!")})).is_err());
    assert!(check(&schema, json!({"b": long})).is_err());
}

#[test]
fn combinations_that_multiply_are_refused_before_they_are_compiled() {
    // Each level asks twice for the next: 2^40 in place, and 2^64 by going deeper.
    let mut definitions = serde_json::Map::new();
    for level in 0..40 {
        let next = json!({"$ref": format!("#/$defs/d{}", level + 1)});
        definitions.insert(format!("d{level}"), json!({"allOf": [next, next]}));
    }
    definitions.insert("d40".into(), json!({"type": "object"}));
    let doubling = json!({"$ref": "#/$defs/d0", "$defs": definitions});
    let deeper = json!({"properties": {"a": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}}});
    for schema in [doubling, deeper] {
        assert!(refusal(with(schema)).contains("could apply more than 10000"));
    }
    let mut chain = serde_json::Map::new();
    for link in 0..1000 {
        chain.insert(
            format!("c{link}"),
            json!({"$ref": format!("#/$defs/c{}", link + 1)}),
        );
    }
    chain.insert("c1000".into(), json!(true));
    let chain = json!({"$ref": "#/$defs/c0", "$defs": chain});
    assert!(refusal(with(chain)).contains("could nest"));
    for circle in [
        json!({"$ref": "#"}),
        json!({"allOf": [{"$ref": "#"}]}),
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"not": {"$ref": "#/$defs/a"}}}}),
    ] {
        assert!(refusal(with(circle)).contains("never end"));
    }
    let patterns: serde_json::Map<String, Value> =
        (0..101).map(|n| (format!("^{n}"), json!({}))).collect();
    assert!(
        refusal(with(json!({"patternProperties": patterns}))).contains("more than 100 patterns")
    );
}

#[test]
fn a_schema_that_refers_to_itself_holds_for_the_deepest_document() {
    let tree = json!({
        "$ref": "#/$defs/node",
        "$defs": {"node": {
            "type": "object",
            "properties": {
                "left": {"$ref": "#/$defs/node"},
                "right": {"anyOf": [{"type": "null"}, {"allOf": [{"$ref": "#/$defs/node"}]}]},
                "value": {"type": "number"},
            },
            "required": ["value"],
            "additionalProperties": false,
        }},
    });
    let schema = with(tree).unwrap();
    let mut document = json!({"value": 0});
    for level in 0..super::super::MAX_DEPTH - 1 {
        let side = if level % 2 == 0 { "left" } else { "right" };
        document = json!({side: document, "value": level});
    }
    assert_eq!(check(&schema, document), Ok(()));
    assert!(check(&schema, json!({"value": 1, "left": {"value": "x"}})).is_err());
}

#[test]
fn the_longest_nesting_that_is_let_in_fits_a_small_stack() {
    // Per level a reference, a combination and another: near the bound for documents of 64 levels.
    let schema = with(json!({
        "allOf": [{"anyOf": [{"$ref": "#/$defs/node"}]}],
        "$defs": {"node": {"properties": {"a": {"allOf": [{"not": {"not": {"$ref": "#/$defs/node"}}}]}}}},
    }))
    .unwrap();
    let mut document = json!({});
    for _ in 0..super::super::MAX_DEPTH - 1 {
        document = json!({"a": document});
    }
    let small = std::thread::Builder::new().stack_size(1 << 20);
    let thread = small.spawn(move || check(&schema, document));
    assert_eq!(thread.unwrap().join().unwrap(), Ok(()));
}

/// JSON Schemas put together at random from keywords that refer, combine and descend.
fn random_json_schema() -> impl Strategy<Value = Value> {
    let reference = prop::sample::select(vec![
        "#",
        "#/",
        "#/$defs/a",
        "#/$defs/b",
        "#/properties/x",
        "#/allOf/0",
        "#a",
        "x",
        "#/$defs/%61",
        "",
    ]);
    let leaf = prop_oneof![
        Just(json!({})),
        any::<bool>().prop_map(Value::from),
        reference.prop_map(|reference| json!({"$ref": reference})),
        "[a-z(){}\\[\\]*+?|.\\\\^$0-9]{0,8}".prop_map(|pattern| json!({"pattern": pattern})),
        (0..4_i64).prop_map(|n| json!({"minimum": n, "maxLength": n, "uniqueItems": true})),
        Just(json!({"type": "object", "required": ["x"]})),
        Just(json!({"type": 7})),
    ];
    leaf.prop_recursive(4, 24, 3, |inner| {
        let keyword = prop::sample::select(vec![
            "allOf",
            "anyOf",
            "oneOf",
            "not",
            "if",
            "items",
            "prefixItems",
            "properties",
            "patternProperties",
            "additionalProperties",
            "unevaluatedProperties",
            "$defs",
            "dependentSchemas",
            "contains",
            "propertyNames",
        ]);
        let part = (keyword, prop::collection::vec(inner, 1..3)).prop_map(|(keyword, parts)| {
            let value = match keyword {
                "allOf" | "anyOf" | "oneOf" | "prefixItems" => Value::from(parts),
                "properties" | "patternProperties" | "$defs" | "dependentSchemas" => {
                    ["a", "b", "x"]
                        .into_iter()
                        .zip(parts)
                        .map(|(name, part)| (name.to_owned(), part))
                        .collect()
                }
                _ => parts.into_iter().next().unwrap_or_default(),
            };
            (keyword.to_owned(), value)
        });
        prop::collection::vec(part, 1..4).prop_map(|parts| parts.into_iter().collect())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_is_let_in_reads_back_and_judges_without_end_or_panic(json_schema in random_json_schema()) {
        let Ok(schema) = with(json_schema) else { return Ok(()) };
        prop_assert_eq!(TableSchema::from_json(&schema.to_json()), Ok(schema.clone()));
        prop_assert_eq!(TableSchema::from_stored(&schema.to_json()), Some(schema.clone()));
        let mut deep = json!({"x": 1});
        for _ in 0..50 {
            deep = json!({"a": deep, "b": [1, "x", null], "x": "text"});
        }
        for document in [json!({}), json!({"x": [[1], [1]]}), deep] {
            let _judged = check(&schema, document);
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(pieces in prop::collection::vec(prop_oneof![
        Just("{\"table\":\"t\",\"fields\":[".to_owned()),
        Just("{\"name\":\"a\",\"field_type\":\"any\"}".to_owned()),
        Just("\"json_schema\":{\"$ref\":\"#/".to_owned()),
        Just("\"indexes\":[{\"name\":\"i\",\"fields\":[\"a\"]}]".to_owned()),
        prop::sample::select(vec!["{", "}", "[", "]", ",", ":", "\"", "null", "\\u"]).prop_map(str::to_owned),
        any::<String>(),
    ], 0..10)) {
        let text = pieces.concat();
        if let Ok(schema) = TableSchema::from_json(&text) {
            prop_assert!(text.contains(schema.table().as_str()));
        }
    }
}
