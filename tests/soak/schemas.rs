//! A client that sets, changes and removes the schema of a table with documents, and tries what
//! each of them refuses.

use serde_json::{Value, json};

use crate::client::{Broken, Client, Hand, turned_away};
use crate::random::Random;

pub(crate) struct Indexer {
    tenant: &'static str,
    random: Random,
    /// Which table; another begins when one is full.
    table: u64,
    /// The number in each document.
    numbers: Vec<u64>,
    schema: Schema,
    pending_schema: Option<Schema>,
    pending_number: Option<u64>,
    next: u64,
    set: u64,
    refused: u64,
    written: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Schema {
    None,
    /// Each number once.
    Unique,
    /// An index that is not unique, and a JSON Schema.
    Shaped,
}

impl Indexer {
    pub(crate) fn new(seed: u64, tenant: &'static str) -> Self {
        Self {
            tenant,
            random: Random::new(seed, 3001),
            table: 0,
            numbers: Vec::new(),
            schema: Schema::None,
            pending_schema: None,
            pending_number: None,
            next: 0,
            set: 0,
            refused: 0,
            written: 0,
        }
    }

    fn set(&mut self, client: &mut Client) -> Result<(), Broken> {
        let wanted = match (self.schema, self.random.below(2)) {
            (Schema::None | Schema::Shaped, 0) => Schema::Unique,
            (Schema::None, _) | (Schema::Unique, 0) => Schema::Shaped,
            _ => Schema::None,
        };
        self.pending_schema = Some(wanted);
        let (method, body) = match wanted {
            Schema::None => ("DELETE", String::new()),
            _ => ("PUT", self.written_schema(wanted).to_string()),
        };
        let (status, answer) = client.request(method, &self.path("schema"), &body)?;
        let fits = wanted != Schema::Unique || !self.has_twins();
        match (status, fits) {
            (204, true) => {
                self.schema = wanted;
                self.set += 1;
            }
            (409, false) => self.refused += 1,
            _ => {
                assert!(turned_away(status), "{wanted:?}: {status} {answer}");
                return self.check(client);
            }
        }
        self.pending_schema = None;
        Ok(())
    }

    fn insert(&mut self, client: &mut Client, number: u64) -> Result<(), Broken> {
        self.pending_number = Some(number);
        let (status, answer) = self.post(client, json!({"n": number}))?;
        let fits = self.schema != Schema::Unique || !self.numbers.contains(&number);
        match (status, fits) {
            (201, true) => {
                self.numbers.push(number);
                self.written += 1;
            }
            (409, false) => self.refused += 1,
            _ => {
                assert!(turned_away(status), "{number}: {status} {answer}");
                return self.check(client);
            }
        }
        self.pending_number = None;
        Ok(())
    }

    /// What no schema lets in.
    fn insert_wrong(&mut self, client: &mut Client) -> Result<(), Broken> {
        if self.schema == Schema::None {
            return Ok(());
        }
        let (status, answer) = self.post(client, json!({"n": "a word"}))?;
        let code = &answer["error"]["code"];
        assert!(
            (status == 400 && code == "op.schema_validation") || turned_away(status),
            "{status} {answer}"
        );
        self.refused += u64::from(status == 400);
        Ok(())
    }

    /// The schema is what was acknowledged or under way, and so are the documents.
    fn check(&mut self, client: &mut Client) -> Result<(), Broken> {
        let (status, answer) = client.get_at_last(&self.path("schema"))?;
        let schema = match (status, answer["indexes"][0]["name"].as_str()) {
            (404, _) => Schema::None,
            (200, Some("only")) => Schema::Unique,
            (200, Some("by_number")) => Schema::Shaped,
            _ => panic!("{status} {answer}"),
        };
        let pending = self.pending_schema.take();
        assert!(
            schema == self.schema || Some(schema) == pending,
            "{schema:?}, not {:?} or {pending:?}",
            self.schema
        );
        self.schema = schema;
        let (status, listed) = client.get_at_last(&self.path("documents"))?;
        assert_eq!(status, 200, "{listed}");
        let documents = listed["data"].as_array().expect("data").iter();
        let numbers: Vec<u64> = documents
            .map(|one| one["n"].as_u64().expect("a number"))
            .collect();
        let mut expected = self.numbers.clone();
        if numbers.len() != expected.len() {
            expected.extend(self.pending_number);
        }
        self.pending_number = None;
        assert_eq!(numbers, expected, "the documents of {}", self.name());
        self.numbers = numbers;
        assert!(self.schema != Schema::Unique || !self.has_twins());
        Ok(())
    }

    fn post(&self, client: &mut Client, fields: Value) -> Result<(u16, Value), Broken> {
        let path = format!("/api/tenants/{}/documents", self.tenant);
        client.post(&path, &json!({"table": self.name(), "fields": fields}))
    }

    fn has_twins(&self) -> bool {
        let mut numbers = self.numbers.clone();
        numbers.sort_unstable();
        numbers.windows(2).any(|two| two[0] == two[1])
    }

    fn written_schema(&self, schema: Schema) -> Value {
        let unique = schema == Schema::Unique;
        let name = if unique { "only" } else { "by_number" };
        json!({
            "table": self.name(),
            "fields": [{"name": "n", "field_type": "number", "required": true}],
            "indexes": [{"name": name, "fields": ["n"], "unique": unique}],
            "json_schema": {"properties": {"n": {"minimum": 0}}},
        })
    }

    fn name(&self) -> String {
        format!("numbers{}", self.table)
    }

    fn path(&self, resource: &str) -> String {
        format!("/api/tenants/{}/{resource}/{}", self.tenant, self.name())
    }
}

impl Hand for Indexer {
    fn step(&mut self, client: &mut Client) -> Result<(), Broken> {
        if self.numbers.len() >= FULL {
            self.table += 1;
            self.numbers.clear();
            self.schema = Schema::None;
        }
        let place = self.random.below(self.numbers.len().max(1) as u64) as usize;
        match (self.random.below(10), self.numbers.get(place)) {
            (0..2, _) => self.set(client),
            (2, _) => self.insert_wrong(client),
            // Where no schema forbids it seldom: with twins there is no unique index to be had.
            (3..5, Some(&twin)) if self.schema == Schema::Unique => self.insert(client, twin),
            (3, Some(&twin)) if self.numbers.len() > FULL / 2 => self.insert(client, twin),
            _ => {
                self.next += 1;
                self.insert(client, self.next)
            }
        }
    }

    fn settle(&mut self, client: &mut Client) {
        self.check(client).expect("the server runs");
        // An index that is there refuses, whoever asks first.
        if self.schema == Schema::Unique
            && let Some(&twin) = self.numbers.first()
        {
            self.insert(client, twin).expect("the server runs");
        }
    }

    fn done(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("schemas set", self.set),
            ("writes under them", self.written),
            ("refused by them", self.refused),
        ]
    }
}

/// So many documents are listed at once, with room.
const FULL: usize = 200;
