//! A client that makes tenant access keys, uses them, and revokes them.

use std::collections::BTreeMap;

use serde_json::json;

use crate::client::{Broken, Client, Hand, turned_away};
use crate::random::Random;

pub(crate) struct KeyHolder {
    tenant: &'static str,
    random: Random,
    /// The keys that count, by their ids.
    live: BTreeMap<String, String>,
    /// Some of those that were revoked.
    dead: Vec<String>,
    /// The name of a key whose making was not answered.
    making: Option<String>,
    /// The id of one whose revocation was not.
    revoking: Option<String>,
    made: u64,
    used: u64,
    revoked: u64,
}

impl KeyHolder {
    pub(crate) fn new(seed: u64, tenant: &'static str) -> Self {
        Self {
            tenant,
            random: Random::new(seed, 3003),
            live: BTreeMap::new(),
            dead: Vec::new(),
            making: None,
            revoking: None,
            made: 0,
            used: 0,
            revoked: 0,
        }
    }

    fn make(&mut self, client: &mut Client) -> Result<(), Broken> {
        let name = format!("key {}", self.made + self.random.below(1 << 40));
        self.making = Some(name.clone());
        let (status, answer) =
            client.post(&self.path(), &json!({"name": name, "scope": "write"}))?;
        if turned_away(status) {
            return self.check(client);
        }
        assert_eq!(status, 201, "{answer}");
        let text = |member: &str| answer[member].as_str().expect(member).to_owned();
        self.live.insert(text("id"), text("key"));
        self.making = None;
        self.made += 1;
        Ok(())
    }

    fn revoke(&mut self, client: &mut Client) -> Result<(), Broken> {
        let place = self.random.below(self.live.len() as u64) as usize;
        let id = self.live.keys().nth(place).expect("one of them").clone();
        self.revoking = Some(id.clone());
        let (status, answer) = client.request("DELETE", &format!("{}/{id}", self.path()), "")?;
        if turned_away(status) {
            return self.check(client);
        }
        assert_eq!(status, 204, "{answer}");
        self.bury(&id);
        self.revoked += 1;
        self.revoking = None;
        Ok(())
    }

    fn bury(&mut self, id: &str) {
        self.dead.extend(self.live.remove(id));
        if self.dead.len() > REMEMBERED {
            self.dead.remove(0);
        }
    }

    /// A document under a key: written with one that counts, refused with one that does not.
    fn use_one(&mut self, client: &mut Client, key: &str, counts: bool) -> Result<(), Broken> {
        let path = format!("/api/tenants/{}/documents", self.tenant);
        let body = json!({"table": "notes", "fields": {}}).to_string();
        let (status, answer) = client.request_as(key, "POST", &path, &body)?;
        let expected = if counts { 201 } else { 401 };
        assert!(
            status == expected || turned_away(status),
            "{status} {answer}"
        );
        self.used += u64::from(status == 201);
        Ok(())
    }

    /// Those are listed that were acknowledged and not revoked.
    fn check(&mut self, client: &mut Client) -> Result<(), Broken> {
        let (status, answer) = client.get_at_last(&self.path())?;
        assert_eq!(status, 200, "{answer}");
        let listed = answer["keys"].as_array().expect("keys");
        let mut names: BTreeMap<&str, &str> = BTreeMap::new();
        for key in listed {
            let text = |member: &str| key[member].as_str().expect("text");
            names.insert(text("id"), text("name"));
        }
        if let Some(id) = self.revoking.take()
            && !names.contains_key(id.as_str())
        {
            self.bury(&id);
        }
        let making = self.making.take();
        for (id, name) in &names {
            let known = self.live.contains_key(*id) || making.as_deref() == Some(*name);
            assert!(
                known,
                "key {id}, {name:?}, was never asked for, or was revoked"
            );
        }
        for id in self.live.keys() {
            assert!(names.contains_key(id.as_str()), "key {id} is lost");
        }
        // Nobody has the secret of one whose making was not answered.
        for id in names.keys().filter(|id| !self.live.contains_key(**id)) {
            let (status, answer) =
                client.request("DELETE", &format!("{}/{id}", self.path()), "")?;
            if turned_away(status) {
                self.making = making;
                return Ok(());
            }
            assert_eq!(status, 204, "{answer}");
        }
        Ok(())
    }

    fn path(&self) -> String {
        format!("/api/tenants/{}/keys", self.tenant)
    }
}

impl Hand for KeyHolder {
    fn step(&mut self, client: &mut Client) -> Result<(), Broken> {
        match self.random.below(6) {
            0..2 if self.live.len() < MANY => self.make(client),
            2 if !self.live.is_empty() => self.revoke(client),
            3 if !self.dead.is_empty() => {
                let key = self.dead[self.random.below(self.dead.len() as u64) as usize].clone();
                self.use_one(client, &key, false)
            }
            _ => match self.live.values().next().cloned() {
                Some(key) => self.use_one(client, &key, true),
                None => self.make(client),
            },
        }
    }

    fn settle(&mut self, client: &mut Client) {
        self.check(client).expect("the server runs");
        for key in self.live.values().cloned().collect::<Vec<_>>() {
            self.use_one(client, &key, true).expect("the server runs");
        }
        for key in self.dead.clone() {
            self.use_one(client, &key, false).expect("the server runs");
        }
    }

    fn done(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("access keys made", self.made),
            ("writes under them", self.used),
            ("revoked", self.revoked),
        ]
    }
}

const MANY: usize = 20;
const REMEMBERED: usize = 20;
