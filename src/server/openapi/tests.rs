//! The document as it is served.

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;
use crate::documents::query::{MAX_FILTERS, MAX_IN, MAX_PAGE};
use crate::documents::schedule::{MAX_DELAY, MAX_EXPRESSION_BYTES};
use crate::documents::{MAX_BATCH, MAX_JOURNAL_PAGE};
use crate::server::error::Code;

fn parsed() -> Value {
    serde_json::from_str(document()).unwrap()
}

#[test]
fn documents_every_route_and_no_other() {
    let document = parsed();
    let described: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().keys();
            methods.map(|method| (method.to_uppercase(), path.clone()))
        })
        .collect();
    let routed: BTreeSet<(String, String)> = route_table()
        .into_iter()
        .map(|route| (route.method.to_string(), documented(route.path)))
        .collect();
    assert_eq!(described, routed);
}

#[test]
fn every_operation_has_a_name_of_its_own_a_summary_and_its_refusals() {
    let document = parsed();
    let mut names = BTreeSet::new();
    for item in document["paths"].as_object().unwrap().values() {
        for operation in item.as_object().unwrap().values() {
            let name = operation["operationId"].as_str().unwrap();
            assert!(names.insert(name.to_owned()), "{name} twice");
            assert!(operation["summary"].is_string(), "{name}");
            for status in ["400", "403", "500", "503"] {
                assert!(
                    operation["responses"][status].is_object(),
                    "{name} {status}"
                );
            }
        }
    }
}

#[test]
fn the_limits_are_those_of_the_code() {
    let document = parsed();
    let limit = |shape: &str, member: &str, limit: &str| {
        let pointer = format!("/components/schemas/{shape}/properties/{member}/{limit}");
        document.pointer(&pointer).and_then(Value::as_u64)
    };
    let is = |limit: usize| Some(limit as u64);
    assert_eq!(limit("Batch", "mutations", "maxItems"), is(MAX_BATCH));
    for query in ["Query", "QueryInPages"] {
        assert_eq!(limit(query, "filters", "maxItems"), is(MAX_FILTERS));
    }
    assert_eq!(limit("Query", "limit", "maximum"), is(MAX_PAGE));
    assert_eq!(limit("InFilter", "value", "maxItems"), is(MAX_IN));
    assert_eq!(
        limit("IntervalSchedule", "seconds", "maximum"),
        Some(MAX_DELAY.as_secs())
    );
    assert_eq!(
        limit("CronSchedule", "expression", "maxLength"),
        is(MAX_EXPRESSION_BYTES)
    );
    assert_eq!(
        limit("PaginatedQuery", "page_size", "maximum"),
        is(MAX_PAGE)
    );
    let journal = &document["paths"]["/api/tenants/{t}/journal"]["get"]["parameters"];
    let named = |name: &str| {
        journal
            .as_array()
            .unwrap()
            .iter()
            .find(|one| one["name"] == name)
    };
    assert_eq!(
        named("limit").unwrap()["schema"]["maximum"],
        MAX_JOURNAL_PAGE
    );
}

/// Generated clients need both: a name for each kind, and the member that tells kinds apart.
#[test]
fn what_has_several_kinds_names_each_and_says_how_to_tell_them_apart() {
    let document = parsed();
    for (shape, member) in [("Mutation", "type"), ("Schedule", "type"), ("Filter", "op")] {
        let kinds = &document["components"]["schemas"][shape];
        assert_eq!(kinds["discriminator"]["propertyName"], member, "{shape}");
        let mapping = kinds["discriminator"]["mapping"].as_object().unwrap();
        let mut told: BTreeSet<&str> = BTreeSet::new();
        for (word, target) in mapping {
            let target = target.as_str().unwrap();
            told.insert(target);
            let kind = document.pointer(&target[1..]).unwrap();
            let words = &kind["properties"][member];
            let words = words["$ref"].as_str().map_or(words, |reference| {
                document.pointer(&reference[1..]).unwrap()
            });
            let words = words["enum"].as_array().unwrap();
            assert!(words.contains(&word.as_str().into()), "{shape} {word}");
            let required = kind["required"].as_array().unwrap();
            assert!(required.contains(&member.into()), "{shape} {word}");
        }
        let named = kinds["oneOf"].as_array().unwrap().iter();
        let named: BTreeSet<&str> = named.map(|kind| kind["$ref"].as_str().unwrap()).collect();
        assert_eq!(told, named, "{shape}");
    }
}

#[test]
fn every_reference_leads_to_a_shape_and_every_code_is_there() {
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                if let Some(Value::String(to)) = members.get("$ref") {
                    found.insert(to.clone());
                }
                members
                    .values()
                    .for_each(|member| references(member, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    let document = parsed();
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
    let codes = &document["components"]["schemas"]["ErrorCode"]["enum"];
    for code in Code::ALL {
        assert!(codes.as_array().unwrap().contains(&code.as_str().into()));
    }
}
