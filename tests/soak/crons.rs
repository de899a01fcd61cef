//! A client that keeps a cron which runs every second, and makes, changes and removes another.

use std::time::SystemTime;

use serde_json::{Value, json};

use crate::client::{Broken, Client, Hand, turned_away};
use crate::random::Random;

pub(crate) struct Keeper {
    tenant: &'static str,
    random: Random,
    /// When the cron that runs was asked for, in milliseconds; none before it was.
    begun_ms: Option<u64>,
    runs: u64,
    /// The interval of the other one, when it is there.
    seconds: Option<u64>,
    pending: Option<Option<u64>>,
    changed: u64,
}

impl Keeper {
    pub(crate) fn new(seed: u64, tenant: &'static str) -> Self {
        Self {
            tenant,
            random: Random::new(seed, 3002),
            begun_ms: None,
            runs: 0,
            seconds: None,
            pending: None,
            changed: 0,
        }
    }

    fn check(&mut self, client: &mut Client) -> Result<(), Broken> {
        let (status, listed) = client.get_at_last(&self.path())?;
        assert_eq!(status, 200, "{listed}");
        let interval = |name: &str| {
            let crons = listed["crons"].as_array().expect("crons");
            let cron = crons.iter().find(|cron| cron["name"] == name);
            cron.and_then(|cron| cron["schedule"]["seconds"].as_u64())
        };
        assert!(
            self.begun_ms.is_none() || interval("tick") == Some(1),
            "{listed}"
        );
        let found = interval("other");
        let pending = self.pending.take();
        assert!(
            found == self.seconds || Some(found) == pending,
            "{found:?}, not {:?} or {pending:?}",
            self.seconds
        );
        self.seconds = found;
        Ok(())
    }

    fn put(&self, client: &mut Client, name: &str, seconds: u64) -> Result<(u16, Value), Broken> {
        let cron = json!({
            "name": name,
            "schedule": {"type": "interval", "seconds": seconds},
            "mutation": {"type": "insert", "table": "ticks", "fields": {"by": name}},
        });
        client.post(&self.path(), &cron)
    }

    fn path(&self) -> String {
        format!("/api/tenants/{}/crons", self.tenant)
    }
}

impl Hand for Keeper {
    fn step(&mut self, client: &mut Client) -> Result<(), Broken> {
        if self.begun_ms.is_none() {
            let now = now_ms();
            let (status, answer) = self.put(client, "tick", 1)?;
            assert!(status == 201 || turned_away(status), "{status} {answer}");
            self.begun_ms = (status == 201).then_some(now);
            return Ok(());
        }
        let wanted = match self.seconds {
            Some(_) if self.random.below(2) == 0 => None,
            _ => Some(FAR_SECONDS + self.random.below(1000)),
        };
        self.pending = Some(wanted);
        let (status, answer) = match wanted {
            Some(seconds) => self.put(client, "other", seconds)?,
            None => client.request("DELETE", &format!("{}/other", self.path()), "")?,
        };
        if turned_away(status) {
            return self.check(client);
        }
        assert!(matches!(status, 201 | 204), "{status} {answer}");
        self.changed += 1;
        self.seconds = wanted;
        self.pending = None;
        Ok(())
    }

    /// It ran on since it was looked at last, and never more often than seconds went by.
    fn settle(&mut self, client: &mut Client) {
        self.check(client).expect("the server runs");
        let ticks = client.documents(self.tenant, "ticks");
        assert!(ticks.iter().all(|tick| tick["by"] == "tick"), "{ticks:?}");
        let runs = ticks.len() as u64;
        let Some(begun) = self.begun_ms else {
            return assert_eq!(runs, 0, "of a cron that was not there");
        };
        let beats = (now_ms() - begun) / 1000 + 1;
        assert!(runs <= beats, "{runs} runs in {beats} seconds");
        assert!(
            runs >= self.runs,
            "{runs} runs, and there were {}",
            self.runs
        );
        self.runs = runs;
    }

    fn done(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("crons changed", self.changed),
            ("runs of crons", self.runs),
        ]
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("a clock");
    u64::try_from(now.as_millis()).expect("some centuries")
}

/// Longer than any run.
const FAR_SECONDS: u64 = 1_000_000;
