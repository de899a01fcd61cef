//! What is done, and what was acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use nimbus_test_support::{Machine, Server};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::noise::{self, Noise};
use super::store::Place;
use super::{Dice, now_ms, stamp};
use crate::shipping::{is_within, pass, standing};
use crate::{Ran, as_str, machine, notes, run};

/// What was acknowledged at an instant.
#[derive(Debug, Clone)]
pub(super) struct Instant {
    pub(super) ms: i64,
    notes: BTreeMap<String, Vec<Value>>,
    locked: BTreeSet<String>,
}

/// A deployment that ships, and the model of it.
pub(super) struct World {
    pub(super) machine: Machine,
    pub(super) place: Place,
    pub(super) dice: Dice,
    server: Option<Server>,
    noise: Noise,
    model: BTreeMap<String, Vec<Value>>,
    locked: BTreeSet<String>,
    /// Master keys, the one in use last.
    keys: Vec<PathBuf>,
    /// Whether that one is enough.
    rewrapped: bool,
    migrated: u32,
    events: Vec<Event>,
    pub(super) instants: Vec<Instant>,
    /// What was done, and how often.
    pub(super) done: BTreeMap<&'static str, u32>,
}

type Event = (&'static str, fn(&mut World));

const EVENTS: [Event; 19] = [
    ("delete", World::delete),
    ("rotate-dek", World::rotate_dek),
    ("rotate-dek, stopped", World::rotate_dek_stopped),
    ("rotate-dek, killed", World::rotate_dek_killed),
    ("rotate-kek", World::rotate_kek),
    ("rotate-kek, stopped", World::rotate_kek_stopped),
    ("lock or unlock", World::lock),
    ("lock or unlock", World::lock),
    ("migrate", World::migrate),
    ("create", World::create),
    ("prune", World::prune),
    ("rewrap", World::rewrap),
    ("kill", World::kill),
    ("kill", World::kill),
    ("stop", World::stop),
    ("stalled", World::stalled),
    ("away", World::away),
    ("late pack", World::late_pack),
    ("ship", World::shipped),
];

impl World {
    pub(super) fn new(place: Place, dice: Dice) -> Self {
        let machine = machine();
        let server = machine.start(&[]);
        for tenant in [noise::TENANT, "ticker"] {
            drop(server.create("/api/tenants", &json!({"id": tenant})));
        }
        server.stop();
        let keys = vec![machine.master_key()];
        let mut world = Self {
            machine,
            place,
            dice,
            server: None,
            noise: Noise::default(),
            model: BTreeMap::new(),
            locked: BTreeSet::new(),
            keys,
            rewrapped: false,
            migrated: 0,
            events: Vec::new(),
            instants: Vec::new(),
            done: BTreeMap::new(),
        };
        world.start();
        world
    }

    /// Some writes, and one event; each kind comes before any comes again.
    pub(super) fn step(&mut self) {
        for _write in 0..=self.dice.roll(12) {
            self.write();
            self.note();
        }
        if self.events.is_empty() {
            self.events = EVENTS.to_vec();
        }
        let next = usize::try_from(self.dice.roll(self.events.len() as u64)).expect("a place");
        let (name, event) = self.events.swap_remove(next);
        println!("{} {name}", stamp(now_ms()));
        event(self);
        *self.done.entry(name).or_default() += 1;
        self.note();
    }

    fn note(&mut self) {
        self.instants.push(Instant {
            ms: now_ms(),
            notes: self.model.clone(),
            locked: self.locked.clone(),
        });
    }

    /// All is shipped, and the server stopped.
    pub(super) fn end(&mut self) {
        self.shipped();
        self.noise.end();
        self.shipped();
        self.up().expect("it runs").stop();
        println!("{} is what the noise sent", self.noise.sent.len());
    }

    pub(super) fn keep_within(&mut self, ranges: &[(String, String)]) {
        self.instants
            .retain(|instant| is_within(ranges, instant.ms));
    }

    // Running things.

    /// The keys as commands and servers have them.
    fn key_settings(&self) -> Vec<(String, String)> {
        let (current, before) = self.keys.split_last().expect("a key");
        let mut settings = vec![
            (
                "NIMBUS_ENCRYPTION_KEY_PROVIDER".to_owned(),
                "master-key-file".to_owned(),
            ),
            (
                "NIMBUS_ENCRYPTION_MASTER_KEY_FILE".to_owned(),
                as_str(current).to_owned(),
            ),
        ];
        if !before.is_empty() && !self.rewrapped {
            let before: Vec<_> = before.iter().map(|key| as_str(key)).collect();
            let name = "NIMBUS_ENCRYPTION_PREVIOUS_MASTER_KEY_FILE".to_owned();
            settings.push((name, before.join(",")));
        }
        settings
    }

    pub(super) fn settings(&self) -> Vec<(String, String)> {
        [self.key_settings(), self.place.settings()].concat()
    }

    fn nimbus(&self, arguments: &[&str]) -> Ran {
        let mut command = self.machine.nimbus(arguments);
        let _ = command.envs(self.settings());
        run(command)
    }

    fn backup(&self, name: &str, arguments: &[&str]) -> Ran {
        self.nimbus(&[&["backup", name, "--from", self.place.to()], arguments].concat())
    }

    fn server(&self) -> &Server {
        self.server.as_ref().expect("it runs")
    }

    fn up(&mut self) -> Option<Server> {
        self.server.take()
    }

    fn start(&mut self) {
        let mut command =
            self.machine
                .nimbus(&["start", "--port", "0", "--backup-max-lag-bytes", "16MiB"]);
        let _ = command
            .args(["--backup-to", self.place.to()])
            .env("FAILPOINTS", "ship::most-packs=return")
            .envs(self.key_settings())
            .envs(self.place.failing());
        let server = self.machine.start_command(command);
        self.noise.begin(&server, &self.machine.token());
        self.server = Some(server);
        self.begun();
        // Nothing that was acknowledged is missing.
        for (tenant, expected) in &self.model {
            if !self.locked.contains(tenant) {
                assert_eq!(expected, &notes(self.server(), tenant), "{tenant}");
            }
        }
        self.place.fails_now_and_then(&mut self.dice);
    }

    fn begun(&self) {
        let mut looks = 0;
        nimbus_test_support::until("shipping begins", || {
            looks += 1;
            if looks == 100 {
                self.place.works();
            }
            standing(self.server())["ok"] == true
        });
    }

    fn stop_server(&mut self) {
        // What is written meanwhile is refused, or there.
        let server = self.up().expect("it runs");
        server.stop();
        self.noise.end();
    }

    // What the client does.

    fn write(&mut self) {
        let tenant = format!("t{}", self.dice.roll(5));
        if self.locked.contains(&tenant) {
            return;
        }
        let server = self.server.as_ref().expect("it runs");
        let path = format!("/api/tenants/{tenant}/documents");
        if !self.model.contains_key(&tenant) {
            drop(server.create("/api/tenants", &json!({"id": tenant})));
        }
        let length = 1 + self.dice.roll(9) * 1500;
        let text = "m".repeat(usize::try_from(length).expect("short"));
        let fields = json!({"n": self.dice.roll(1000), "text": text});
        let there = self.model.get(&tenant).map_or(&[][..], Vec::as_slice);
        let some = (!there.is_empty()).then(|| self.dice.one_of(there)["_id"].clone());
        match (self.dice.roll(6), some) {
            (0, Some(id)) => {
                let path = format!("{path}/notes/{}", id.as_str().expect("an id"));
                assert_eq!(server.request("DELETE", &path, None).0, 204);
            }
            (1 | 2, Some(id)) => {
                let path = format!("{path}/notes/{}", id.as_str().expect("an id"));
                let patch = json!({ "patch": fields });
                assert_eq!(server.request("PATCH", &path, Some(&patch)).0, 200);
            }
            (3, _) => {
                let insert = json!({"type": "insert", "table": "notes", "fields": fields});
                let batch = json!({"mutations": [insert, insert, insert]});
                let path = format!("/api/tenants/{tenant}/batch");
                let (status, said) = server.request("POST", &path, Some(&batch));
                assert_eq!(status, 200, "{said}");
            }
            _ => drop(server.insert(&tenant, "notes", &fields)),
        }
        let _before = self.model.insert(tenant.clone(), notes(server, &tenant));
    }

    /// A tenant that is not locked, if there is one.
    fn some_tenant(&mut self) -> Option<String> {
        let free = self.model.keys().filter(|one| !self.locked.contains(*one));
        let free: Vec<String> = free.cloned().collect();
        (!free.is_empty()).then(|| self.dice.one_of(&free).clone())
    }

    // Events.

    fn shipped(&mut self) {
        self.place.works();
        pass(self.server(), now_ms());
        self.place.fails_now_and_then(&mut self.dice);
    }

    fn delete(&mut self) {
        let Some(tenant) = self.some_tenant() else {
            return;
        };
        let path = format!("/api/tenants/{tenant}");
        assert_eq!(self.server().request("DELETE", &path, None).0, 204);
        let _before = self.model.remove(&tenant);
        // That it is gone counts from the end of a pack.
        self.shipped();
    }

    fn lock(&mut self) {
        let locked: Vec<String> = self.locked.iter().cloned().collect();
        let (tenant, to) = if locked.is_empty() {
            match self.some_tenant() {
                Some(tenant) => (tenant, "lock"),
                None => return,
            }
        } else {
            (self.dice.one_of(&locked).clone(), "unlock")
        };
        let path = format!("/api/admin/encryption/{to}");
        let body = json!({ "tenant_id": tenant });
        assert_eq!(self.server().request("POST", &path, Some(&body)).0, 200);
        match to {
            "lock" => drop(self.locked.insert(tenant)),
            _ => drop(self.locked.remove(&tenant)),
        }
        // As for a deletion.
        self.shipped();
    }

    /// Files of tenants that are locked may keep their keys.
    fn rotated(&self, ran: &Ran) {
        let (code, said) = (ran.0.status.code(), ran.said());
        let is_locked = !self.locked.is_empty() && said.contains("is locked by an operator");
        assert!(code == Some(0) || code == Some(1) && is_locked, "{said}");
    }

    fn rotate_dek(&mut self) {
        let ran = self.nimbus(&["encryption", "rotate-dek", "--path", "data", "--all"]);
        self.rotated(&ran);
    }

    fn rotate_dek_stopped(&mut self) {
        self.stop_server();
        self.rotate_dek();
        self.start();
    }

    fn rotate_dek_killed(&mut self) {
        let rotate = ["encryption", "rotate-dek", "--path", "data", "--all"];
        let mut command = self.machine.nimbus(&rotate);
        let _ = command.envs(self.settings());
        let under_way = std::thread::spawn(move || command.output());
        std::thread::sleep(Duration::from_millis(self.dice.roll(600)));
        self.kill();
        let _killed_or_done = under_way.join().expect("it ran");
    }

    fn rotate_kek(&mut self) {
        std::fs::create_dir_all(self.machine.path("keys")).expect("a directory");
        let key = self.machine.path(&format!("keys/key-{}", self.keys.len()));
        let keygen = ["encryption", "keygen", "--master-key-file", as_str(&key)];
        let _ = self.nimbus(&keygen).expect(0, &[]);
        let rotate = ["encryption", "rotate-kek", "--path", "data", "--all"];
        let ran = self.nimbus(&[&rotate[..], &["--new-master-key-file", as_str(&key)]].concat());
        self.rotated(&ran);
        self.keys.push(key);
    }

    fn rotate_kek_stopped(&mut self) {
        self.stop_server();
        self.rotate_kek();
        self.start();
    }

    /// A tenant comes as a plaintext file, and is encrypted in its place.
    fn migrate(&mut self) {
        let Some(tenant) = self.some_tenant() else {
            return;
        };
        self.stop_server();
        self.migrated += 1;
        let new = format!("m{}", self.migrated);
        let (plain, source) = (format!("{new}.plain"), format!("data/{tenant}.sqlite3"));
        let export = ["encryption", "export", "--provider", "sqlite"];
        let of = ["--tenant-id", &tenant, "--source", &source];
        let _ = self
            .nimbus(&[&export[..], &of, &["--target", &plain]].concat())
            .expect(0, &[]);
        let place = self.machine.data_dir().join(format!("{new}.sqlite3"));
        fs::rename(self.machine.path(&plain), &place).expect("it is moved");
        let migrate = ["encryption", "migrate", "--provider", "sqlite"];
        let of = ["--tenant-id", &new, "--source", as_str(&place)];
        let _ = self
            .nimbus(&[&migrate[..], &of, &["--in-place", "--retire-source"]].concat())
            .expect(0, &["is encrypted"]);
        let same = self.model[&tenant].clone();
        let _none = self.model.insert(new, same);
        self.start();
    }

    fn create(&mut self) {
        self.place.works();
        let create = ["backup", "create", "--to", self.place.to()];
        let _ = self.nimbus(&create).expect(0, &["Snapshot"]);
        self.place.fails_now_and_then(&mut self.dice);
    }

    fn prune(&mut self) {
        let _ = self.backup("prune", &["--keep-daily", "1"]).expect(0, &[]);
    }

    fn rewrap(&mut self) {
        let ran = self.backup("rewrap", &[]);
        let code = ran.0.status.code();
        // One that the server stores just now may be left for the next time.
        assert!(code == Some(0) || code == Some(3), "{}", ran.said());
    }

    fn kill(&mut self) {
        self.up().expect("it runs").kill();
        self.noise.end();
        self.start();
    }

    fn stop(&mut self) {
        self.stop_server();
        self.start();
    }

    /// The server stands still, whatever it was doing, while the repository goes on.
    fn stalled(&mut self) {
        self.server().signal(Signal::STOP);
        let elsewhere = |arguments: &[&str]| {
            let mut command = self.machine.nimbus(arguments);
            let _ = command
                .envs(self.settings())
                .env("NIMBUS_DATA_DIR", self.machine.path("nowhere"));
            run(command)
        };
        let from = ["--from", self.place.to()];
        let prune = [&["backup", "prune"][..], &from, &["--keep-daily", "1"]].concat();
        let _ = elsewhere(&prune).expect(0, &[]);
        let rewrapped = elsewhere(&[&["backup", "rewrap"][..], &from].concat());
        let code = rewrapped.0.status.code();
        assert!(code == Some(0) || code == Some(3), "{}", rewrapped.said());
        self.server().signal(Signal::CONT);
    }

    /// The store takes nothing until more waits than may.
    fn away(&mut self) {
        self.place.is_away();
        let text = "a".repeat(900_000);
        for _write in 0..20 {
            let id = self
                .server()
                .insert("ticker", "large", &json!({"text": text}));
            let path = format!("/api/tenants/ticker/documents/large/{id}");
            assert_eq!(self.server().request("DELETE", &path, None).0, 204);
        }
        self.shipped();
    }

    /// A pack arrives when its server is gone and the next one ships.
    fn late_pack(&mut self) {
        self.place.holds_packs();
        for _write in 0..3 {
            self.write();
            self.note();
        }
        std::thread::sleep(Duration::from_millis(1500));
        self.up().expect("it runs").kill();
        self.noise.end();
        self.place.works();
        self.start();
        self.write();
        self.place.arrives();
        self.place.fails_now_and_then(&mut self.dice);
    }

    // At the end.

    /// What `verify --deep` says of all. A pack that came late is a finding.
    pub(super) fn verify(&self) -> Ran {
        let ran = self.backup("verify", &["--deep"]);
        let code = ran.0.status.code();
        let late = self.done.contains_key("late pack");
        assert!(code == Some(0) || code == Some(3) && late, "{}", ran.said());
        ran
    }

    pub(super) fn rewrap_all(&mut self) {
        let _ = self.backup("rewrap", &[]).expect(0, &[]);
        self.rewrapped = true;
    }

    /// Restores an instant, and compares; where `one` says so, also one of its tenants beside them.
    pub(super) fn check(&mut self, instant: &Instant, one: bool) {
        let (shown, data) = (stamp(instant.ms), self.machine.path("restored"));
        let data = as_str(&data);
        let at = ["--data-dir", data, "--at", &shown, "--as-it-was"];
        let restored = self.backup("restore", &at);
        // A pack that arrived late, under a key that was replaced since, is restored, and nothing
        // vouches for it.
        let code = i32::from(restored.said().contains("could have exchanged")) * 3;
        let _ = restored.expect(code, &["Restored"]);
        let free = |tenant: &&String| !instant.locked.contains(*tenant);
        let free: Vec<&String> = instant.notes.keys().filter(free).collect();
        let beside = (one && !free.is_empty()).then(|| (*self.dice.one_of(&free)).clone());
        if let Some(tenant) = &beside {
            let of = ["--tenant-id", tenant, "--as", "beside"];
            let restored = self.backup("restore", &[&at[..], &of].concat());
            let _ = restored.expect(code, &["Restored"]);
        }
        let mut start = self.machine.nimbus(&["start", "--port", "0"]);
        let _ = start.env("NIMBUS_DATA_DIR", data).envs(self.key_settings());
        let restored = self.machine.start_command(start);
        let mut there: BTreeSet<String> = restored
            .list("/api/tenants", "tenants", 1000)
            .iter()
            .map(|id| id.as_str().expect("an id").to_owned())
            .collect();
        for ours in ["beside", "ticker", noise::TENANT] {
            let is_there = there.remove(ours);
            assert!(is_there || ours == "beside" && beside.is_none(), "{ours}");
        }
        let expected: BTreeSet<String> = instant.notes.keys().cloned().collect();
        assert_eq!(expected, there, "tenants at {shown}");
        for (tenant, expected) in &instant.notes {
            if instant.locked.contains(tenant) {
                let path = format!("/api/tenants/{tenant}/documents/notes");
                assert!(
                    restored.request("GET", &path, None).0 >= 400,
                    "{tenant} is locked"
                );
                let body = json!({ "tenant_id": tenant });
                let unlock = "/api/admin/encryption/unlock";
                assert_eq!(restored.request("POST", unlock, Some(&body)).0, 200);
            }
            assert_eq!(expected, &notes(&restored, tenant), "{tenant} at {shown}");
        }
        if let Some(tenant) = &beside {
            assert_eq!(
                instant.notes[tenant],
                notes(&restored, "beside"),
                "{tenant}"
            );
        }
        let noise = notes(&restored, noise::TENANT);
        self.noise.check(&noise, instant.ms, &shown);
        restored.stop();
        fs::remove_dir_all(self.machine.path("restored")).expect("the restored directory goes");
    }
}
