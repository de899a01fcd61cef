//! Queries as SQL. Values, and paths too, are bound parameters: the text is made of our own words alone.
//!
//! What each comparison means is defined in `docs/queries.md`. SQLite compares within a type as that page says: integers
//! with doubles exactly, text by its UTF-8 bytes, which is by code points. Types are kept apart by `json_type`.

use nimbus_manifests::TenantId;
use rusqlite::{Row, Transaction, params, params_from_iter, types::Value as Sql};

use super::{
    apply::{Reader, malformed, stored_document},
    failure,
};
use crate::{
    documents::{
        Document, DocumentId, MAX_FIELDS_BYTES,
        query::{
            Condition, Field, Filter, Key, MAX_PAGE, Order, Position, Query, QueryPage, Relation,
            Value,
        },
    },
    tenants::{MAX_LIST_BYTES, StoreError},
};

impl Reader {
    /// The documents that a query finds after a position: at most `limit`, and not more than fit an answer.
    pub(super) fn query(
        &mut self,
        tenant: &TenantId,
        query: &Query,
        after: Option<&Position>,
        limit: usize,
    ) -> Result<QueryPage, StoreError> {
        let sqlite = |error| failure(tenant, error);
        let Some(number) = self.number(&query.table).map_err(sqlite)? else {
            return Ok(QueryPage {
                documents: Vec::new(),
                next: None,
            });
        };
        let statement = Statement::new(number, query, after, limit.min(MAX_PAGE));
        let snapshot = self.snapshot().map_err(sqlite)?;
        page(&snapshot, number, &statement, limit.min(MAX_PAGE)).map_err(sqlite)
    }
}

/// Finds the places of the documents first, and then reads each: sorting holds keys and no bodies.
fn page(
    snapshot: &Transaction<'_>,
    number: i64,
    statement: &Statement,
    limit: usize,
) -> rusqlite::Result<QueryPage> {
    let mut find = snapshot.prepare_cached(&statement.sql)?;
    let mut places = find.query(params_from_iter(&statement.parameters))?;
    let fetch =
        format!("SELECT id, created, updated, json(fields) FROM documents_{number} WHERE seq = ?1");
    let mut fetch = snapshot.prepare_cached(&fetch)?;
    let mut documents: Vec<Document> = Vec::new();
    let mut bytes = 0;
    let mut last = None;
    while let Some(place) = places.next()? {
        let full = documents.len() == limit;
        let document = if full {
            None
        } else {
            let document = fetch.query_row(params![place.get::<_, i64>(0)?], stored_document)?;
            bytes += document.fields.as_json().len();
            (bytes <= MAX_LIST_BYTES).then_some(document)
        };
        let Some(document) = document else {
            return Ok(QueryPage {
                documents,
                next: last,
            });
        };
        documents.push(document);
        // Kept for the last one alone: a key may be as long as a document.
        if documents.len() == limit || bytes + MAX_FIELDS_BYTES > MAX_LIST_BYTES {
            last = Some(position(place)?);
        }
    }
    Ok(QueryPage {
        documents,
        next: None,
    })
}

fn position(place: &Row<'_>) -> rusqlite::Result<Position> {
    let key = match place.get(2)? {
        Sql::Integer(integer) => Key::Integer(integer),
        Sql::Real(double) => Key::Double(double),
        Sql::Text(text) => Key::Text(text),
        Sql::Null | Sql::Blob(_) => return Err(malformed(2, "fields")),
    };
    Ok(Position {
        rank: place.get(1)?,
        key,
        seq: place.get(0)?,
    })
}

/// A statement that finds documents, and what is bound to it.
struct Statement {
    sql: String,
    parameters: Vec<Sql>,
}

impl Statement {
    /// Its rows are `seq`, and the rank and key that the order goes by.
    fn new(number: i64, query: &Query, after: Option<&Position>, limit: usize) -> Self {
        let mut statement = Self {
            sql: String::new(),
            parameters: Vec::new(),
        };
        let mut conditions: Vec<String> = query
            .filters
            .iter()
            .map(|filter| statement.filter(filter))
            .collect();
        let (rank, key, descending) = match &query.order {
            Some(Order { field, descending }) => {
                let (rank, key) = statement.order(field);
                (rank, key, *descending)
            }
            None => ("0".to_owned(), "0".to_owned(), false),
        };
        let (direction, beyond) = if descending {
            ("DESC", '<')
        } else {
            ("ASC", '>')
        };
        if let Some(Position {
            rank: at,
            key: value,
            seq,
        }) = after
        {
            let seq = statement.bind(*seq);
            conditions.push(if query.order.is_some() {
                let (at, value) = (statement.bind(*at), statement.bind(value.clone()));
                format!("({rank}, {key}, seq) {beyond} ({at}, {value}, {seq})")
            } else {
                format!("seq > {seq}")
            });
        }
        let conditions = match &conditions[..] {
            [] => String::new(),
            conditions => format!(" WHERE ({})", conditions.join(") AND (")),
        };
        let order = match query.order {
            Some(_) => format!("2 {direction}, 3 {direction}, seq {direction}"),
            None => "seq".to_owned(),
        };
        // One more says whether there are more; `limit` is small.
        let limit = statement.bind(limit as i64 + 1);
        statement.sql = format!(
            "SELECT seq, {rank}, {key} FROM documents_{number}{conditions} ORDER BY {order} LIMIT {limit}"
        );
        statement
    }

    fn filter(&mut self, filter: &Filter) -> String {
        // The index on it serves the commonest question.
        if let (Field::Id, Condition::Equal(Value::String(id))) = (&filter.field, &filter.condition)
            && let Ok(id) = id.parse::<DocumentId>()
        {
            let id = self.bind(id.as_bytes().to_vec());
            return format!("id = {id}");
        }
        let field = self.field(&filter.field);
        match &filter.condition {
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
        match with {
            // Null equals null and is neither before nor after it.
            Value::Null if relation.contains('=') => format!("{kind} = 'null'"),
            Value::Null => "FALSE".to_owned(),
            Value::Bool(with) => {
                let with = self.bind(*with);
                format!("CASE {kind} WHEN 'false' THEN 0 WHEN 'true' THEN 1 END {relation} {with}")
            }
            // Read by the function that reads the stored numbers, so that the same digits are the same number.
            Value::Number(with) => {
                let with = self.bind(with.as_json().to_owned());
                format!(
                    "{kind} IN ('integer', 'real') AND {value} {relation} json_extract({with}, '$')"
                )
            }
            Value::String(with) => {
                let with = self.bind(with.clone());
                format!("{kind} = 'text' AND {value} {relation} {with}")
            }
        }
    }

    /// The text does not depend on how many values there are.
    fn one_of(&mut self, Expressions { kind, value }: &Expressions, values: &[Value]) -> String {
        let list = |pick: fn(&Value) -> Option<String>| {
            let picked: Vec<String> = values.iter().filter_map(pick).collect();
            format!("[{}]", picked.join(","))
        };
        let numbers = self.bind(list(|value| match value {
            Value::Number(number) => Some(number.as_json().to_owned()),
            _ => None,
        }));
        let strings = self.bind(list(|value| match value {
            Value::String(text) => Some(serde_json::Value::from(text.as_str()).to_string()),
            _ => None,
        }));
        let kinds = self.bind(list(|value| match value {
            Value::Null | Value::Bool(_) => Some(
                match value {
                    Value::Bool(true) => r#""true""#,
                    Value::Bool(false) => r#""false""#,
                    _ => r#""null""#,
                }
                .to_owned(),
            ),
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

    /// The rank of a field's type, and the value where a type has several that are ordered. Neither is ever NULL.
    fn order(&mut self, field: &Field) -> (String, String) {
        let Expressions { kind, value } = self.field(field);
        let rank = format!(
            "CASE {kind} WHEN 'null' THEN 1 WHEN 'false' THEN 2 WHEN 'true' THEN 3 WHEN 'integer' THEN 4 \
             WHEN 'real' THEN 4 WHEN 'text' THEN 5 WHEN 'array' THEN 6 WHEN 'object' THEN 7 ELSE 0 END"
        );
        let key =
            format!("CASE WHEN {kind} IN ('integer', 'real', 'text') THEN {value} ELSE 0 END");
        (rank, key)
    }

    fn field(&mut self, field: &Field) -> Expressions {
        let (kind, value) = match field {
            Field::Id => ("'text'".to_owned(), ID_TEXT.to_owned()),
            Field::Created => ("'integer'".to_owned(), "created".to_owned()),
            Field::Updated => ("'integer'".to_owned(), "updated".to_owned()),
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
    /// Its value, of numbers and text.
    value: String,
}

/// A path as SQLite's functions take it: every name in quotes, escaped as in JSON.
fn path(names: &[String]) -> String {
    let mut path = String::from("$");
    for name in names {
        path.push('.');
        path.push_str(&serde_json::Value::from(name.as_str()).to_string());
    }
    path
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

/// A document's id as its clients know it.
const ID_TEXT: &str = "lower(substr(hex(id), 1, 8) || '-' || substr(hex(id), 9, 4) || '-' || substr(hex(id), 13, 4) || '-' \
                       || substr(hex(id), 17, 4) || '-' || substr(hex(id), 21))";
