//! What indexes without order refuse, as those of sealed tenants are: all else is answered as by
//! every other backend.

use crate::documents::query::{Condition, Field, Order, Query};

/// Cases, and places of their queries, that need the order of an index where one is on each field.
pub(super) const BLIND_REFUSES: &[(&str, &[usize])] = &[
    (
        "numbers compare by their worth, integers of 64 bits exactly, and only with numbers",
        &[4, 5, 6, 7, 10],
    ),
    (
        "integers beyond 2^53 are told apart up to 64 bits with a sign; beyond that they are doubles",
        &[2, 5, 7],
    ),
    (
        "strings compare by Unicode code point, as they are, however they were escaped",
        &[4, 5, 7, 8],
    ),
    (
        "null is a value, and a field that is missing has none",
        &[2, 3, 4, 5, 8, 10],
    ),
    (
        "booleans compare with booleans, false before true",
        &[3, 4, 5],
    ),
    (
        "an order goes by type first: missing, null, booleans, numbers, strings, lists, objects; equals by insertion",
        &[0, 1, 2, 3, 4],
    ),
    (
        "paths lead through objects and not into lists, and names are taken as they are",
        &[1, 2, 3, 14],
    ),
    (
        "lists and objects have no value that a filter compares",
        &[2, 4],
    ),
];

/// Whether a query needs the order of one of these indexes, and finds its documents by none of
/// them: an index without order has it refused.
pub(super) fn needs_order(query: &Query, indexes: &[Vec<String>]) -> bool {
    let on = |field: &Field, path: &String| matches!(field, Field::Path(names) if names.join(".") == *path);
    let has = |path: &String, suits: fn(&Condition) -> bool| {
        let mut filters = query.filters.iter();
        filters.any(|filter| on(&filter.field, path) && suits(&filter.condition))
    };
    let finds = |condition: &Condition| {
        matches!(
            condition,
            Condition::Equal(_) | Condition::In(_) | Condition::Exists(false)
        )
    };
    let ranges = |condition: &Condition| {
        matches!(condition, Condition::Compared(..) | Condition::Exists(true))
    };
    let orders = |index: &Vec<String>| {
        let by = |order: &Order| index.len() == 1 && on(&order.field, &index[0]);
        query.filters.is_empty() && query.order.as_ref().is_some_and(by)
    };
    !indexes.iter().any(|index| has(&index[0], finds))
        && indexes
            .iter()
            .any(|index| has(&index[0], ranges) || orders(index))
}
