//! Keyset pagination: a page begins after a [`Position`], wherever the documents before it have
//! gone meanwhile.
//!
//! A page in the order of an indexed field is found in up to three ranges of the index: the rest of
//! the documents with the value of the position, the rest of the values of its type, and the types
//! after it. Each is one range of an index by (rank, key, insertion), where one comparison of all
//! three would have engines walk there from the beginning of the type.

use super::MAX_PAGE_BYTES;
use crate::documents::{
    Document, MAX_FIELDS_BYTES,
    query::{Condition, Field, Filter, Position, Query, QueryPage},
};

/// Documents that are found by one walk of an index, or of the table.
#[derive(Debug, Clone, Copy)]
pub(super) enum KeyRange<'a> {
    /// All of them.
    All,
    /// Those after a position, whatever the order.
    After(&'a Position),
    /// Those with the value of the position, after it.
    Ties(&'a Position),
    /// Those with values of its type that come after it.
    SameType(&'a Position),
    /// Those with values of types that come after it.
    LaterTypes(&'a Position),
}

/// The ranges in which the documents of a query lie after a position, one behind the other.
/// `is_indexed`: whether an index can be gone into by the field at the end of this path.
pub(super) fn ranges<'a>(
    query: &Query,
    after: Option<&'a Position>,
    is_indexed: impl Fn(&[String]) -> bool,
) -> Vec<KeyRange<'a>> {
    let Some(position) = after else {
        return vec![KeyRange::All];
    };
    let Some(names) = ordered_names(query).filter(|names| is_indexed(names)) else {
        return vec![KeyRange::After(position)];
    };
    let (mut one_type, mut one_value) = (false, !position.rank.is_compared());
    for Filter { field, condition } in &query.filters {
        if !matches!(field, Field::Path(path) if path == names) {
            continue;
        }
        match condition {
            // The list is the shorter way into the index.
            Condition::In(_) => return vec![KeyRange::After(position)],
            Condition::Equal(_) | Condition::Exists(false) => {
                (one_type, one_value) = (true, true);
            }
            Condition::Compared(..) => one_type = true,
            Condition::NotEqual(_) | Condition::Exists(true) => {}
        }
    }
    let mut ranges = vec![KeyRange::Ties(position)];
    if !one_value {
        ranges.push(KeyRange::SameType(position));
    }
    if !one_type {
        ranges.push(KeyRange::LaterTypes(position));
    }
    ranges
}

/// The path that the order goes by, if it goes by one.
fn ordered_names(query: &Query) -> Option<&[String]> {
    match &query.order.as_ref()?.field {
        Field::Path(names) => Some(names),
        Field::Id | Field::Created | Field::Updated | Field::Version => None,
    }
}

/// A page that is being filled.
#[derive(Debug)]
pub(super) struct PageBuilder {
    limit: usize,
    most_bytes: usize,
    documents: Vec<Document>,
    /// Of their fields.
    bytes: usize,
    /// Where it ends, if it ends with the last document.
    last: Option<Position>,
}

impl PageBuilder {
    /// A page of at most so many documents and bytes.
    pub(super) fn new(limit: usize, most_bytes: usize) -> Self {
        Self {
            limit,
            most_bytes,
            documents: Vec::with_capacity(limit.min(COMMON)),
            bytes: 0,
            last: None,
        }
    }

    /// Takes the next document, unless the page is full. `read` reads it, `take_room` takes room
    /// for its bytes, and `position` is its place in the order of the query.
    pub(super) fn take<E>(
        &mut self,
        read: impl FnOnce() -> Result<Document, E>,
        take_room: impl FnOnce(usize) -> Result<(), E>,
        position: impl FnOnce() -> Result<Position, E>,
    ) -> Result<bool, E> {
        if self.documents.len() == self.limit {
            return Ok(false);
        }
        let document = read()?;
        let size = document.weight();
        self.bytes += size;
        if self.bytes > self.most_bytes {
            return Ok(false);
        }
        take_room(size)?;
        self.documents.push(document);
        // Kept for the last one alone: a key may be as long as a document.
        if self.documents.len() == self.limit || self.bytes + LARGEST > self.most_bytes {
            self.last = Some(position()?);
        }
        Ok(true)
    }

    /// The page; `more`: it does not have all that the query finds.
    pub(super) fn finish(self, more: bool) -> QueryPage {
        QueryPage {
            documents: self.documents,
            next: self.last.filter(|_| more),
        }
    }
}

/// The weight of no document is more.
const LARGEST: usize = MAX_FIELDS_BYTES + 1024;
/// As many documents as most pages have.
const COMMON: usize = 32;

// A page always has room for one document.
const _: () = assert!(LARGEST < MAX_PAGE_BYTES);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documents::query::{Key, TypeRank};

    fn query(filters: &str) -> Query {
        let json = format!(r#"{{"table":"t","filters":[{filters}],"order":{{"field":"a"}}}}"#);
        Query::from_json(&json).unwrap()
    }

    fn names(ranges: &[KeyRange<'_>]) -> Vec<&'static str> {
        let name = |range: &KeyRange<'_>| match range {
            KeyRange::All => "all",
            KeyRange::After(_) => "after",
            KeyRange::Ties(_) => "ties",
            KeyRange::SameType(_) => "same type",
            KeyRange::LaterTypes(_) => "later types",
        };
        ranges.iter().map(name).collect()
    }

    #[test]
    fn a_position_splits_an_index_into_the_ranges_that_can_have_documents() {
        let position = |rank| Position {
            rank,
            key: Key::Integer(1),
            seq: 7,
        };
        let (number, null) = (position(TypeRank::Number), position(TypeRank::Null));
        let of = |filters: &str, after, indexed| {
            let query = query(filters);
            names(&ranges(&query, after, |names| indexed && names == ["a"]))
        };
        assert_eq!(of("", None, true), ["all"]);
        assert_eq!(of("", Some(&number), false), ["after"]);
        let three = ["ties", "same type", "later types"];
        assert_eq!(of("", Some(&number), true), three);
        // All values of the type count as equal.
        assert_eq!(of("", Some(&null), true), ["ties", "later types"]);
        let above = r#"{"field":"a","op":"gt","value":0}"#;
        assert_eq!(of(above, Some(&number), true), ["ties", "same type"]);
        let equal = r#"{"field":"a","op":"eq","value":1}"#;
        assert_eq!(of(equal, Some(&number), true), ["ties"]);
        let list = r#"{"field":"a","op":"in","value":[1,2]}"#;
        assert_eq!(of(list, Some(&number), true), ["after"]);
        let other = r#"{"field":"b","op":"eq","value":1}"#;
        assert_eq!(of(other, Some(&number), true), three);
    }
}
