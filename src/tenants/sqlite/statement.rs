//! Queries as SQL. Values are bound parameters, and so is the path to a field without an index;
//! that to one with an index stands in the text as the index has it. So the text depends on the
//! shape of a query and its limit, and not on its values.
//!
//! What each comparison means is defined in `docs/queries.md`. SQLite compares within a type as
//! that page says: integers with doubles exactly, text by its UTF-8 bytes, which is by code points.
//! Types are kept apart by `json_type`.

use std::borrow::Cow;
use std::fmt::{Arguments, Write as _};
use std::ops::Range;

use data_encoding::HEXUPPER;
use rusqlite::types::Value as Sql;

use super::expressions::{Ordered, path};
use super::indexes::{Indexed, Indexes};
use super::rows::{DOCUMENT, VERSION};
use super::system_fields::{self, Seqs};
use crate::documents::query::{
    Condition, Field, Filter, Key, Order, Position, Query, Relation, TypeRank, Value,
};
use crate::tenants::keyset::{self, KeyRange};

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

    fn filter(&mut self, filter: &Filter) -> Vec<Atom<'a>> {
        if filter.field == Field::Id
            && let Some(sql) = self.by_id(&filter.condition)
        {
            return vec![other(sql)];
        }
        if let Some(columns) = self.literal(&filter.field)
            && let Some(atoms) = self.indexed(columns, &filter.condition)
        {
            return atoms;
        }
        vec![other(self.plain(&filter.field, &filter.condition))]
    }

    /// A condition on `_id`, in the words of the index that every table has; `None` where it cannot
    /// say it.
    fn by_id(&mut self, condition: &Condition) -> Option<String> {
        match condition {
            Condition::Equal(Value::String(text)) => Some(self.id(None, text)),
            Condition::Compared(relation, Value::String(text)) => {
                Some(self.id(Some(*relation), text))
            }
            Condition::In(values) => {
                let ids = list(values, |value| match value {
                    Value::String(text) => {
                        let id = system_fields::id_bound(None, text)?;
                        Some(format!("\"{}\"", HEXUPPER.encode(&id)))
                    }
                    _ => None,
                });
                let ids = self.bind(ids);
                Some(format!("id IN (SELECT unhex(value) FROM json_each({ids}))"))
            }
            _ => None,
        }
    }

    /// A comparison of `_id` with a text.
    fn id(&mut self, relation: Option<Relation>, text: &str) -> String {
        let sign = match relation {
            None => "=",
            Some(Relation::Greater | Relation::GreaterOrEqual) => ">=",
            Some(Relation::Less | Relation::LessOrEqual) => "<",
        };
        let bound = system_fields::id_bound(relation, text);
        // NULL is equal to nothing.
        let bound = self.bind(bound.map_or(Sql::Null, Sql::Blob));
        format!("id {sign} {bound}")
    }

    /// A condition in the words of the index; `None` where it cannot say it.
    fn indexed(
        &mut self,
        Ordered { rank, key }: &'a Ordered,
        condition: &Condition,
    ) -> Option<Vec<Atom<'a>>> {
        let of_rank = |of: TypeRank| Atom {
            on: On::Rank,
            bound: Bound::Equal,
            column: rank,
            sql: format!(" = {}", of.number()),
        };
        let on_key = |bound: Bound, sql: String| Atom {
            on: On::Key,
            bound,
            column: key,
            sql,
        };
        // What has no value beside its type.
        let only = |of: TypeRank| {
            let none = on_key(Bound::Equal, " IS NULL".to_owned());
            Some(vec![of_rank(of), none])
        };
        match condition {
            Condition::Equal(Value::Null) => only(TypeRank::Null),
            Condition::Equal(value) => {
                let with = self.value(value);
                let key = on_key(Bound::Equal, format!(" = {with}"));
                Some(vec![of_rank(TypeRank::of(value)), key])
            }
            Condition::Compared(Relation::GreaterOrEqual | Relation::LessOrEqual, Value::Null) => {
                only(TypeRank::Null)
            }
            Condition::Compared(_, Value::Null) => Some(vec![other("FALSE".to_owned())]),
            Condition::Compared(relation, value) => {
                let bound = match relation {
                    Relation::Greater | Relation::GreaterOrEqual => Bound::Above,
                    Relation::Less | Relation::LessOrEqual => Bound::Below,
                };
                let with = self.value(value);
                let key = on_key(bound, format!(" {} {with}", operator(*relation)));
                Some(vec![of_rank(TypeRank::of(value)), key])
            }
            Condition::In(values) => {
                let (first, rest) = values.split_first()?;
                if *first == Value::Null
                    || rest
                        .iter()
                        .any(|value| TypeRank::of(value) != TypeRank::of(first))
                {
                    return None;
                }
                let list = self.bind(list(values, |value| Some(json(value))));
                let among = format!(" IN (SELECT value FROM json_each({list}))");
                Some(vec![
                    of_rank(TypeRank::of(first)),
                    on_key(Bound::Other, among),
                ])
            }
            Condition::Exists(true) => Some(vec![Atom {
                on: On::Rank,
                bound: Bound::Above,
                column: rank,
                sql: format!(" > {}", TypeRank::Missing.number()),
            }]),
            Condition::Exists(false) => only(TypeRank::Missing),
            Condition::NotEqual(_) => None,
        }
    }

    /// A condition on a field without an index.
    fn plain(&mut self, field: &Field, condition: &Condition) -> String {
        let field = self.field(field);
        match condition {
            Condition::Equal(value) => self.compared(&field, "=", value),
            Condition::NotEqual(value) => {
                let equal = self.compared(&field, "=", value);
                format!("({equal}) IS NOT TRUE")
            }
            Condition::Compared(relation, value) => {
                self.compared(&field, operator(*relation), value)
            }
            Condition::In(values) => self.one_of(&field, values),
            Condition::Exists(true) => format!("{} IS NOT NULL", field.kind),
            Condition::Exists(false) => format!("{} IS NULL", field.kind),
        }
    }

    fn compared(
        &mut self,
        Expressions { kind, value }: &Expressions,
        relation: &str,
        with: &Value,
    ) -> String {
        let kinds = match with {
            // Null equals null and is neither before nor after it.
            Value::Null if relation.contains('=') => return format!("{kind} = 'null'"),
            // Never true. That it names the field keeps every parameter in the text.
            Value::Null => return format!("{kind} < NULL"),
            Value::Bool(_) => "IN ('true', 'false')",
            Value::Number(_) => "IN ('integer', 'real')",
            Value::String(_) => "= 'text'",
        };
        let with = self.value(with);
        format!("{kind} {kinds} AND {value} {relation} {with}")
    }

    /// Binds a value, and gives the expression that has it as the key has stored ones. Not of null.
    fn value(&mut self, value: &Value) -> String {
        match value {
            Value::Null => "NULL".to_owned(),
            Value::Bool(value) => self.bind(*value),
            // Read by the function that reads the stored numbers, so that the same digits are the
            // same number.
            Value::Number(number) => {
                let digits = number.as_json();
                // Of an integer as SQLite writes it there is but one reading.
                match digits.parse::<i64>() {
                    Ok(integer) if integer.to_string() == digits => self.bind(integer),
                    _ => {
                        let number = self.bind(digits.to_owned());
                        format!("json_extract({number}, '$')")
                    }
                }
            }
            Value::String(text) => self.bind(text.clone()),
        }
    }

    /// The text does not depend on how many values there are.
    fn one_of(&mut self, Expressions { kind, value }: &Expressions, values: &[Value]) -> String {
        let numbers = self.bind(list(values, |value| match value {
            Value::Number(_) => Some(json(value)),
            _ => None,
        }));
        let strings = self.bind(list(values, |value| match value {
            Value::String(_) => Some(json(value)),
            _ => None,
        }));
        let kinds = self.bind(list(values, |value| match value {
            Value::Null | Value::Bool(_) => Some(format!("\"{}\"", json(value))),
            Value::Number(_) | Value::String(_) => None,
        }));
        let among = |parameter: &str| format!("IN (SELECT value FROM json_each({parameter}))");
        format!(
            "({kind} IN ('integer', 'real') AND {value} {}) OR ({kind} = 'text' AND {value} {}) OR {kind} {}",
            among(&numbers),
            among(&strings),
            among(&kinds)
        )
    }

    /// What the order goes by.
    fn by(&mut self, query: &Query) -> By<'a> {
        match query.order.as_ref().map(|order| &order.field) {
            None => By::Insertion,
            Some(Field::Id) => By::Id,
            Some(Field::Created) if self.seqs.is_some() => By::Seq,
            Some(field) => By::Field(self.ordered(field)),
        }
    }

    /// The field that an order goes by.
    fn ordered(&mut self, field: &Field) -> Cow<'a, Ordered> {
        match self.literal(field) {
            Some(columns) => Cow::Borrowed(columns),
            None => {
                let Expressions { kind, value } = self.field(field);
                Cow::Owned(Ordered::of(&kind, &value))
            }
        }
    }

    fn field(&mut self, field: &Field) -> Expressions {
        let (kind, value) = match field {
            Field::Id => ("'text'".to_owned(), ID_TEXT.to_owned()),
            Field::Created => ("'integer'".to_owned(), "created".to_owned()),
            Field::Updated => ("'integer'".to_owned(), "updated".to_owned()),
            Field::Version => ("'integer'".to_owned(), VERSION.to_owned()),
            Field::Path(names) => {
                let path = self.bind(path(names));
                (
                    format!("json_type(fields, {path})"),
                    format!("json_extract(fields, {path})"),
                )
            }
        };
        Expressions { kind, value }
    }

    /// A field as its index has it, if it has one.
    fn literal(&self, field: &Field) -> Option<&'a Ordered> {
        let Field::Path(names) = field else {
            return None;
        };
        let field = self.indexed.iter().find(|field| field.names == *names)?;
        Some(&field.columns)
    }

    /// Binds a value, and gives the parameter's name.
    fn bind(&mut self, value: impl Into<Sql>) -> String {
        self.parameters.push(value.into());
        format!("?{}", self.parameters.len())
    }
}

/// A field in SQL.
struct Expressions {
    /// Its type, as `json_type` names it; NULL where there is no such field.
    kind: String,
    /// Its value, of booleans, numbers and text.
    value: String,
}

fn other(sql: String) -> Atom<'static> {
    Atom {
        on: On::Other,
        bound: Bound::Other,
        column: "",
        sql,
    }
}

/// The conditions of a statement, as its text has them.
#[derive(Default)]
struct Conditions(String);

impl Conditions {
    fn add(&mut self, condition: Arguments<'_>) {
        let joint = if self.0.is_empty() { "WHERE" } else { "AND" };
        put(&mut self.0, format_args!(" {joint} ({condition})"));
    }
}

fn put(text: &mut String, what: Arguments<'_>) {
    // Writing to a string does not fail.
    let _written = text.write_fmt(what);
}

/// Bytes of a statement beside its columns and conditions, about.
const BESIDES: usize = 160;

/// A value as JSON.
fn json(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.as_json().to_owned(),
        Value::String(text) => serde_json::Value::from(text.as_str()).to_string(),
    }
}

/// Some of the values, as a JSON list.
fn list(values: &[Value], pick: fn(&Value) -> Option<String>) -> String {
    let picked: Vec<String> = values.iter().filter_map(pick).collect();
    format!("[{}]", picked.join(","))
}

fn operator(relation: Relation) -> &'static str {
    match relation {
        Relation::Greater => ">",
        Relation::GreaterOrEqual => ">=",
        Relation::Less => "<",
        Relation::LessOrEqual => "<=",
    }
}

impl From<Key> for Sql {
    fn from(key: Key) -> Self {
        match key {
            Key::Integer(integer) => Self::Integer(integer),
            Key::Double(double) => Self::Real(double),
            Key::Text(text) => Self::Text(text),
        }
    }
}

/// The ranks of numbers and of texts.
const NUMBER: &str = "3";
const STRING: &str = "4";
const _: () = assert!(TypeRank::Number.number() == 3 && TypeRank::String.number() == 4);

/// A document's id as its clients know it.
const ID_TEXT: &str = "lower(substr(hex(id), 1, 8) || '-' || substr(hex(id), 9, 4) || '-' || substr(hex(id), 13, 4) || '-' \
                       || substr(hex(id), 17, 4) || '-' || substr(hex(id), 21))";
