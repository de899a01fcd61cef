//! Queries as SQL. Values are bound parameters, and so is the path to a field without an index;
//! that to one with an index stands in the text as the index has it. So the text depends on the
//! shape of a query and its limit, and not on its values.
//!
//! What each comparison means is defined in `docs/queries.md`. SQLite compares within a type as
//! that page says: integers with doubles exactly, text by its UTF-8 bytes, which is by code points.
//! Types are kept apart by `json_type`.

mod conditions;

use std::borrow::Cow;
use std::ops::Range;

use rusqlite::types::Value as Sql;

use super::expressions::Ordered;
use super::indexes::{Indexed, Indexes};
use super::rows::DOCUMENT;
use super::system_fields::Seqs;
use crate::documents::query::{Condition, Field, Filter, Key, Order, Position, Query, Relation};
use crate::tenants::keyset::{self, KeyRange};
use conditions::{BESIDES, Conditions, ID_TEXT, NUMBER, STRING, put};

/// A statement that finds documents, and what is bound to it.
#[derive(Debug)]
pub(super) struct Statement {
    /// `SELECT`, the columns of a place, then those of a stored document, and the rest.
    text: String,
    /// Where in it the columns of the document stand.
    document: Range<usize>,
    pub(super) parameters: Vec<Sql>,
    /// Whether the query has filters, beside what its position asks for.
    pub(super) is_filtered: bool,
}

impl Statement {
    /// What finds the documents of a query after a position, at most `limit` and one more:
    /// statement after statement. `seqs`: where `seq` stands for `_creationTime`, the documents
    /// that its filters leave.
    pub(super) fn all(
        number: i64,
        query: &Query,
        after: Option<&Position>,
        limit: usize,
        indexes: &Indexes,
        seqs: Option<Seqs>,
    ) -> Vec<Self> {
        let indexed = indexed(indexes, query);
        let is_indexed = |names: &[String]| indexed.iter().any(|field| field.names == *names);
        keyset::ranges(query, after, is_indexed)
            .into_iter()
            .map(|range| Draft::new(range, &indexed, seqs).finish(number, query, limit))
            .collect()
    }

    /// Its text, for the places of the documents alone: `seq`, and the rank and key that the order
    /// goes by.
    pub(super) fn places(&self) -> String {
        let Range { start, end } = self.document;
        format!("{}{}", &self.text[..start], &self.text[end..])
    }

    /// Its text, for the documents as well: behind the columns of [`Statement::places`] those of a
    /// stored document.
    pub(super) fn documents(&self) -> &str {
        &self.text
    }
}

/// The fields of a query by which an index can be gone into: the first of an index, and those after
/// ones that have to be equal to something.
fn indexed<'a>(indexes: &'a Indexes, query: &Query) -> Vec<&'a Indexed> {
    let mut indexed = Vec::new();
    // Nothing finds fewer documents than their ids.
    let by_id = |filter: &Filter| {
        let names_some = matches!(filter.condition, Condition::Equal(_) | Condition::In(_));
        filter.field == Field::Id && names_some
    };
    if query.filters.iter().any(by_id) {
        return indexed;
    }
    for fields in indexes {
        for field in fields {
            indexed.push(field);
            let pinned = query.filters.iter().any(|filter| {
                matches!(&filter.condition, Condition::Equal(_))
                    && matches!(&filter.field, Field::Path(path) if *path == field.names)
            });
            if !pinned {
                break;
            }
        }
    }
    indexed
}

/// A condition on a field's rank or key.
struct Atom<'a> {
    on: On,
    bound: Bound,
    /// What is compared, where it is a column of an index.
    column: &'a str,
    sql: String,
}

#[derive(Clone, Copy, PartialEq)]
enum On {
    Rank,
    Key,
    /// Both, or something else.
    Other,
}

#[derive(Clone, Copy, PartialEq)]
enum Bound {
    Equal,
    Below,
    Above,
    Other,
}

/// What an order goes by.
enum By<'a> {
    /// The order of insertion.
    Insertion,
    /// `_creationTime`, for which `seq` stands.
    Seq,
    /// `_id`.
    Id,
    /// Rank and key of a field.
    Field(Cow<'a, Ordered>),
}

/// A statement in the making.
struct Draft<'a> {
    range: KeyRange<'a>,
    indexed: &'a [&'a Indexed],
    seqs: Option<Seqs>,
    parameters: Vec<Sql>,
}

impl<'a> Draft<'a> {
    fn new(range: KeyRange<'a>, indexed: &'a [&'a Indexed], seqs: Option<Seqs>) -> Self {
        Self {
            range,
            indexed,
            seqs,
            parameters: Vec::new(),
        }
    }

    fn finish(mut self, number: i64, query: &Query, limit: usize) -> Statement {
        let descending = matches!(
            query.order,
            Some(Order {
                descending: true,
                ..
            })
        );
        let direction = if descending { "DESC" } else { "ASC" };
        let by = self.by(query);
        let mut conditions = Conditions::default();
        let mut pinned = (false, false);
        for filter in &query.filters {
            let of_order = query
                .order
                .as_ref()
                .is_some_and(|order| order.field == filter.field);
            for atom in self.filter(filter) {
                if of_order && self.literal(&filter.field).is_some() {
                    pinned.0 |= atom.on == On::Rank && atom.bound == Bound::Equal;
                    pinned.1 |= atom.on == On::Key && atom.bound == Bound::Equal;
                }
                let leads = !of_order || self.leads(&atom, descending);
                // A plus keeps SQLite from going into the index by it, and not by the position.
                let plus = match atom.on {
                    On::Rank | On::Key if !leads => "+",
                    _ => "",
                };
                let Atom { column, sql, .. } = atom;
                conditions.add(format_args!("{plus}{column}{sql}"));
            }
        }
        if let Some(Seqs { from, to }) = self.seqs.filter(|seqs| *seqs != Seqs::ALL) {
            let (from, to) = (self.bind(from), self.bind(to));
            conditions.add(format_args!("seq >= {from} AND seq < {to}"));
        }
        let (rank, key) = match &by {
            By::Insertion => ("0", "0"),
            By::Seq => (NUMBER, "created"),
            By::Id => (STRING, ID_TEXT),
            By::Field(ordered) => (ordered.rank.as_str(), ordered.key.as_str()),
        };
        let fixed = self.position(&by, descending, &mut conditions);
        // A column that has one value would make SQLite sort by it all the same.
        let order = match (&by, pinned.0 || fixed.0, pinned.1 || fixed.1) {
            (By::Insertion, ..) => "seq".to_owned(),
            (By::Seq, ..) | (By::Field(_), true, true) => format!("seq {direction}"),
            (By::Id, ..) => format!("id {direction}"),
            (By::Field(_), true, false) => format!("3 {direction}, seq {direction}"),
            (By::Field(_), false, _) => {
                format!("2 {direction}, 3 {direction}, seq {direction}")
            }
        };
        let Conditions(conditions) = conditions;
        let columns = rank.len() + key.len();
        let mut text = String::with_capacity(conditions.len() + columns + BESIDES);
        for part in ["SELECT seq, ", rank, ", ", key] {
            text.push_str(part);
        }
        let places = text.len();
        text.push_str(", ");
        text.push_str(DOCUMENT);
        let document = places..text.len();
        // One more says whether there are more. SQLite plans by the limit: were it bound, each
        // binding would have it plan anew.
        let limit = limit + 1;
        put(
            &mut text,
            format_args!(" FROM documents_{number}{conditions} ORDER BY {order} LIMIT {limit}"),
        );
        Statement {
            text,
            document,
            parameters: self.parameters,
            is_filtered: !query.filters.is_empty(),
        }
    }

    /// Adds what the position asks for, and says whether rank and key have one value by that.
    fn position(
        &mut self,
        by: &By<'_>,
        descending: bool,
        conditions: &mut Conditions,
    ) -> (bool, bool) {
        let beyond = if descending { '<' } else { '>' };
        let position = match self.range {
            KeyRange::All => return (false, false),
            KeyRange::After(position)
            | KeyRange::Ties(position)
            | KeyRange::SameType(position)
            | KeyRange::LaterTypes(position) => position,
        };
        let Ordered { rank, key } = match by {
            By::Field(ordered) => &**ordered,
            By::Insertion | By::Seq => {
                let seq = self.bind(position.seq);
                // Without an order `beyond` is what follows.
                conditions.add(format_args!("seq {beyond} {seq}"));
                return (false, false);
            }
            By::Id => {
                let relation = if descending {
                    Relation::Less
                } else {
                    Relation::Greater
                };
                let beyond = match &position.key {
                    Key::Text(id) => self.id(Some(relation), id),
                    // No cursor of ids has another key.
                    Key::Integer(_) | Key::Double(_) => "FALSE".to_owned(),
                };
                conditions.add(format_args!("{beyond}"));
                return (false, false);
            }
        };
        let at = self.bind(position.rank.number());
        let several = position.rank.is_compared();
        match self.range {
            KeyRange::All => (false, false),
            KeyRange::After(_) => {
                let value = self.bind(position.key.clone());
                let seq = self.bind(position.seq);
                conditions.add(format_args!(
                    "({rank}, ifnull({key}, 0), seq) {beyond} ({at}, {value}, {seq})"
                ));
                (false, false)
            }
            KeyRange::Ties(_) => {
                let same = if several {
                    format!("{key} = {}", self.bind(position.key.clone()))
                } else {
                    format!("{key} IS NULL")
                };
                let seq = self.bind(position.seq);
                conditions.add(format_args!(
                    "{rank} = {at} AND {same} AND seq {beyond} {seq}"
                ));
                (true, true)
            }
            KeyRange::SameType(_) => {
                let value = self.bind(position.key.clone());
                conditions.add(format_args!("{rank} = {at} AND {key} {beyond} {value}"));
                (true, false)
            }
            KeyRange::LaterTypes(_) => {
                conditions.add(format_args!("{rank} {beyond} {at}"));
                (false, false)
            }
        }
    }

    /// Whether a condition on the field that the order goes by is a way into the index, and not the
    /// position.
    fn leads(&self, atom: &Atom<'_>, descending: bool) -> bool {
        let ahead = if descending {
            Bound::Above
        } else {
            Bound::Below
        };
        match self.range {
            KeyRange::All | KeyRange::After(_) => true,
            KeyRange::Ties(_) => false,
            KeyRange::SameType(_) => atom.on == On::Key && atom.bound == ahead,
            KeyRange::LaterTypes(_) => atom.on == On::Rank && atom.bound == ahead,
        }
    }
}
