//! What holds of every input from an application.

use std::fmt::Display;

use nimbus_documents::documents::deploy::{
    AppPath, ContentHash, Deploy, MAX_DEPLOY_FILES, MAX_PATH_BYTES, Resources,
};
use nimbus_documents::documents::query::{
    Condition, Field, Filter, MAX_FILTERS, MAX_IN, MAX_PAGE, Position, Query, Relation, Value,
};
use nimbus_documents::documents::schedule::{Cron, MAX_DELAY, NewJob, Schedule};
use nimbus_documents::documents::schema::{
    MAX_INDEXES, MAX_SCHEMA_BYTES, MAX_SCHEMA_FIELDS, TableSchema, Violation,
};
use nimbus_documents::documents::{
    Bounded, Expected, Fields, InputError, MAX_BATCH, MAX_FIELDS_BYTES, Mutation,
};
use serde_json::value::RawValue;
use serde_json::{Map, Value as Json, json};

/// A query that is accepted keeps its limits, and reads back the same when it is written again.
pub fn query(bytes: &[u8]) {
    let Some(query) = accepted(bytes, Query::from_json) else {
        return;
    };
    assert!(query.filters.len() <= MAX_FILTERS);
    assert!(
        query
            .limit
            .is_none_or(|limit| (1..=MAX_PAGE).contains(&limit))
    );
    assert_eq!(Query::from_json(&query_json(&query)), Ok(query));
}

/// The place in a cursor has one spelling. The first line is a query, whose digest does not depend
/// on how it is written; the rest is a place as it was sealed.
pub fn cursor(bytes: &[u8]) {
    let Some(at) = bytes.iter().position(|byte| *byte == b'\n') else {
        return;
    };
    let (query, place) = (&bytes[..at], &bytes[at + 1..]);
    if let Some(query) = accepted(query, Query::from_json) {
        let again = Query::from_json(&query_json(&query)).expect("it was accepted");
        assert_eq!(again.digest(), query.digest());
    }
    if let Some(position) = Position::from_bytes(place) {
        assert_eq!(position.to_bytes(), place);
    }
}

/// Fields that are accepted mean what they meant, and are kept as they will be read. A merge is
/// what one of maps would be. The first line is a document, the second a patch.
pub fn fields(bytes: &[u8]) {
    let mut lines = bytes.splitn(2, |byte| *byte == b'\n');
    let (stored, patch) = (
        lines.next().unwrap_or_default(),
        lines.next().unwrap_or_default(),
    );
    let Some(stored) = accepted(stored, Fields::from_json) else {
        return;
    };
    assert_valid(&stored);
    assert_eq!(
        Fields::from_stored(stored.as_json().to_owned()),
        Some(stored.clone())
    );
    let Some(patch) = accepted(patch, Fields::from_json) else {
        return;
    };
    let merged = match stored.merged_with(&patch) {
        Ok(merged) => merged,
        Err(InputError::TooLarge { size }) => return assert!(size > MAX_FIELDS_BYTES),
        Err(error) => panic!("{error}"),
    };
    assert_valid(&merged);
    let mut model = members(&stored);
    model.extend(members(&patch));
    assert_eq!(members(&merged), model);
    assert_eq!(merged.merged_with(&patch), Ok(merged));
}

/// A mutation that is accepted reads back the same when it is written again.
pub fn mutation(bytes: &[u8]) {
    let Some(mutation) = accepted(bytes, Mutation::from_json) else {
        return;
    };
    assert!(mutation.weight() >= size_of::<Mutation>());
    assert_eq!(Mutation::from_json(&mutation_json(&mutation)), Ok(mutation));
}

/// A job or a cron that is accepted reads back the same when it is written again, and a cron's
/// times lie ahead.
pub fn schedule(bytes: &[u8]) {
    if let Some(job) = accepted(bytes, NewJob::from_json) {
        assert!(job.delay <= MAX_DELAY);
        assert!(!matches!(job.mutation, Mutation::Check { .. }));
    }
    let Some(cron) = accepted(bytes, Cron::from_json) else {
        return;
    };
    assert!(!cron.mutation.is_conditional());
    let schedule = cron.schedule;
    assert_eq!(
        Schedule::from_json(&schedule.to_json()).as_ref(),
        Ok(&schedule)
    );
    // 2027-01-15, 08:00 UTC.
    let mut at = 1_800_000_000_000;
    for _ in 0..3 {
        // None for times that the zone always skips.
        let Some(next) = schedule.first_after(at) else {
            return;
        };
        assert!(next > at);
        at = next;
    }
}

/// A schema that is accepted reads back the same, has one spelling, and comes to the same about a
/// document as its copy from a store does: the document is right, or a message of bounded length
/// says what is not. The first line is a schema, each of the others a document. What a schema may
/// cost is bounded before it is compiled; libFuzzer's `-timeout` holds it to that.
pub fn schema(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let Some(schema) = accepted(lines.next().unwrap_or_default(), TableSchema::from_json) else {
        return;
    };
    assert!(schema.fields().len() <= MAX_SCHEMA_FIELDS);
    assert!(schema.indexes().len() <= MAX_INDEXES);
    let text = schema.to_json();
    assert!(text.len() <= 2 * MAX_SCHEMA_BYTES);
    assert_eq!(TableSchema::from_json(&text).as_ref(), Ok(&schema));
    let stored = TableSchema::from_stored(&text).expect("it was accepted");
    assert_eq!(stored.to_json(), text);
    for line in lines.take(MAX_DOCUMENTS) {
        let Some(document) = accepted(line, Fields::from_json) else {
            continue;
        };
        let found = schema.check("t", &document);
        assert_eq!(stored.check("t", &document), found);
        match found {
            Ok(()) => {}
            Err(Violation::Unreadable { reason } | Violation::Unusable { reason }) => {
                panic!("{reason}")
            }
            Err(violation) => assert!(violation.to_string().len() < 4096),
        }
    }
}

/// The mutations of a batch as its route takes them apart: each is read, or refused, by itself.
pub fn batch(bytes: &[u8]) {
    type Written = Bounded<Box<RawValue>, MAX_BATCH>;
    let Ok(Bounded(mutations)) = serde_json::from_slice::<Written>(bytes) else {
        return;
    };
    assert!(mutations.len() <= MAX_BATCH);
    for one in mutations {
        mutation(one.get().as_bytes());
    }
}

/// A deploy that is accepted has files that lie within their app, each with the content of its
/// hash, and schemas and crons that are read again from what a store keeps of them.
pub fn deploy(bytes: &[u8]) {
    let Some(deploy) = accepted(bytes, Deploy::from_json) else {
        return;
    };
    assert!(deploy.files.len() <= MAX_DEPLOY_FILES);
    for (path, content) in &deploy.files {
        assert_within(path);
        assert_eq!(content.hash(), ContentHash::of(content.bytes()));
    }
    let resources = &deploy.resources;
    let (schemas, crons) = (resources.schemas_json(), resources.crons_json());
    let again = Resources::from_stored(&schemas, &crons);
    assert_eq!(again.as_ref(), Some(resources));
}

/// A path that is accepted does not leave its app.
pub fn path(bytes: &[u8]) {
    let read = |text: &str| text.parse::<AppPath>();
    if let Some(path) = accepted(bytes, read) {
        assert_within(&path);
    }
}

/// It is made of names, and is its own normal form.
fn assert_within(path: &AppPath) {
    assert!(path.as_str().len() <= MAX_PATH_BYTES);
    assert_eq!(path.as_str().parse().as_ref(), Ok(path));
    let special = |c: char| c.is_control() || c == '\\';
    for name in path.as_str().split('/') {
        assert!(!matches!(name, "" | "." | ".."));
        assert!(!name.contains(special));
    }
}

/// What the library makes of text; nothing of what is refused, or is no text. The refusal is one
/// that can be printed.
fn accepted<T, E: Display>(bytes: &[u8], read: fn(&str) -> Result<T, E>) -> Option<T> {
    match read(str::from_utf8(bytes).ok()?) {
        Ok(value) => Some(value),
        Err(error) => {
            assert!(error.to_string().len() < 4096);
            None
        }
    }
}

/// Fields are read again, by us and by anybody's parser, and come out as they are.
fn assert_valid(fields: &Fields) {
    assert!(fields.as_json().len() <= MAX_FIELDS_BYTES);
    assert_eq!(Fields::from_json(fields.as_json()).as_ref(), Ok(fields));
    assert!(members(fields).keys().all(|name| !name.starts_with('_')));
}

fn members(fields: &Fields) -> Map<String, Json> {
    serde_json::from_str(fields.as_json()).expect("fields are a JSON object")
}

/// A query as a client writes it. Numbers are spliced in digit for digit.
fn query_json(query: &Query) -> String {
    let filters: Vec<String> = query.filters.iter().map(filter_json).collect();
    let mut json = format!(
        r#"{{"table":"{}","filters":[{}]"#,
        query.table,
        filters.join(",")
    );
    if let Some(order) = &query.order {
        let direction = if order.descending { "desc" } else { "asc" };
        let order = json!({"field": field_text(&order.field), "direction": direction});
        json.push_str(&format!(r#","order":{order}"#));
    }
    if let Some(limit) = query.limit {
        json.push_str(&format!(r#","limit":{limit}"#));
    }
    json.push('}');
    json
}

fn filter_json(filter: &Filter) -> String {
    let (op, value) = match &filter.condition {
        Condition::Equal(value) => ("eq", value_json(value)),
        Condition::NotEqual(value) => ("neq", value_json(value)),
        Condition::Compared(Relation::Greater, value) => ("gt", value_json(value)),
        Condition::Compared(Relation::GreaterOrEqual, value) => ("gte", value_json(value)),
        Condition::Compared(Relation::Less, value) => ("lt", value_json(value)),
        Condition::Compared(Relation::LessOrEqual, value) => ("lte", value_json(value)),
        Condition::In(values) => {
            assert!(values.len() <= MAX_IN);
            let values: Vec<String> = values.iter().map(value_json).collect();
            ("in", format!("[{}]", values.join(",")))
        }
        Condition::Exists(there) => ("exists", there.to_string()),
    };
    let field = Json::from(field_text(&filter.field));
    format!(r#"{{"field":{field},"op":"{op}","value":{value}}}"#)
}

fn value_json(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.as_json().to_owned(),
        Value::String(text) => Json::from(text.as_str()).to_string(),
    }
}

fn field_text(field: &Field) -> String {
    match field {
        Field::Id => "_id".to_owned(),
        Field::Created => "_creationTime".to_owned(),
        Field::Updated => "_updateTime".to_owned(),
        Field::Version => "_version".to_owned(),
        Field::Path(names) => names.join("."),
    }
}

/// A mutation as a client writes it.
fn mutation_json(mutation: &Mutation) -> String {
    match mutation {
        Mutation::Insert { table, fields, id } => {
            let id = id.map_or_else(String::new, |id| format!(r#","id":"{id}""#));
            let fields = fields.as_json();
            format!(r#"{{"type":"insert","table":"{table}","fields":{fields}{id}}}"#)
        }
        Mutation::Update {
            table,
            id,
            patch,
            if_version,
        } => {
            let (patch, condition) = (patch.as_json(), condition(*if_version));
            format!(
                r#"{{"type":"update","table":"{table}","id":"{id}","patch":{patch}{condition}}}"#
            )
        }
        Mutation::Delete {
            table,
            id,
            if_version,
        } => {
            let condition = condition(*if_version);
            format!(r#"{{"type":"delete","table":"{table}","id":"{id}"{condition}}}"#)
        }
        Mutation::Check {
            table,
            id,
            expected,
        } => {
            let version = match expected {
                Expected::Absent => "null".to_owned(),
                Expected::OneOf(versions) => versions[0].to_string(),
                Expected::Present => panic!("a client does not write it"),
            };
            format!(r#"{{"type":"check","table":"{table}","id":"{id}","version":{version}}}"#)
        }
        other => panic!("how a client writes {other:?} is not told here yet"),
    }
}

fn condition(if_version: Option<i64>) -> String {
    if_version.map_or_else(String::new, |version| format!(r#","if_version":{version}"#))
}

/// How many documents are held to one schema.
const MAX_DOCUMENTS: usize = 8;
