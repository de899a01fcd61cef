//! The plainest evaluator of queries, in memory: what every store's answers are compared with.

use super::Query;
use super::evaluate::{lookup, matches};
use crate::documents::Document;

/// The documents that a query finds among those of its table, which come in the order of their
/// insertion.
pub(crate) fn find<'a>(documents: &'a [Document], query: &Query) -> Vec<&'a Document> {
    let mut found: Vec<_> = documents
        .iter()
        .filter(|document| matches(document, query))
        .collect();
    if let Some(order) = &query.order {
        found.sort_by(|a, b| lookup(a, &order.field).order(&lookup(b, &order.field)));
        if order.descending {
            found.reverse();
        }
    }
    found
}
