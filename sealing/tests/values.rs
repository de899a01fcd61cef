//! Sealed values: the vectors that Python made (`vectors/generate.py`), and that nothing but the
//! blob in its place opens.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use data_encoding::HEXLOWER;
use nimbus_sealing::value::{
    Context, FieldKey, LEAST, NotOpened, OVERHEAD, is_mac_of, mac_of, open, salt_of, seal,
};
use proptest::prelude::*;
use serde_json::Value;

fn vectors() -> Value {
    serde_json::from_str(include_str!("vectors/sealed.json")).unwrap()
}

fn hex(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    hex(value).try_into().unwrap()
}

/// The context of a case, whose row has bytes in hex.
fn context(vectors: &Value, case: &Value) -> Context {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let start = Context::new(
        &text(&vectors["subject"]),
        &text(&vectors["file_id"]),
        &text(&case["column"]),
    );
    let row = case["row"].as_array().unwrap().iter();
    row.fold(start, |context, part| match part {
        Value::Null => context.absent(),
        Value::Number(number) => context.integer(number.as_i64().unwrap()),
        part => context.bytes(&hex(part)),
    })
}

#[test]
fn values_are_sealed_and_opened_as_the_vectors_say() {
    let vectors = vectors();
    let (key, dek_id) = (array(&vectors["seal_key"]), array(&vectors["dek_id"]));
    let cases = vectors["values"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let (content, blob) = (hex(&case["content"]), hex(&case["blob"]));
        let context = context(&vectors, case);
        let salt = match case["findable"].as_bool().unwrap() {
            true => salt_of(&array(&vectors["blind_key"]), &context, &content),
            false => array(&case["salt"]),
        };
        assert_eq!(salt, array(&case["salt"]), "{}", case["what"]);
        let sealed = seal(&key, dek_id, &salt, &context, &content);
        assert_eq!(sealed, blob, "{}", case["what"]);
        assert_eq!(open(&key, dek_id, &context, blob), Ok(content));
    }
}

#[test]
fn what_the_vectors_refuse_is_refused_for_that_reason() {
    let vectors = vectors();
    let (key, dek_id) = (array(&vectors["seal_key"]), array(&vectors["dek_id"]));
    let cases = vectors["refused"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let expected = match case["error"].as_str().unwrap() {
            "malformed" => NotOpened::Malformed,
            "other-key" => NotOpened::OtherKey,
            _ => NotOpened::Forged,
        };
        let opened = open(&key, dek_id, &context(&vectors, case), hex(&case["blob"]));
        assert_eq!(opened, Err(expected), "{}", case["what"]);
    }
}

#[test]
fn entries_are_blinded_as_the_vectors_say() {
    let vectors = vectors();
    let cases = vectors["blind"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let path: Vec<String> = serde_json::from_value(case["path"].clone()).unwrap();
        let table = case["table"].as_str().unwrap();
        let key = FieldKey::new(&array(&vectors["blind_key"]), table, &path);
        let entry = key.blind(&hex(&case["value"]));
        assert_eq!(entry, array(&case["entry"]), "{case}");
        assert_eq!(format!("{key:?}"), "FieldKey([REDACTED])");
    }
}

#[test]
fn rows_have_the_macs_that_the_vectors_say() {
    let vectors = vectors();
    let key = array(&vectors["blind_key"]);
    let cases = vectors["macs"].as_array().unwrap();
    assert!(cases.len() > 1);
    for (case, other) in cases.iter().zip(cases.iter().cycle().skip(1)) {
        let (context, mac) = (context(&vectors, case), hex(&case["mac"]));
        assert_eq!(mac_of(&key, &context)[..], mac, "{case}");
        assert!(is_mac_of(&key, &context, &mac));
        assert!(!is_mac_of(&key, &context, &hex(&other["mac"])));
        assert!(!is_mac_of(&key, &context, &mac[..31]));
    }
}

#[test]
fn sizes_are_known_by_their_class_alone() {
    let context = Context::new("s", "f", "c");
    let size = |content: usize| {
        let blob = seal(&[1; 32], [2; 8], &[3; 32], &context, &vec![b'x'; content]);
        blob.len() - OVERHEAD
    };
    assert_eq!([0, 1, 100, 255].map(size), [LEAST; 4]);
    assert_eq!([256, 271, 272].map(size), [272, 272, 288]);
    for content in [1 << 10, 10_000, 1 << 16, 1_000_000] {
        let padded = size(content);
        assert!(
            content < padded && padded <= content * 112 / 100 + LEAST,
            "{content}: {padded}"
        );
    }
}

fn any_context() -> impl Strategy<Value = (String, String, String, Vec<Part>)> {
    let part = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..6).prop_map(Part::Bytes),
        any::<i64>().prop_map(Part::Integer),
        Just(Part::Absent),
    ];
    let row = prop::collection::vec(part, 0..4);
    ("[a-c]{0,3}", "[a-c]{0,3}", "[a-c]{0,3}", row)
}

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Bytes(Vec<u8>),
    Integer(i64),
    Absent,
}

fn built((subject, file_id, column, row): &(String, String, String, Vec<Part>)) -> Context {
    let start = Context::new(subject, file_id, column);
    row.iter().fold(start, |context, part| match part {
        Part::Bytes(bytes) => context.bytes(bytes),
        Part::Integer(integer) => context.integer(*integer),
        Part::Absent => context.absent(),
    })
}

/// Integers are bound as their bytes: these two are one context.
fn same(
    one: &(String, String, String, Vec<Part>),
    other: &(String, String, String, Vec<Part>),
) -> bool {
    let plain = |row: &[Part]| -> Vec<Part> {
        let plain = |part: &Part| match part {
            Part::Integer(integer) => Part::Bytes(integer.to_be_bytes().to_vec()),
            part => part.clone(),
        };
        row.iter().map(plain).collect()
    };
    (&one.0, &one.1, &one.2) == (&other.0, &other.1, &other.2) && plain(&one.3) == plain(&other.3)
}

proptest! {
    #[test]
    fn a_content_comes_back_whole(content in prop::collection::vec(any::<u8>(), 0..600), at in any_context()) {
        let context = built(&at);
        let blob = seal(&[1; 32], [2; 8], &[3; 32], &context, &content);
        prop_assert_eq!(open(&[1; 32], [2; 8], &context, blob), Ok(content));
    }

    #[test]
    fn no_bit_can_be_another(content in prop::collection::vec(any::<u8>(), 0..300), bit in any::<prop::sample::Index>()) {
        let context = Context::new("s", "f", "c").integer(1);
        let mut blob = seal(&[1; 32], [2; 8], &[3; 32], &context, &content);
        let bit = bit.index(blob.len() * 8);
        blob[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(open(&[1; 32], [2; 8], &context, blob).is_err());
    }

    #[test]
    fn no_length_can_be_another(cut in 1..400_usize, more in prop::collection::vec(any::<u8>(), 1..40)) {
        let context = Context::new("s", "f", "c");
        let blob = seal(&[1; 32], [2; 8], &[3; 32], &context, b"content");
        let shorter = blob[..blob.len().saturating_sub(cut)].to_vec();
        prop_assert!(open(&[1; 32], [2; 8], &context, shorter).is_err());
        let longer = [&blob[..], &more].concat();
        prop_assert!(open(&[1; 32], [2; 8], &context, longer).is_err());
    }

    #[test]
    fn another_place_or_key_does_not_open(one in any_context(), other in any_context(), key in any::<[u8; 32]>()) {
        let blob = seal(&[1; 32], [2; 8], &[3; 32], &built(&one), b"content");
        let opened = open(&[1; 32], [2; 8], &built(&other), blob.clone());
        prop_assert_eq!(opened.is_ok(), same(&one, &other));
        prop_assume!(key != [1; 32]);
        let opened = open(&key, [2; 8], &built(&one), blob);
        prop_assert_eq!(opened, Err(NotOpened::Forged));
    }

    #[test]
    fn a_value_that_is_looked_for_is_equal_where_its_content_is(one in "[ab]{0,3}", other in "[ab]{0,3}") {
        let context = Context::new("s", "f", "c");
        let salt = |content: &str| salt_of(&[5; 32], &context, content.as_bytes());
        prop_assert_eq!(salt(&one) == salt(&other), one == other);
        let elsewhere = salt_of(&[5; 32], &Context::new("s", "f", "d"), one.as_bytes());
        prop_assert_ne!(salt(&one), elsewhere);
    }

    #[test]
    fn fields_have_keys_of_their_own(one in path(), other in path(), value in any::<[u8; 8]>()) {
        let blind = |(table, path): &(String, Vec<String>)| FieldKey::new(&[5; 32], table, path).blind(&value);
        prop_assert_eq!(blind(&one) == blind(&other), one == other);
    }
}

fn path() -> impl Strategy<Value = (String, Vec<String>)> {
    ("[a.]{0,2}", prop::collection::vec("[a.]{0,2}", 1..3))
}
