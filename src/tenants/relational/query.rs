//! Answering queries.
//!
//! Candidates come from a [`plan`](super::plan), and every one is judged by the evaluator. They
//! come in the order of the answer where an index or the order of insertion has it; otherwise all
//! are looked through, their places sorted, and the documents of the first read.

use std::{
    collections::{BinaryHeap, HashMap},
    ops::ControlFlow,
};

use super::{
    documents::CHUNK,
    engine::{Engine, Malformed, Value, values},
    keys,
    plan::{Plan, Walk},
    reader::{COLUMNS, DOCUMENT, Reader, stored_document},
    space::Space,
};
use crate::documents::query::{
    Condition, Field, Key, Position, Query, QueryPage, TypeRank, Value as Given, evaluate,
};
use crate::documents::{Document, DocumentId};
use crate::tenants::StoreError;
use crate::tenants::backend::{Rows as _, TableNumber};
use crate::tenants::keyset::PageBuilder;

impl<E: Engine> Reader<E> {
    /// The documents of a table that a query finds after a position; `None` where every document
    /// may have to be looked at, and `may_scan` says no.
    pub(super) fn run_query(
        &mut self,
        table: TableNumber,
        query: &Query,
        after: Option<&Position>,
        limit: usize,
        most_bytes: usize,
        may_scan: &mut dyn FnMut() -> bool,
    ) -> Result<Option<QueryPage>, StoreError> {
        self.snapshot(|reader| {
            let mut page = PageBuilder::new(limit, most_bytes);
            if let Some(id) = named(query) {
                let full = reader.only(&mut page, table, query, after, id)?;
                return Ok(Some(page.finish(full)));
            }
            let indexes = match query.filters.is_empty() && query.order.is_none() {
                true => Vec::new(),
                false => reader.table_indexes(table)?,
            };
            let plan = Plan::of(query, &indexes);
            if let Some(index) = plan.hindered_by(query, &indexes) {
                return Err(StoreError::BlindIndex {
                    table: query.table.clone(),
                    index: index.name.clone(),
                    fields: index.fields.iter().map(|names| names.join(".")).collect(),
                });
            }
            if plan.scans(query) && !may_scan() {
                return Ok(None);
            }
            if plan.in_order {
                match reader.walk(page, table, query, after, limit, &plan)? {
                    Walked::Page(page) => return Ok(Some(page)),
                    // A text was cut in its key: the index does not have its order.
                    Walked::Cut if !may_scan() => return Ok(None),
                    Walked::Cut => page = PageBuilder::new(limit, most_bytes),
                }
            }
            let full = reader.sort(&mut page, table, query, after, limit, &plan)?;
            Ok(Some(page.finish(full)))
        })
    }

    /// The document that a query names by its id.
    fn only(
        &mut self,
        page: &mut PageBuilder,
        table: TableNumber,
        query: &Query,
        after: Option<&Position>,
        id: DocumentId,
    ) -> Result<bool, StoreError> {
        let name = self.sealed_table(table)?;
        let sql = format!("SELECT {DOCUMENT} FROM @documents d WHERE tbl = ? AND id = ?");
        let Some(mut row) = self.ask_one(&sql, values![table, id.as_bytes()])? else {
            return Ok(false);
        };
        let read = stored_document(&self.space, name.as_ref(), &mut row, 0);
        let (seq, document) = self.sound(read)?;
        let place = place(query, &document, seq);
        if !evaluate::matches(&document, query) || !is_after(query, &place, after) {
            return Ok(false);
        }
        Ok(!take(&self.space, page, document, query, seq)?)
    }

    /// Takes candidates as they come, which is the order of the answer.
    fn walk(
        &mut self,
        mut page: PageBuilder,
        table: TableNumber,
        query: &Query,
        after: Option<&Position>,
        limit: usize,
        plan: &Plan<'_>,
    ) -> Result<Walked, StoreError> {
        let descending = is_descending(query);
        let name = self.sealed_table(table)?;
        let mut walk = Walk::new(table, plan, descending);
        if let Some(position) = after {
            if let Some((index, _)) = &plan.index
                && index.cut().cuts_position(position)
            {
                return Ok(Walked::Cut);
            }
            walk.begin_after(query, position);
        }
        // One more says whether there are more.
        let mut chunk = limit.saturating_add(1).clamp(1, CHUNK);
        loop {
            let (sql, values) = walk.statement::<E>(chunk);
            let (mut rows, mut full, mut cut) = (0, false, false);
            self.each(&sql, values, |space, mut row| {
                rows += 1;
                let mut read = || {
                    let (seq, document) = stored_document(space, name.as_ref(), &mut row, 0)?;
                    Ok((document, seq, row.bytes(COLUMNS)?))
                };
                let (document, seq, key) = read().map_err(|what| space.malformed(what))?;
                walk.passed(key, seq);
                if !evaluate::matches(&document, query) {
                    return Ok(ControlFlow::Continue(()));
                }
                if let (Some((index, _)), Some(order)) = (&plan.index, &query.order)
                    && index.cut().cuts(&evaluate::lookup(&document, &order.field))
                {
                    cut = true;
                    return Ok(ControlFlow::Break(()));
                }
                full = !take(space, &mut page, document, query, seq)?;
                Ok(match full {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                })
            })?;
            match (cut, full) {
                (true, _) => return Ok(Walked::Cut),
                (_, true) => return Ok(Walked::Page(page.finish(true))),
                _ if rows < chunk && !walk.next_range() => {
                    return Ok(Walked::Page(page.finish(false)));
                }
                _ => chunk = CHUNK,
            }
        }
    }

    /// Looks through all candidates, keeps the places of the first, and reads these. Memory holds
    /// what is sorted by of a page, and no documents.
    fn sort(
        &mut self,
        page: &mut PageBuilder,
        table: TableNumber,
        query: &Query,
        after: Option<&Position>,
        limit: usize,
        plan: &Plan<'_>,
    ) -> Result<bool, StoreError> {
        let descending = is_descending(query);
        let name = self.sealed_table(table)?;
        let mut first: BinaryHeap<Ranked> = BinaryHeap::new();
        let mut walk = Walk::new(table, plan, false);
        loop {
            let (sql, values) = walk.statement::<E>(CHUNK);
            let mut rows = 0;
            self.each(&sql, values, |space, mut row| {
                rows += 1;
                let mut read = || {
                    let (seq, document) = stored_document(space, name.as_ref(), &mut row, 0)?;
                    Ok((document, seq, row.bytes(COLUMNS)?))
                };
                let (document, seq, key) = read().map_err(|what| space.malformed(what))?;
                walk.passed(key, seq);
                let place = place(query, &document, seq);
                if evaluate::matches(&document, query) && is_after(query, &place, after) {
                    let ranked = Ranked { place, descending };
                    if first.len() <= limit {
                        first.push(ranked);
                    } else if first.peek().is_some_and(|last| ranked < *last) {
                        if ranked.place.0.len() > LONG_KEY {
                            space.take_room(ranked.place.0.len())?;
                        }
                        let _last = first.pop();
                        first.push(ranked);
                    }
                }
                Ok(ControlFlow::Continue(()))
            })?;
            if rows < CHUNK && !walk.next_range() {
                break;
            }
        }
        let places = first.into_sorted_vec();
        for part in places.chunks(READ_AT_ONCE) {
            let sql = format!(
                "SELECT {DOCUMENT} FROM @documents d WHERE tbl = ? AND seq IN ({})",
                vec!["?"; part.len()].join(", ")
            );
            let mut values = values![table];
            values.extend(part.iter().map(|ranked| Value::from(ranked.place.1)));
            let rows = self.ask(&sql, values)?.into_iter();
            let read = rows.map(|mut row| stored_document(&self.space, name.as_ref(), &mut row, 0));
            let mut found = self.sound(read.collect::<Result<HashMap<_, _>, _>>())?;
            for Ranked {
                place: (_, seq), ..
            } in part
            {
                let document = found.remove(seq).ok_or(Malformed::of("a document"));
                let document = self.sound(document)?;
                if !take(&self.space, page, document, query, *seq)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

enum Walked {
    Page(QueryPage),
    Cut,
}

/// A place in the order of a query: what it sorts by, and the number of the insertion.
type Place = (Vec<u8>, i64);

#[derive(Debug, PartialEq, Eq)]
struct Ranked {
    place: Place,
    descending: bool,
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let order = self.place.cmp(&other.place);
        if self.descending {
            order.reverse()
        } else {
            order
        }
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

fn place(query: &Query, document: &Document, seq: i64) -> Place {
    let key = query
        .order
        .as_ref()
        .map(|order| keys::order_key(&evaluate::lookup(document, &order.field)));
    (key.unwrap_or_default(), seq)
}

fn is_after(query: &Query, place: &Place, after: Option<&Position>) -> bool {
    let Some(position) = after else { return true };
    let key = query.order.as_ref().map(|_| keys::order_key_of(position));
    let position = (key.unwrap_or_default(), position.seq);
    match is_descending(query) {
        true => *place < position,
        false => *place > position,
    }
}

fn is_descending(query: &Query) -> bool {
    query.order.as_ref().is_some_and(|order| order.descending)
}

/// Takes a document into the page; whether it had room.
fn take<E: Engine>(
    space: &Space<E>,
    page: &mut PageBuilder,
    document: Document,
    query: &Query,
    seq: i64,
) -> Result<bool, StoreError> {
    let found = query
        .order
        .as_ref()
        .map(|order| evaluate::lookup(&document, &order.field));
    let position = || {
        let (rank, key) = match &found {
            Some(found) => (found.rank, keys::position_key(found)),
            None => (TypeRank::Missing, Key::Integer(0)),
        };
        Ok(Position { rank, key, seq })
    };
    page.take(|| Ok(document), |bytes| space.take_room(bytes), position)
}

/// The document that a query names by its id.
fn named(query: &Query) -> Option<DocumentId> {
    query
        .filters
        .iter()
        .find_map(|filter| match (&filter.field, &filter.condition) {
            (Field::Id, Condition::Equal(Given::String(id))) => id.parse().ok(),
            _ => None,
        })
}

/// Documents that are read at a time once their places are known.
const READ_AT_ONCE: usize = 32;
/// Keys beyond this count as memory of the request.
const LONG_KEY: usize = 4096;
