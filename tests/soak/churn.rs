//! A client that creates tenants, writes into them, and deletes them; each name comes again.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};

use crate::client::{Broken, Client, expect_killed, turned_away};
use crate::random::Random;

pub(crate) struct Churner {
    names: Vec<String>,
    random: Random,
    /// What was acknowledged to be there, and was not deleted.
    there: BTreeSet<String>,
    /// Whose creation or deletion was not answered.
    uncertain: Option<String>,
    created: u64,
}

impl Churner {
    pub(crate) fn new(seed: u64, number: u64) -> Self {
        Self {
            names: (0..5)
                .map(|name| format!("churn-{number}-{name}"))
                .collect(),
            random: Random::new(seed, number + 1000),
            there: BTreeSet::new(),
            uncertain: None,
            created: 0,
        }
    }

    pub(crate) fn created(&self) -> u64 {
        self.created
    }

    /// Works until the server is killed.
    pub(crate) fn work(&mut self, mut client: Client, killed: &AtomicBool) {
        while let Ok(()) = self.step(&mut client) {}
        expect_killed(killed);
    }

    fn step(&mut self, client: &mut Client) -> Result<(), Broken> {
        let choice = self.random.below(self.names.len() as u64) as usize;
        let name = self.names[choice].clone();
        if self.there.contains(&name) {
            self.look_into(client, &name)?;
            self.uncertain = Some(name.clone());
            let (status, answer) = client.request("DELETE", &format!("/api/tenants/{name}"), "")?;
            assert!(status == 204 || turned_away(status), "{status} {answer}");
            if status == 204 {
                self.there.remove(&name);
            }
        } else {
            self.uncertain = Some(name.clone());
            let (status, answer) = client.post("/api/tenants", &json!({"id": name}))?;
            assert!(status == 201 || turned_away(status), "{status} {answer}");
            if status == 201 {
                self.created += 1;
                self.there.insert(name.clone());
                self.uncertain = None;
                self.begin(client, &name)?;
            }
        }
        self.resolve(client)
    }

    /// A tenant that was just created is empty, whatever its name had been used for.
    fn begin(&mut self, client: &mut Client, name: &str) -> Result<(), Broken> {
        let (status, answer) = client.get(&format!("/api/tenants/{name}/documents/notes"))?;
        assert!(
            turned_away(status) || answer["data"] == json!([]),
            "{name}: {answer}"
        );
        let note = json!({"table": "notes", "fields": {"of": name}});
        let (status, answer) = client.post(&format!("/api/tenants/{name}/documents"), &note)?;
        assert!(status == 201 || turned_away(status), "{status} {answer}");
        Ok(())
    }

    /// It is there, and holds no other's notes.
    fn look_into(&self, client: &mut Client, name: &str) -> Result<(), Broken> {
        let (status, answer) = client.get(&format!("/api/tenants/{name}/documents/notes"))?;
        if turned_away(status) {
            return Ok(());
        }
        assert_eq!(status, 200, "{name}: {answer}");
        let notes = answer["data"].as_array().expect("data");
        assert!(
            notes.len() <= 1 && notes.iter().all(|note| note["of"] == name),
            "{answer}"
        );
        Ok(())
    }

    /// Asks what became of what was not answered with success.
    fn resolve(&mut self, client: &mut Client) -> Result<(), Broken> {
        let Some(name) = self.uncertain.take() else {
            return Ok(());
        };
        let (status, listed) = client.get("/api/tenants")?;
        if turned_away(status) {
            self.uncertain = Some(name);
            return Ok(());
        }
        if names(&listed).contains(&name) {
            self.there.insert(name);
        } else {
            self.there.remove(&name);
        }
        Ok(())
    }

    /// After a restart: what is there is what was acknowledged.
    pub(crate) fn settle(&mut self, client: &mut Client, listed: &Value) {
        let listed = names(listed);
        for name in &self.names {
            let (there, expected) = (listed.contains(name), self.there.contains(name));
            let uncertain = self.uncertain.as_ref() == Some(name);
            assert!(
                there == expected || uncertain,
                "{name}: there {there}, not {expected}"
            );
        }
        self.uncertain = None;
        self.there = self
            .names
            .iter()
            .filter(|name| listed.contains(*name))
            .cloned()
            .collect();
        for name in &self.there {
            self.look_into(client, name).expect("the server runs");
        }
    }
}

fn names(listed: &Value) -> BTreeSet<String> {
    let names = listed["tenants"].as_array().expect("tenants").iter();
    names
        .map(|name| name.as_str().expect("a name").to_owned())
        .collect()
}
