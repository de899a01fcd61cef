//! Queries: filters, an order, and where the last page ended. What they mean is defined in
//! `docs/queries.md`.

mod cursor;
pub(crate) mod evaluate;
mod field;
mod rank;
#[cfg(test)]
pub(crate) mod reference;
mod value;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub use cursor::{Key, Position};
pub use field::Field;
pub use rank::TypeRank;
pub use value::{Number, Value};

use super::{
    Bounded, Document, InputError, TableName, json_object, json_object::reason, optional_integer,
};

/// The most filters in a query.
pub const MAX_FILTERS: usize = 50;

/// The most values of one `in`.
pub const MAX_IN: usize = 1000;

/// The most documents that one query answers with.
pub const MAX_PAGE: usize = 1000;

/// Which documents of a table are asked for, and in which order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Query {
    /// The table.
    pub table: TableName,
    /// All of them must hold.
    pub filters: Vec<Filter>,
    /// The order; that of insertion without one.
    pub order: Option<Order>,
    /// The most documents to answer with, when the client says.
    pub limit: Option<usize>,
}

/// One condition on one field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Filter {
    /// The field.
    pub field: Field,
    /// What must be true of it.
    pub condition: Condition,
}

/// What must be true of a field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Condition {
    /// It has this value.
    Equal(Value),
    /// It does not: it has another value, or there is no such field.
    NotEqual(Value),
    /// It has a value of the same type that stands in this relation to this one.
    Compared(Relation, Value),
    /// It has one of these values.
    In(Vec<Value>),
    /// Whether there is such a field.
    Exists(bool),
}

/// How two values of one type stand to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Relation {
    /// The field's value comes after.
    Greater,
    /// The same, or equal.
    GreaterOrEqual,
    /// The field's value comes before.
    Less,
    /// The same, or equal.
    LessOrEqual,
}

/// The order of the answer. Documents that are equal in it follow the order of their insertion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Order {
    /// The field that it goes by.
    pub field: Field,
    /// Whether all of it is turned round, ties included.
    pub descending: bool,
}

/// An answer, or one page of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryPage {
    /// The documents, in order.
    pub documents: Vec<Document>,
    /// Where the next page begins, when there are more documents.
    pub next: Option<Position>,
}

impl Query {
    /// All documents of a table, in the order of their insertion.
    #[must_use]
    pub const fn all(table: TableName) -> Self {
        Self {
            table,
            filters: Vec::new(),
            order: None,
            limit: None,
        }
    }

    /// Reads a query as clients write it:
    ///
    /// ```json
    /// {"table": "places", "filters": [{"field": "address.zip", "op": "gte", "value": 3800}],
    ///  "order": {"field": "name", "direction": "desc"}, "limit": 20}
    /// ```
    ///
    /// All but the table may be left out.
    pub fn from_json(text: &str) -> Result<Self, InputError> {
        let written: Written<'_> = json_object::object(text).map_err(refused)?;
        let table = written.table.parse()?;
        let filters = written.filters.map(|filters| filters.0).unwrap_or_default();
        let filters = filters.iter().enumerate().map(|(index, filter)| {
            let filter = json_object::object::<WrittenFilter<'_>>(filter.get());
            let filter = filter.and_then(|filter| filter.read());
            filter.map_err(|reason| refused(format!("filter {index}: {reason}")))
        });
        let filters = filters.collect::<Result<_, _>>()?;
        let order = written.order.map(|order| {
            let order: WrittenOrder = json_object::object(order.get())?;
            Ok(Order {
                field: order.field.parse()?,
                descending: matches!(order.direction, Some(Direction::Desc)),
            })
        });
        let order = order
            .transpose()
            .map_err(|reason: String| refused(format!("order: {reason}")))?;
        if let Some(limit) = written.limit
            && !(1..=MAX_PAGE).contains(&limit)
        {
            return Err(refused(format!("\"limit\" is 1 to {MAX_PAGE}")));
        }
        Ok(Self {
            table,
            filters,
            order,
            limit: written.limit,
        })
    }
}

fn refused(reason: String) -> InputError {
    InputError::Query { reason }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<'a> {
    table: String,
    #[serde(borrow)]
    filters: Option<Bounded<&'a RawValue, MAX_FILTERS>>,
    #[serde(borrow)]
    order: Option<&'a RawValue>,
    #[serde(default, deserialize_with = "optional_integer")]
    limit: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenFilter<'a> {
    field: String,
    op: Operator,
    #[serde(borrow)]
    value: &'a RawValue,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Operator {
    Eq,
    Neq,
    Gt,
    Gte,
    Lt,
    Lte,
    In,
    Exists,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenOrder {
    field: String,
    direction: Option<Direction>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Direction {
    Asc,
    Desc,
}

impl WrittenFilter<'_> {
    fn read(&self) -> Result<Filter, String> {
        let value = || Value::from_json(self.value.get());
        let compared = |relation| Ok::<_, String>(Condition::Compared(relation, value()?));
        let condition = match self.op {
            Operator::Eq => Condition::Equal(value()?),
            Operator::Neq => Condition::NotEqual(value()?),
            Operator::Gt => compared(Relation::Greater)?,
            Operator::Gte => compared(Relation::GreaterOrEqual)?,
            Operator::Lt => compared(Relation::Less)?,
            Operator::Lte => compared(Relation::LessOrEqual)?,
            Operator::In => {
                let values: Bounded<&RawValue, MAX_IN> =
                    serde_json::from_str(self.value.get()).map_err(|error| reason(&error))?;
                let values = values.0.iter().map(|value| Value::from_json(value.get()));
                Condition::In(values.collect::<Result<_, _>>()?)
            }
            Operator::Exists => match value()? {
                Value::Bool(there) => Condition::Exists(there),
                _ => return Err("\"exists\" takes true or false".to_owned()),
            },
        };
        Ok(Filter {
            field: self.field.parse()?,
            condition,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Query, InputError> {
        Query::from_json(json)
    }

    #[test]
    fn reads_a_whole_query() {
        let query = read(
            r#"{"table":"t","filters":[{"field":"a.b","op":"lt","value":1.50},{"field":"_id","op":"in","value":["x",null]},
                {"field":"c","op":"exists","value":false}],"order":{"field":"_creationTime","direction":"desc"},"limit":20}"#,
        )
        .unwrap();
        let field = |name: &str| name.parse::<Field>().unwrap();
        let condition = |index: usize| query.filters[index].condition.clone();
        assert_eq!(query.filters[0].field, field("a.b"));
        assert_eq!(
            condition(0),
            Condition::Compared(Relation::Less, Value::from_json("1.50").unwrap())
        );
        assert_eq!(
            condition(1),
            Condition::In(vec![Value::String("x".to_owned()), Value::Null])
        );
        assert_eq!(condition(2), Condition::Exists(false));
        assert_eq!(
            query.order,
            Some(Order {
                field: field("_creationTime"),
                descending: true
            })
        );
        assert_eq!(query.limit, Some(20));
        let bare = read(r#"{"table":"t","order":{"field":"a"}}"#).unwrap();
        assert_eq!((bare.filters.len(), bare.limit), (0, None));
        assert!(!bare.order.unwrap().descending);
    }

    #[test]
    fn rejects_what_is_no_query() {
        let many = format!(
            r#"{{"table":"t","filters":[{}1]}}"#,
            "1,".repeat(MAX_FILTERS)
        );
        let long = format!(
            r#"{{"table":"t","filters":[{{"field":"a","op":"in","value":[{}1]}}]}}"#,
            "1,".repeat(MAX_IN)
        );
        for json in [
            "",
            "{}",
            "[]",
            r#"["t"]"#,
            r#"{"table":"t","more":1}"#,
            r#"{"table":"t","table":"t"}"#,
            r#"{"table":"t","filters":{}}"#,
            r#"{"table":"t","filters":[["a","eq",1]]}"#,
            r#"{"table":"t","filters":[{"field":"a","op":"eq"}]}"#,
            r#"{"table":"t","filters":[{"field":"a","op":"like","value":"x"}]}"#,
            r#"{"table":"t","filters":[{"field":"a","op":"eq","value":[]}]}"#,
            r#"{"table":"t","filters":[{"field":"a","op":"gt","value":{}}]}"#,
            r#"{"table":"t","filters":[{"field":"a","op":"eq","value":1e400}]}"#,
            r#"{"table":"t","filters":[{"field":"a","op":"eq","value":"\ud800"}]}"#,
            r#"{"table":"t","filters":[{"field":"a","op":"in","value":1}]}"#,
            r#"{"table":"t","filters":[{"field":"a","op":"in","value":[[]]}]}"#,
            r#"{"table":"t","filters":[{"field":"a","op":"exists","value":1}]}"#,
            r#"{"table":"t","filters":[{"field":"","op":"eq","value":1}]}"#,
            r#"{"table":"t","filters":[{"field":"_rev","op":"eq","value":1}]}"#,
            r#"{"table":"t","order":"a"}"#,
            r#"{"table":"t","order":["a"]}"#,
            r#"{"table":"t","order":{"field":"a","direction":"up"}}"#,
            r#"{"table":"t","order":{"field":"a..b"}}"#,
            r#"{"table":"t","limit":0}"#,
            r#"{"table":"t","limit":-1}"#,
            r#"{"table":"t","limit":1001}"#,
            r#"{"table":"t","limit":1.5}"#,
            &many,
            &long,
        ] {
            assert!(
                matches!(read(json), Err(InputError::Query { .. })),
                "{json}"
            );
        }
        assert!(matches!(
            read(r#"{"table":"t;"}"#),
            Err(InputError::TableName { .. })
        ));
    }
}
