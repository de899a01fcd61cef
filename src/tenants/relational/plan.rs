//! Where the candidates of a query lie.
//!
//! An index gives the documents whose keys lie in ranges that the filters, and the order, leave.
//! Each is judged afterwards: an index that says too much costs time and no correctness.

use super::{
    engine::{Engine, Value, values},
    index::Index,
    reader::DOCUMENT,
};
use crate::documents::query::evaluate::Found;
use crate::documents::query::{
    Condition, Field, Order, Position, Query, Relation, TypeRank, Value as Given,
};
use crate::tenants::backend::TableNumber;

/// Keys from the first on, up to and without the second.
pub(super) type Range = (Vec<u8>, Vec<u8>);

/// How candidates are found.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    /// The index, and the ranges of it that do not meet, in their order; `None` for the whole
    /// table.
    pub(super) index: Option<(&'a Index, Vec<Range>)>,
    /// Whether the candidates come in the order of the query.
    pub(super) in_order: bool,
    /// How many filters it makes use of.
    filters: usize,
}

/// Candidates in their order, part by part.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    table: TableNumber,
    index: Option<&'a Index>,
    /// What is left of the ranges, the next one last.
    ranges: Vec<Range>,
    descending: bool,
    /// The last candidate.
    last: Option<(Vec<u8>, i64)>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(table: TableNumber, plan: &Plan<'a>, descending: bool) -> Self {
        let (index, mut ranges) = match &plan.index {
            Some((index, ranges)) => (Some(*index), ranges.clone()),
            None => (None, vec![(Vec::new(), Vec::new())]),
        };
        if !descending {
            ranges.reverse();
        }
        Self {
            table,
            index,
            ranges,
            descending,
            last: None,
        }
    }

    /// Leaves out what does not come after a position.
    pub(super) fn begin_after(&mut self, query: &Query, position: &Position) {
        let mut key = Vec::new();
        if let (Some(index), Some((low, _))) = (self.index, self.ranges.last()) {
            // The fields before the one of the order have one value, with which every range begins.
            let pinned = pinned(index, query);
            for (place, names) in index.fields.iter().take(pinned).enumerate() {
                if let Some(value) = equal_to(query, names) {
                    index.push(&mut key, place, &Found::of(value.clone()));
                }
            }
            debug_assert!(low.starts_with(&key) || low.is_empty());
            if pinned < index.fields.len() {
                index.cut().push_position(&mut key, position);
            }
            let is_over = |(low, high): &Range| match self.descending {
                true => *low > key,
                false => *high <= key,
            };
            while self.ranges.last().is_some_and(is_over) && self.ranges.len() > 1 {
                let _passed = self.ranges.pop();
            }
        }
        self.last = Some((key, position.seq));
    }

    pub(super) fn statement<E: Engine>(&self, limit: usize) -> (String, Vec<Value>) {
        let direction = if self.descending { "DESC" } else { "ASC" };
        let beyond = if self.descending { "<" } else { ">" };
        let Some(index) = self.index else {
            let mut sql = format!("SELECT {DOCUMENT}, d.id FROM @documents d WHERE d.tbl = ?");
            let mut values = values![self.table];
            if let Some((_, seq)) = &self.last {
                sql.push_str(&format!(" AND d.seq {beyond} ?"));
                values.extend(values![*seq]);
            }
            sql.push_str(&format!(" ORDER BY d.seq {direction} LIMIT {limit}"));
            return (sql, values);
        };
        let empty = (Vec::new(), Vec::new());
        let (low, high) = self.ranges.last().unwrap_or(&empty);
        let mut sql = format!(
            "SELECT {DOCUMENT}, e.entry FROM @entries e JOIN @documents d ON d.tbl = ? AND d.seq = e.seq
             WHERE e.slot = ? AND e.entry >= ? AND e.entry < ?"
        );
        let mut values = values![self.table, index.slot, &low[..], &high[..]];
        if let Some((key, seq)) = &self.last {
            let last = [Value::from(&key[..]), Value::from(*seq)];
            let (rest, last) = E::beyond(["e.entry", "e.seq"], beyond, last);
            sql.push_str(&format!(" AND {rest}"));
            values.extend(last);
        }
        sql.push_str(&format!(
            " ORDER BY e.entry {direction}, e.seq {direction} LIMIT {limit}"
        ));
        (sql, values)
    }

    /// The candidate is done with.
    pub(super) fn passed(&mut self, key: Vec<u8>, seq: i64) {
        self.last = Some((key, seq));
    }

    /// Goes on to the next range; whether there is one.
    pub(super) fn next_range(&mut self) -> bool {
        let _done = self.ranges.pop();
        !self.ranges.is_empty()
    }
}

impl<'a> Plan<'a> {
    /// The best way to the candidates of a query.
    pub(super) fn of(query: &Query, indexes: &'a [Index]) -> Self {
        let table = Self {
            index: None,
            in_order: query.order.is_none(),
            filters: 0,
        };
        let plans = indexes.iter().filter_map(|index| Self::with(query, index));
        let better = |best: Self, plan: Self| {
            let worth = |plan: &Self| (plan.filters > 0, plan.in_order, plan.filters);
            if worth(&plan) > worth(&best) {
                plan
            } else {
                best
            }
        };
        plans.fold(table, better)
    }

    /// Whether every document of the table may have to be looked at.
    pub(super) fn scans(&self, query: &Query) -> bool {
        self.filters == 0 && !(self.in_order && query.filters.is_empty())
    }

    /// The index that a query needs the order of and that is blind: in order it would keep the
    /// query from looking through the whole table.
    pub(super) fn hindered_by(&self, query: &Query, indexes: &'a [Index]) -> Option<&'a Index> {
        if !self.scans(query) || !indexes.iter().any(Index::is_blind) {
            return None;
        }
        let in_order: Vec<Index> = indexes.iter().map(Index::in_the_clear).collect();
        let plan = Plan::of(query, &in_order);
        let (index, _) = plan.index.as_ref().filter(|_| !plan.scans(query))?;
        indexes.iter().find(|blind| blind.slot == index.slot)
    }

    /// The way over an index, if it is one.
    fn with(query: &Query, index: &'a Index) -> Option<Self> {
        let pinned = pinned(index, query);
        let mut prefix = Vec::new();
        for (place, names) in index.fields[..pinned].iter().enumerate() {
            index.push(
                &mut prefix,
                place,
                &Found::of(equal_to(query, names)?.clone()),
            );
        }
        let order = query.order.as_ref();
        let by = |order: &Order, names: &[String]| matches!(&order.field, Field::Path(path) if path == names);
        let mut filters = pinned;
        let (ranges, in_order) = match index.fields.get(pinned) {
            // All of its fields have one value: what is left is the order of insertion.
            None => {
                let pinned = |order| index.fields.iter().any(|names| by(order, names));
                (vec![index.through(&prefix)], order.is_none_or(pinned))
            }
            Some(names) => {
                let (ranges, used) = ranges(query, names, &prefix, index, pinned);
                filters += used;
                let is_last = !index.is_blind() && pinned + 1 == index.fields.len();
                let ordered = order.is_some_and(|order| is_last && by(order, names));
                (ranges, ordered)
            }
        };
        (filters > 0 || in_order).then_some(Self {
            index: Some((index, ranges)),
            in_order,
            filters,
        })
    }
}

/// How many of an index's first fields have to be equal to something.
fn pinned(index: &Index, query: &Query) -> usize {
    let fields = index.fields.iter();
    fields
        .take_while(|names| equal_to(query, names).is_some())
        .count()
}

/// What a field has to be equal to.
fn equal_to<'a>(query: &'a Query, names: &[String]) -> Option<&'a Given> {
    query
        .filters
        .iter()
        .find_map(|filter| match &filter.condition {
            Condition::Equal(value) if is_on(&filter.field, names) => Some(value),
            _ => None,
        })
}

fn is_on(field: &Field, names: &[String]) -> bool {
    matches!(field, Field::Path(path) if path == names)
}

/// The ranges that the filters on a field leave, behind a prefix, and how many filters that are.
fn ranges(
    query: &Query,
    names: &[String],
    prefix: &[u8],
    index: &Index,
    place: usize,
) -> (Vec<Range>, usize) {
    let cut = index.cut();
    let (mut low, mut high) = index.through(prefix);
    let (mut list, mut used) = (None, 0);
    let key = |push: &dyn Fn(&mut Vec<u8>)| {
        let mut key = prefix.to_vec();
        push(&mut key);
        key
    };
    for filter in query
        .filters
        .iter()
        .filter(|filter| is_on(&filter.field, names))
    {
        used += 1;
        let (least, most) = match &filter.condition {
            Condition::Compared(..) | Condition::Exists(true) if index.is_blind() => {
                used -= 1;
                continue;
            }
            Condition::Compared(relation, value) => {
                let rank = TypeRank::of(value) as u8;
                match relation {
                    Relation::Greater | Relation::GreaterOrEqual => (
                        key(&|key| cut.push_least(key, value)),
                        key(&|key| key.push(rank + 1)),
                    ),
                    Relation::Less | Relation::LessOrEqual => (
                        key(&|key| key.push(rank)),
                        key(&|key| cut.push_most(key, value)),
                    ),
                }
            }
            Condition::Exists(false) => {
                let missing = Found {
                    rank: TypeRank::Missing,
                    value: None,
                };
                index.through(&key(&|key| index.push(key, place, &missing)))
            }
            Condition::Exists(true) => (key(&|key| key.push(TypeRank::Null as u8)), high.clone()),
            Condition::In(values) if list.is_none() => {
                let each = values.iter().map(|value| {
                    let found = Found::of(value.clone());
                    index.through(&key(&|key| index.push(key, place, &found)))
                });
                list = Some(each.collect::<Vec<Range>>());
                continue;
            }
            Condition::Equal(_) | Condition::NotEqual(_) | Condition::In(_) => {
                used -= 1;
                continue;
            }
        };
        low = low.max(least);
        high = high.min(most);
    }
    let mut ranges = match list {
        None => vec![(low, high)],
        Some(mut ranges) => {
            ranges.sort_unstable();
            ranges.dedup();
            ranges.retain(|(from, to)| *from < high && *to > low);
            ranges
        }
    };
    if ranges.is_empty() {
        ranges.push((Vec::new(), Vec::new()));
    }
    (ranges, used)
}
