//! A client that deploys an app, and goes back to earlier generations of it. Files, schema and cron
//! of each name its number.

use std::collections::BTreeMap;

use data_encoding::BASE64;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::client::{Broken, Client, Hand, turned_away};
use crate::random::Random;

pub(crate) struct Deployer {
    tenant: &'static str,
    random: Random,
    last: u64,
    active: Option<u64>,
    /// What was asked for and not answered.
    pending: Option<u64>,
    /// The versions by their generations.
    generations: BTreeMap<u64, u64>,
    deployed: u64,
    activated: u64,
}

impl Deployer {
    pub(crate) fn new(seed: u64, tenant: &'static str) -> Self {
        Self {
            tenant,
            random: Random::new(seed, 3000),
            last: 0,
            active: None,
            pending: None,
            generations: BTreeMap::new(),
            deployed: 0,
            activated: 0,
        }
    }

    /// What is active is what was acknowledged or under way, and all of it is of one generation.
    fn check(&mut self, client: &mut Client) -> Result<(), Broken> {
        let tenant = self.tenant;
        let (status, listed) = client.get_at_last(&format!("/api/tenants/{tenant}/deploy"))?;
        assert_eq!(status, 200, "{listed}");
        self.generations = versions(&listed);
        let active = listed["active"]
            .as_u64()
            .map(|active| self.generations[&active]);
        let pending = self.pending.take();
        assert!(
            active == self.active || (pending.is_some() && active == pending),
            "{active:?} is active, not {:?} or {pending:?}",
            self.active
        );
        self.active = active;
        let Some(version) = active else {
            return Ok(());
        };
        let (status, file) = client.get_at_last(&format!("/apps/{tenant}/state.json"))?;
        assert_eq!((status, file), (200, json!({"version": version})));
        let (status, schema) =
            client.get_at_last(&format!("/api/tenants/{tenant}/schema/things"))?;
        let index = format!("by_{version}");
        assert_eq!(
            (status, &schema["indexes"][0]["name"]),
            (200, &json!(index))
        );
        let (status, crons) = client.get_at_last(&format!("/api/tenants/{tenant}/crons"))?;
        let seconds = &crons["crons"][0]["schedule"]["seconds"];
        assert_eq!((status, seconds), (200, &json!(FAR_SECONDS + version)));
        Ok(())
    }
}

impl Hand for Deployer {
    fn step(&mut self, client: &mut Client) -> Result<(), Broken> {
        let path = format!("/api/tenants/{}/deploy", self.tenant);
        // Of the newest, which are kept for sure.
        let place = self.random.below(10) as usize;
        let earlier = self.generations.iter().rev().nth(place);
        let (path, body, version) = match earlier.filter(|_| self.random.below(3) == 0) {
            Some((generation, version)) => (
                format!("{path}/{generation}/activate"),
                String::new(),
                *version,
            ),
            None => {
                self.last += 1;
                (path, app(self.last).to_string(), self.last)
            }
        };
        self.pending = Some(version);
        let (status, answer) = client.request("POST", &path, &body)?;
        match status {
            200 => self.activated += 1,
            201 => self.deployed += 1,
            _ => assert!(turned_away(status), "{status} {answer}"),
        }
        if !turned_away(status) {
            assert_eq!(answer["activated"], true, "{answer}");
            self.active = self.pending.take();
        }
        self.check(client)
    }

    fn settle(&mut self, client: &mut Client) {
        self.check(client).expect("the server runs");
    }

    fn done(&self) -> Vec<(&'static str, u64)> {
        vec![("deploys", self.deployed), ("activations", self.activated)]
    }
}

fn app(version: u64) -> Value {
    let file = json!({"version": version}).to_string();
    let hash = Sha256::digest(&file);
    json!({
        "name": format!("v{version}"),
        "schemas": [{
            "table": "things",
            "fields": [{"name": "n", "field_type": "number", "required": true}],
            "indexes": [{"name": format!("by_{version}"), "fields": ["n", format!("f{version}")], "unique": true}],
        }],
        "crons": [{
            "name": "far",
            "schedule": {"type": "interval", "seconds": FAR_SECONDS + version},
            "mutation": {"type": "insert", "table": "things", "fields": {"n": version}},
        }],
        "files": [{
            "path": "state.json",
            "sha256": data_encoding::HEXLOWER.encode(&hash),
            "content_base64": BASE64.encode(file.as_bytes()),
        }],
    })
}

fn versions(listed: &Value) -> BTreeMap<u64, u64> {
    let generations = listed["generations"]
        .as_array()
        .expect("generations")
        .iter();
    generations
        .map(|one| {
            let name = one["name"]
                .as_str()
                .expect("a name")
                .trim_start_matches('v');
            let version = name.parse().expect("a version");
            (one["generation"].as_u64().expect("a number"), version)
        })
        .collect()
}

/// Longer than any run: the crons are looked at, and do nothing.
const FAR_SECONDS: u64 = 1_000_000;
