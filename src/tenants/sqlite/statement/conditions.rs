//! Conditions of a query in SQL: fields, values and the indexes that serve them.

use std::borrow::Cow;
use std::fmt::{Arguments, Write as _};

use data_encoding::HEXUPPER;
use rusqlite::types::Value as Sql;

use super::{Atom, Bound, By, Draft, On};
use crate::documents::query::{Condition, Field, Filter, Key, Query, Relation, TypeRank, Value};
use crate::tenants::sqlite::expressions::{Ordered, path};
use crate::tenants::sqlite::rows::VERSION;
use crate::tenants::sqlite::system_fields;

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
pub(super) struct Conditions(pub(super) String);

impl Conditions {
    pub(super) fn add(&mut self, condition: Arguments<'_>) {
        let joint = if self.0.is_empty() { "WHERE" } else { "AND" };
        put(&mut self.0, format_args!(" {joint} ({condition})"));
    }
}

pub(super) fn put(text: &mut String, what: Arguments<'_>) {
    // Writing to a string does not fail.
    let _written = text.write_fmt(what);
}

/// Bytes of a statement beside its columns and conditions, about.
pub(super) const BESIDES: usize = 160;

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
pub(super) const NUMBER: &str = "3";
pub(super) const STRING: &str = "4";
const _: () = assert!(TypeRank::Number.number() == 3 && TypeRank::String.number() == 4);

/// A document's id as its clients know it.
pub(super) const ID_TEXT: &str = "lower(substr(hex(id), 1, 8) || '-' || substr(hex(id), 9, 4) || '-' || substr(hex(id), 13, 4) || '-' \
                       || substr(hex(id), 17, 4) || '-' || substr(hex(id), 21))";

impl<'a> Draft<'a> {
    pub(super) fn filter(&mut self, filter: &Filter) -> Vec<Atom<'a>> {
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
    pub(super) fn id(&mut self, relation: Option<Relation>, text: &str) -> String {
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
    pub(super) fn by(&mut self, query: &Query) -> By<'a> {
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
    pub(super) fn literal(&self, field: &Field) -> Option<&'a Ordered> {
        let Field::Path(names) = field else {
            return None;
        };
        let field = self.indexed.iter().find(|field| field.names == *names)?;
        Some(&field.columns)
    }

    /// Binds a value, and gives the parameter's name.
    pub(super) fn bind(&mut self, value: impl Into<Sql>) -> String {
        self.parameters.push(value.into());
        format!("?{}", self.parameters.len())
    }
}
