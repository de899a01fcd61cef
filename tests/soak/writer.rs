//! A client that writes documents into a table of its own, and reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};

use crate::client::{Answer, Broken, Client, expect_killed, turned_away};
use crate::model::{Change, Document, Documents, Model};
use crate::random::Random;

pub(crate) struct Writer {
    tenant: &'static str,
    table: String,
    random: Random,
    model: Model,
    next: u64,
    acknowledged: u64,
}

impl Writer {
    pub(crate) fn new(seed: u64, number: u64, tenant: &'static str) -> Self {
        Self {
            tenant,
            table: format!("writer{number}"),
            random: Random::new(seed, number),
            model: Model::default(),
            next: 0,
            acknowledged: 0,
        }
    }

    pub(crate) fn tenant(&self) -> &'static str {
        self.tenant
    }

    pub(crate) fn table(&self) -> String {
        self.table.clone()
    }

    /// The ids of all documents that are there.
    pub(crate) fn ids(&self) -> BTreeSet<String> {
        let ids = self
            .model
            .documents
            .values()
            .filter_map(|document| document.id.clone());
        ids.collect()
    }

    /// How many changes were made.
    pub(crate) fn applied(&self) -> u64 {
        self.model.applied
    }

    /// How many requests that write were answered with success.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Every other table has a schema with a unique index.
    pub(crate) fn settle_in(&mut self, client: &mut Client) {
        if self.random.below(2) == 0 {
            return;
        }
        let schema = json!({
            "table": self.table,
            "fields": [
                {"name": "n", "field_type": "number", "required": true},
                {"name": "filler", "field_type": "string", "required": true},
            ],
            "indexes": [{"name": "by_number", "fields": ["n"], "unique": true}],
        });
        let path = format!("/api/tenants/{}/schema/{}", self.tenant, self.table);
        let (status, answer) = client
            .request("PUT", &path, &schema.to_string())
            .expect("a server");
        assert_eq!(status, 204, "{answer}");
    }

    /// Works until the server is killed.
    pub(crate) fn work(&mut self, mut client: Client, killed: &AtomicBool) {
        while let Ok(()) = self.step(&mut client) {}
        expect_killed(killed);
    }

    pub(crate) fn step(&mut self, client: &mut Client) -> Result<(), Broken> {
        let many = self.model.documents.len() as u64 > MANY;
        match self.random.below(100) {
            0..40 if !many => self.insert(client),
            40..60 => self.update(client),
            60..70 => self.delete(client),
            0..40 => self.delete(client),
            70..85 => self.batch(client),
            85..95 => self.read(client),
            _ => self.query(client),
        }
    }

    fn insert(&mut self, client: &mut Client) -> Result<(), Broken> {
        let number = self.fresh();
        let body = json!({"table": self.table, "fields": fields(number, 0)});
        self.model.pending = vec![Change::Insert(number)];
        let answer = client.post(&self.path("documents"), &body);
        self.written(client, 201, answer, |answer| vec![result(answer)])
    }

    fn update(&mut self, client: &mut Client) -> Result<(), Broken> {
        let Some((number, document)) = self.some_document() else {
            return self.insert(client);
        };
        let version = document.version + 1;
        let patch = fields(number, version);
        self.model.pending = vec![Change::Update(number, version)];
        // Every other one depends on what is there, which nobody else changes.
        if let Some(written) = document.written
            && self.random.below(2) == 0
        {
            let update = json!({"type": "update", "table": self.table, "id": document.id, "patch": patch, "if_version": written});
            let answer = client.post(&self.path("batch"), &json!({"mutations": [update]}));
            return self.written(client, 200, answer, |answer| {
                vec![result(&answer["results"][0])]
            });
        }
        let body = json!({"patch": patch});
        let answer = client.request("PATCH", &self.document(&document), &body.to_string());
        self.written(client, 200, answer, |answer| vec![result(answer)])
    }

    fn delete(&mut self, client: &mut Client) -> Result<(), Broken> {
        let Some((number, document)) = self.some_document() else {
            return self.insert(client);
        };
        self.model.pending = vec![Change::Delete(number)];
        let answer = client.request("DELETE", &self.document(&document), "");
        self.written(client, 204, answer, |_| Vec::new())
    }

    /// Inserts, an update and a delete, all or nothing; sometimes with one among them that cannot
    /// be.
    fn batch(&mut self, client: &mut Client) -> Result<(), Broken> {
        let (Some((updated, one)), Some((deleted, other))) =
            (self.some_document(), self.some_document())
        else {
            return self.insert(client);
        };
        if updated == deleted {
            return self.insert(client);
        }
        let table = &self.table.clone();
        let mut mutations = Vec::new();
        let mut pending = Vec::new();
        for _ in 0..=self.random.below(4) {
            let number = self.fresh();
            pending.push(Change::Insert(number));
            mutations.push(json!({"type": "insert", "table": table, "fields": fields(number, 0)}));
        }
        let version = one.version + 1;
        pending.extend([Change::Update(updated, version), Change::Delete(deleted)]);
        mutations.push(
            json!({"type": "update", "table": table, "id": one.id, "patch": fields(updated, version)}),
        );
        mutations.push(json!({"type": "delete", "table": table, "id": other.id}));
        let impossible = self.random.below(4) == 0;
        if impossible {
            mutations.push(json!({"type": "delete", "table": table, "id": other.id}));
        }
        let answer = client.post(&self.path("batch"), &json!({"mutations": mutations}));
        if impossible {
            let (status, answer) = answer?;
            assert!(status == 404 || turned_away(status), "{status} {answer}");
            return self.read(client);
        }
        self.model.pending = pending;
        self.written(client, 200, answer, |answer| {
            let results = answer["results"].as_array().expect("results");
            results.iter().map(result).collect()
        })
    }

    /// What came of a write.
    fn written(
        &mut self,
        client: &mut Client,
        success: u16,
        answer: Answer,
        results: impl FnOnce(&Value) -> Vec<(String, u64)>,
    ) -> Result<(), Broken> {
        let (status, answer) = answer?;
        if status == success {
            self.acknowledged += 1;
            self.model.acknowledge(results(&answer).into_iter());
            return Ok(());
        }
        assert!(turned_away(status), "{status} {answer}");
        // It may have been made all the same.
        self.try_settle(client)
    }

    /// One document, which must be as it was left.
    fn read(&mut self, client: &mut Client) -> Result<(), Broken> {
        let Some((number, document)) = self.some_document() else {
            return Ok(());
        };
        let (status, answer) = client.get(&self.document(&document))?;
        if !turned_away(status) {
            assert_eq!(status, 200, "{} lost {number}: {answer}", self.table);
            assert_eq!(read_document(&answer["document"]), (number, document));
        }
        Ok(())
    }

    fn query(&mut self, client: &mut Client) -> Result<(), Broken> {
        let Some((number, document)) = self.some_document() else {
            return Ok(());
        };
        let filter = json!({"field": "n", "op": "gte", "value": number});
        let order = json!({"field": "n", "direction": "asc"});
        let query = json!({"table": self.table, "filters": [filter], "order": order, "limit": 3});
        let (status, answer) = client.post(&self.path("query"), &query)?;
        if turned_away(status) {
            return Ok(());
        }
        assert_eq!(status, 200, "{answer}");
        let found = answer["data"]
            .as_array()
            .expect("data")
            .iter()
            .map(read_document);
        let expected = self.model.documents.range(number..).take(3);
        let expected = expected.map(|(number, document)| (*number, document.clone()));
        assert_eq!(
            found.collect::<Vec<_>>(),
            expected.collect::<Vec<_>>(),
            "{document:?}"
        );
        Ok(())
    }

    /// Compares all documents with what is known of them.
    pub(crate) fn settle(&mut self, client: &mut Client) {
        self.try_settle(client).expect("the server runs");
    }

    fn try_settle(&mut self, client: &mut Client) -> Result<(), Broken> {
        let path = format!("/api/tenants/{}/documents/{}", self.tenant, self.table);
        let (mut status, mut answer) = client.get(&path)?;
        while turned_away(status) {
            (status, answer) = client.get(&path)?;
        }
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["has_more"], false, "{}", self.table);
        let listed = answer["data"].as_array().expect("data");
        let found: Documents = listed.iter().map(read_document).collect();
        assert_eq!(
            found.len(),
            listed.len(),
            "{}: one is there twice",
            self.table
        );
        let settled = self.model.settle(found);
        settled.unwrap_or_else(|fault| panic!("{} {}: {fault}", self.tenant, self.table));
        Ok(())
    }

    fn some_document(&mut self) -> Option<(u64, Document)> {
        let documents: &BTreeMap<_, _> = &self.model.documents;
        let place = self.random.below(documents.len().max(1) as u64) as usize;
        let (number, document) = documents.iter().nth(place)?;
        Some((*number, document.clone()))
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn path(&self, resource: &str) -> String {
        format!("/api/tenants/{}/{resource}", self.tenant)
    }

    fn document(&self, document: &Document) -> String {
        let id = document.id.as_ref().expect("the server said");
        format!("/api/tenants/{}/documents/{}/{id}", self.tenant, self.table)
    }
}

/// What the server says of a write: the document and the number of the write.
fn result(json: &Value) -> (String, u64) {
    let written = json["version"].as_u64().expect("a number");
    (text(&json["id"]), written)
}

/// A document's fields; number and version determine every byte.
fn fields(number: u64, version: u64) -> Value {
    let mut random = Random::new(number, version);
    let words: Vec<String> = (0..random.below(120))
        .map(|_| format!("{:x}", random.below(1 << 40)))
        .collect();
    json!({"n": number, "version": version, "filler": words.join(" ")})
}

/// A document as the server gives it, of which every byte must be right.
fn read_document(json: &Value) -> (u64, Document) {
    let (number, version) = (json["n"].as_u64(), json["version"].as_u64());
    let (number, version) = number.zip(version).expect("a document of ours");
    let expected = fields(number, version);
    for (name, value) in expected.as_object().expect("fields") {
        assert_eq!(&json[name], value, "{number}, {version}");
    }
    let id = Some(text(&json["_id"]));
    let written = json["_version"].as_u64();
    assert!(written.is_some(), "{json}");
    let document = Document {
        id,
        version,
        written,
    };
    (number, document)
}

fn text(json: &Value) -> String {
    json.as_str().expect("a string").to_owned()
}

/// From so many documents on none is added alone: a list must hold all.
const MANY: u64 = 300;
