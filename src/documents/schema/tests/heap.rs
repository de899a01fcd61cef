//! What checks and compiled schemas take of the heap, counted by an allocator.
#![expect(unsafe_code, reason = "an allocator is made of unsafe calls")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use serde_json::{Value, json};

use super::super::{Violation, json_schema::compile};
use super::{refusal, with};
use crate::documents::Fields;

/// The system's allocator, with a count for each thread.
struct Counted;

#[global_allocator]
static COUNTED: Counted = Counted;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    // A thread that ends has no count any more.
    let _ended = LIVE.try_with(|live| {
        live.set(live.get() + change);
        let _ended = MOST.try_with(|most| most.set(most.get().max(live.get())));
    });
}

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.dealloc(block, layout) }
    }
}

/// What some work leaves on the heap, and how much was there at most meanwhile.
fn heap<R>(work: impl FnOnce() -> R) -> (R, usize, usize) {
    let before = LIVE.get();
    MOST.set(before);
    let result = work();
    let over = |now: isize| usize::try_from(now - before).unwrap_or(0);
    (result, over(LIVE.get()), over(MOST.get()))
}

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
fn what_is_compiled_takes_no_more_than_it_is_weighed_at() {
    let long = "n".repeat(1000);
    let below = |keyword: &str| format!(r#"{{"properties":{{"{long}":{{"{keyword}":["#);
    let at_root = |keyword: &str| format!(r#"{{"{keyword}":["#);
    let mut cases = Vec::new();
    for item in [
        "{}",
        "true",
        "false",
        r#"{"type":"null"}"#,
        r#"{"type":["null","string"]}"#,
        r#"{"not":{}}"#,
        r#"{"minimum":1}"#,
        r#"{"const":1}"#,
        r#"{"const":[[],{},[]]}"#,
        r#"{"const":{"a":1}}"#,
        r#"{"enum":[1,2]}"#,
        r#"{"enum":["a"]}"#,
        r#"{"items":{}}"#,
        r#"{"contains":{}}"#,
        r#"{"propertyNames":{}}"#,
        r##"{"$ref":"#"}"##,
        r#"{"format":"email"}"#,
        r#"{"required":["b"]}"#,
        r#"{"required":[]}"#,
        r#"{"dependentRequired":{"a":["b"]}}"#,
        r#"{"dependentSchemas":{"a":{}}}"#,
        r#"{"additionalProperties":{}}"#,
        r#"{"additionalProperties":false}"#,
        r#"{"properties":{"a":{}}}"#,
        r#"{"properties":{"a":{}},"additionalProperties":{}}"#,
        r#"{"properties":{"a":{}},"required":["a"],"additionalProperties":false}"#,
        r#"{"unevaluatedProperties":false}"#,
        r#"{"unevaluatedItems":{}}"#,
        r#"{"x":1}"#,
        r#"{"title":"a","default":{"a":[]}}"#,
        r#"{"if":{},"then":{},"else":{}}"#,
        r#"{"oneOf":[{}]}"#,
        r#"{"allOf":[true]}"#,
        r#"{"minLength":1,"maxLength":2,"multipleOf":0.5}"#,
        r#"{"minItems":1,"maxItems":2,"uniqueItems":true,"minContains":1,"minProperties":1,"maxProperties":2}"#,
        r#"{"minimum":1.5,"maximum":1e300,"exclusiveMinimum":0,"exclusiveMaximum":5}"#,
        r#"{"contentMediaType":"a","contentEncoding":"base64","contentSchema":{}}"#,
    ] {
        for before in [
            at_root("anyOf"),
            at_root("prefixItems"),
            at_root("allOf"),
            below("prefixItems"),
            below("anyOf"),
        ] {
            let after = "]".to_owned() + &"}".repeat(before.matches('{').count());
            // As many as are let in.
            let mut share = 1;
            let let_in = loop {
                let count = (60_000 - before.len()) / (item.len() + 1) / share;
                let schema = format!("{before}{}{after}", vec![item; count.max(1)].join(","));
                if share > 64 || with(serde_json::from_str(&schema).unwrap()).is_ok() {
                    break schema;
                }
                share *= 2;
            };
            cases.push(let_in);
        }
    }
    cases.extend([
        format!(r#"{{"enum":[{}]}}"#, numbered(5000, |n| format!(r#"{{"a":{n}}}"#))),
        filled(r#"{"const":["#, "[]", "]}"),
        filled(r#"{"enum":["#, "{}", "]}"),
        format!(r#"{{"required":[{}]}}"#, numbered(7000, |n| format!("\"{n:x}\""))),
        format!(r#"{{"dependentRequired":{{{}}}}}"#, numbered(3000, |n| format!(r#""{n:x}":["a"]"#))),
        format!(r#"{{"properties":{{{}}},"additionalProperties":false}}"#, numbered(4000, |n| format!(r#""{n:x}":{{}}"#))),
        format!(r#"{{"properties":{{{}}},"unevaluatedProperties":false}}"#, numbered(2000, |n| format!(r#""{n:x}":true"#))),
        format!(r#"{{{}}}"#, numbered(3000, |n| format!(r#""x{n:x}":1"#))),
        format!("{}{{}}{}", r#"{"not":"#.repeat(50), "}".repeat(50)),
        format!(r#"{{"anyOf":[{}]}}"#, numbered(90, |n| format!(r#"{{"pattern":"[a-z]{{{n}}}\\pL"}}"#))),
        format!(r##"{{"$ref":"#/$defs/a0","$defs":{{{},"a300":{{}}}}}}"##, numbered(300, |n| format!(r##""a{n}":{{"$ref":"#/$defs/a{}"}}"##, n + 1))),
        format!(r##"{{"$ref":"#/$defs/a","$defs":{{"a":{{"anyOf":[{}]}}}},"unevaluatedProperties":false}}"##, numbered(1000, |n| format!(r#"{{"properties":{{"{n}":{{}}}}}}"#))),
    ]);
    let _warm = compile(r#"{"pattern":"a","not":{}}"#);
    let mut let_in = 0;
    for schema in cases {
        let shown = &schema[..schema.len().min(120)];
        let (compiled, kept, most) = heap(|| compile(&schema));
        let Ok(compiled) = compiled else { continue };
        let_in += 1;
        assert!(
            kept <= compiled.bytes,
            "{shown}: {kept} of {}",
            compiled.bytes
        );
        assert!(
            most <= 2 * compiled.bytes + (8 << 20),
            "{shown}: {most} of {}",
            compiled.bytes
        );
    }
    assert!(let_in > 150, "{let_in}");
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
