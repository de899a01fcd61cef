//! The server's own fields in queries, without an index of their own.
//!
//! `_id`: the table has an index on `id`, whose 16 bytes sort as the text does that clients know.
//! So a comparison with any text is one with bytes.
//!
//! `_creationTime`: in most tables it ascends in the order of insertion, and `seq` is its index. A
//! comparison is a range of `seq`, whose ends are found by bisection: some twenty look-ups. A
//! table says whether it does so (`nimbus_tables.ascending`):
//!
//! | value | meaning |
//! | --- | --- |
//! | 1 | it does: the writer compares each document with the one before |
//! | 0 | the clock was set back: `created` is compared and sorted |
//! | NULL | a table from before layout 6: the first query that asks looks through it once |
//!
//! A query reads the value in its own snapshot. What a reader found of a table without a value is
//! kept for the tenant, and the next transaction writes it down, unless a writer has said 0
//! meanwhile.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use rusqlite::{Connection, OptionalExtension as _, params};

use crate::documents::query::{Condition, Field, Query, Relation, Value};
use crate::tenants::backend::TableNumber;

/// What layout 6 adds.
pub(super) const ADD_ASCENDING: &str = "ALTER TABLE nimbus_tables ADD COLUMN ascending INTEGER;";

/// Tables of an earlier layout that a reader has found to ascend.
#[derive(Debug, Default)]
pub(super) struct Ascending {
    found: Mutex<BTreeSet<TableNumber>>,
    /// Whether there are any that were not written down.
    unsaved: AtomicBool,
}

impl Ascending {
    /// Whether creation ascends with insertion in a table, if that is known without looking
    /// through it. It is so in the snapshot of the connection.
    fn known(&self, connection: &Connection, table: TableNumber) -> rusqlite::Result<Option<bool>> {
        let said: Option<bool> = connection
            .prepare_cached("SELECT ascending FROM nimbus_tables WHERE number = ?1")?
            .query_row([table], |row| row.get(0))?;
        Ok(said.or_else(|| self.found().contains(&table).then_some(true)))
    }

    /// Whether that is known.
    pub(super) fn is_known(
        &self,
        connection: &Connection,
        table: TableNumber,
    ) -> rusqlite::Result<bool> {
        self.known(connection, table).map(|known| known.is_some())
    }

    /// Whether creation ascends with insertion in a table, in the snapshot of the connection.
    fn holds(&self, connection: &Connection, table: TableNumber) -> rusqlite::Result<bool> {
        if let Some(known) = self.known(connection, table)? {
            return Ok(known);
        }
        let ascends = looked_through(connection, table)?;
        if ascends {
            self.found().insert(table);
            self.unsaved.store(true, Ordering::Relaxed);
        }
        Ok(ascends)
    }

    /// Writes down what was found, in the writer's transaction.
    pub(super) fn save(&self, connection: &Connection) -> rusqlite::Result<()> {
        if !self.unsaved.load(Ordering::Relaxed) || !self.unsaved.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let mut save = connection.prepare(
            "UPDATE nimbus_tables SET ascending = 1 WHERE number = ?1 AND ascending IS NULL",
        )?;
        for table in self.found().iter() {
            save.execute([table])?;
        }
        Ok(())
    }

    fn found(&self) -> MutexGuard<'_, BTreeSet<TableNumber>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether each document of a table was created no earlier than the one before it.
fn looked_through(connection: &Connection, table: TableNumber) -> rusqlite::Result<bool> {
    let mut all = connection.prepare(&format!(
        "SELECT created FROM documents_{table} ORDER BY seq"
    ))?;
    let mut all = all.query([])?;
    let mut last = i64::MIN;
    while let Some(row) = all.next()? {
        let created: i64 = row.get(0)?;
        if created < last {
            return Ok(false);
        }
        last = created;
    }
    Ok(true)
}

/// When the last document of a table was created.
pub(super) fn last_created(
    connection: &Connection,
    table: TableNumber,
) -> rusqlite::Result<Option<i64>> {
    let sql = format!("SELECT created FROM documents_{table} ORDER BY seq DESC LIMIT 1");
    let mut last = connection.prepare_cached(&sql)?;
    last.query_row([], |row| row.get(0)).optional()
}

/// The documents that a query can find by its filters on `_creationTime`: from one `seq` up to,
/// and not with, another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seqs {
    pub(super) from: i64,
    pub(super) to: i64,
}

impl Seqs {
    /// All of them.
    pub(super) const ALL: Self = Self {
        from: i64::MIN,
        to: i64::MAX,
    };

    /// Those of a query; `None` where `seq` says nothing about `_creationTime`, or the query does
    /// not ask for it. `snapshot` is the transaction in which the query is run.
    pub(super) fn of(
        query: &Query,
        snapshot: &Connection,
        table: TableNumber,
        ascending: &Ascending,
    ) -> rusqlite::Result<Option<Self>> {
        if !asks_for_creation(query) || !ascending.holds(snapshot, table)? {
            return Ok(None);
        }
        let times = Times::of(query);
        if times == Times::ALL {
            return Ok(Some(Self::ALL));
        }
        let from = first_since(snapshot, table, times.from)?;
        let to = match times.to.checked_add(1) {
            Some(after) => first_since(snapshot, table, after)?,
            None => i64::MAX,
        };
        Ok(Some(Self { from, to }))
    }
}

/// Whether a query has anything to do with `_creationTime`.
pub(super) fn asks_for_creation(query: &Query) -> bool {
    let filters = query.filters.iter().map(|filter| &filter.field);
    let order = query.order.iter().map(|order| &order.field);
    filters.chain(order).any(|field| *field == Field::Created)
}

/// The least place from which on all documents were created at a time or later.
fn first_since(connection: &Connection, table: TableNumber, time: i64) -> rusqlite::Result<i64> {
    // One statement of both would look through the table.
    let ends = format!(
        "SELECT (SELECT min(seq) FROM documents_{table}), (SELECT max(seq) FROM documents_{table})"
    );
    let (first, last): (Option<i64>, Option<i64>) = connection
        .prepare_cached(&ends)?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (Some(mut from), Some(last)) = (first, last) else {
        return Ok(i64::MAX);
    };
    let mut to = last.saturating_add(1);
    let next =
        format!("SELECT seq, created FROM documents_{table} WHERE seq >= ?1 ORDER BY seq LIMIT 1");
    let mut next = connection.prepare_cached(&next)?;
    while from < to {
        let middle = from + (to - from) / 2;
        let (seq, created): (i64, i64) =
            next.query_row(params![middle], |row| Ok((row.get(0)?, row.get(1)?)))?;
        if created < time {
            from = seq + 1;
        } else {
            to = middle;
        }
    }
    Ok(from)
}

/// The times, in whole milliseconds, that a query's filters leave to `_creationTime`. The filters
/// are evaluated as well: some hold for fewer of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Times {
    from: i64,
    to: i64,
}

impl Times {
    const ALL: Self = Self {
        from: i64::MIN,
        to: i64::MAX,
    };
    const NONE: Self = Self { from: 1, to: 0 };

    fn of(query: &Query) -> Self {
        let filters = query.filters.iter();
        let own = filters.filter(|filter| filter.field == Field::Created);
        own.map(|filter| Self::that_hold(&filter.condition))
            .fold(Self::ALL, Self::both)
    }

    fn that_hold(condition: &Condition) -> Self {
        let span = |from: Option<i64>, to: Option<i64>| match (from, to) {
            (Some(from), Some(to)) => Self { from, to },
            _ => Self::NONE,
        };
        match condition {
            Condition::NotEqual(_) | Condition::Exists(true) => Self::ALL,
            Condition::Exists(false) => Self::NONE,
            Condition::Equal(Value::Number(number)) => span(number.ceil(), number.floor()),
            Condition::In(values) => {
                let numbers = || {
                    values.iter().filter_map(|value| match value {
                        Value::Number(number) => Some(number),
                        _ => None,
                    })
                };
                let from = numbers().filter_map(|number| number.ceil()).min();
                let to = numbers().filter_map(|number| number.floor()).max();
                span(from, to)
            }
            Condition::Compared(relation, Value::Number(number)) => match relation {
                Relation::GreaterOrEqual => span(number.ceil(), Some(i64::MAX)),
                Relation::LessOrEqual => span(Some(i64::MIN), number.floor()),
                Relation::Greater => match number.floor() {
                    Some(below) => span(below.checked_add(1), Some(i64::MAX)),
                    None => Self::ALL,
                },
                Relation::Less => match number.ceil() {
                    Some(above) => span(Some(i64::MIN), above.checked_sub(1)),
                    None => Self::ALL,
                },
            },
            // It is a number.
            Condition::Equal(_) | Condition::Compared(..) => Self::NONE,
        }
    }

    fn both(self, other: Self) -> Self {
        Self {
            from: self.from.max(other.from),
            to: self.to.min(other.to),
        }
    }
}

/// The bytes that a comparison of `_id` with any text is one with: `id = `, `id >= ` or `id < `
/// them.
pub(super) fn id_bound(relation: Option<Relation>, text: &str) -> Option<Vec<u8>> {
    let least = least_from(text.as_bytes());
    let Some(relation) = relation else {
        // No id is equal to other texts.
        let (id, _) = least.filter(|(_, same)| *same)?;
        return Some(id.to_be_bytes().into());
    };
    let least = match (relation, least) {
        (Relation::Greater | Relation::LessOrEqual, Some((id, true))) => id.checked_add(1),
        (_, least) => least.map(|(id, _)| id),
    };
    Some(match least {
        Some(id) => id.to_be_bytes().into(),
        None => BEYOND.into(),
    })
}

/// The least id, of those that could be, whose text is not before this one, and whether it is this
/// one. `None` where all are before it.
fn least_from(text: &[u8]) -> Option<(u128, bool)> {
    // The digits so far, of 32 in all.
    let (mut id, mut digits) = (0_u128, 0);
    let filled = |id: u128, digits: u32| {
        // A shift by all bits is none in Rust.
        id.checked_shl(4 * (32 - digits)).unwrap_or(0)
    };
    // All that begin as this does are before it.
    let beyond = |id: u128, digits: u32| {
        let next = id + 1;
        let fits = digits > 0 && (digits == 32 || next >> (4 * digits) == 0);
        (fits && next != 0).then(|| (filled(next, digits), false))
    };
    for place in 0..ID_LENGTH {
        let Some(&byte) = text.get(place) else {
            return Some((filled(id, digits), false));
        };
        if HYPHENS.contains(&place) {
            match byte.cmp(&b'-') {
                std::cmp::Ordering::Equal => continue,
                std::cmp::Ordering::Less => return Some((filled(id, digits), false)),
                std::cmp::Ordering::Greater => return beyond(id, digits),
            }
        }
        let digit = DIGITS.iter().position(|&digit| digit >= byte);
        let Some(digit) = digit else {
            return beyond(id, digits);
        };
        (id, digits) = (id << 4 | digit as u128, digits + 1);
        if DIGITS[digit] != byte {
            return Some((filled(id, digits), false));
        }
    }
    if text.len() > ID_LENGTH {
        let next = id.checked_add(1)?;
        return Some((next, false));
    }
    Some((id, true))
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";
/// Where an id in text has its hyphens.
const HYPHENS: [usize; 4] = [8, 13, 18, 23];
const ID_LENGTH: usize = 36;
/// Sorts after all ids.
const BEYOND: [u8; 17] = [0xff; 17];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::documents::query::Query;

    fn text_of(id: u128) -> String {
        uuid::Uuid::from_u128(id).hyphenated().to_string()
    }

    /// What the condition says of an id.
    fn holds(relation: Option<Relation>, text: &str, id: u128) -> bool {
        let Some(bound) = id_bound(relation, text) else {
            return false;
        };
        let id = id.to_be_bytes();
        match relation {
            None => id[..] == bound[..],
            Some(Relation::Greater | Relation::GreaterOrEqual) => id[..] >= bound[..],
            Some(Relation::Less | Relation::LessOrEqual) => id[..] < bound[..],
        }
    }

    proptest! {
        #[test]
        fn a_comparison_of_bytes_is_one_of_texts(
            id in prop_oneof![any::<u128>(), Just(0), Just(u128::MAX), (0u32..32).prop_map(|n| u128::MAX << (4 * n))],
            other in any::<u128>(),
            cut in 0usize..40,
            more in prop_oneof![Just(String::new()), "[0-9a-f-]{1,3}", "\\PC{1,2}", "[ -~]{1,3}"],
            same in any::<bool>(),
        ) {
            let mut text = text_of(if same { id } else { other });
            text.truncate(cut);
            text.push_str(&more);
            let own = text_of(id);
            prop_assert_eq!(holds(None, &text, id), own == text);
            for (relation, expected) in [
                (Relation::Greater, own > text),
                (Relation::GreaterOrEqual, own >= text),
                (Relation::Less, own < text),
                (Relation::LessOrEqual, own <= text),
            ] {
                prop_assert_eq!(holds(Some(relation), &text, id), expected, "{} {:?} {}", own, relation, text);
            }
        }

        #[test]
        fn the_times_are_those_that_the_filters_hold_for(
            number in prop_oneof![
                (-3i64..3).prop_map(|n| n.to_string()),
                (-3.0f64..3.0).prop_map(|n| format!("{n:?}")),
                prop::sample::select(vec![
                    "9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809", "1e300", "-1e300", "-0.0"
                ]).prop_map(str::to_owned),
            ],
            op in prop::sample::select(vec!["eq", "neq", "gt", "gte", "lt", "lte"]),
            time in prop_oneof![-4i64..4, Just(i64::MIN), Just(i64::MAX)],
        ) {
            let filter = format!(r#"{{"field":"_creationTime","op":"{op}","value":{number}}}"#);
            let query = Query::from_json(&format!(r#"{{"table":"t","filters":[{filter}]}}"#)).unwrap();
            let Times { from, to } = Times::of(&query);
            let time_is = Value::from_json(&time.to_string()).unwrap();
            let Value::Number(time_is) = time_is else { unreachable!() };
            let with = Value::from_json(&number).unwrap();
            let Value::Number(with) = with else { unreachable!() };
            let ordering = time_is.partial_cmp(&with).unwrap();
            let expected = match op {
                "eq" => ordering.is_eq(),
                "gt" => ordering.is_gt(),
                "gte" => ordering.is_ge(),
                "lt" => ordering.is_lt(),
                "lte" => ordering.is_le(),
                // A filter that leaves nearly all.
                _ => true,
            };
            prop_assert_eq!((from..=to).contains(&time), expected, "{} {} {}", time, op, number);
        }
    }
}
