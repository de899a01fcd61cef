//! Sealed tenants, against who can read and write all that the engine has.

use super::super::columns::{self, Kept};
use super::super::engine::{spell, values};
use super::*;
use crate::documents::deploy::Deploy;
use crate::documents::schedule::NewJob;
use crate::documents::{Once, TableName};
use crate::envelope::ManifestRows;
use crate::tenants::conformance::deploys::path;
use crate::tenants::conformance::jobs::{NOW, cron, every};

const CANARY: &str = "canary-7d1f3c";

/// Who controls the engine: statements on the tables of `acme`, and on the provider's.
struct Dba<E> {
    engine: E,
}

impl<E: Tested> Dba<E> {
    fn of(house: &House<E>) -> Self {
        Self {
            engine: E::reach(house.database.clone()),
        }
    }

    async fn run(self: &Arc<Self>, sql: &str, values: Vec<Value>) -> Vec<Row> {
        self.in_space(&self.engine.tenant_space(&id("acme")), sql, values)
            .await
    }

    async fn in_space(self: &Arc<Self>, space: &str, sql: &str, values: Vec<Value>) -> Vec<Row> {
        let sql = spell(&self.engine, space, sql);
        let this = Arc::clone(self);
        blocking(move || {
            let stops = Stops::default();
            let mut session = this.engine.connect(&stops).unwrap();
            let statement = Statement { sql, values };
            let rows = session.run(&[statement], &stops).unwrap().pop().unwrap();
            session.give_back();
            rows
        })
        .await
    }

    /// On the row of the tenant in the metadata schema.
    async fn manifest(self: &Arc<Self>) -> Option<Vec<u8>> {
        let space = self.engine.provider_space().to_owned();
        let sql = "SELECT manifest FROM @tenants";
        let mut rows = self.in_space(&space, sql, Vec::new()).await;
        rows[0].maybe_bytes(0).unwrap()
    }

    async fn set_manifest(self: &Arc<Self>, manifest: Option<Vec<u8>>) {
        let space = self.engine.provider_space().to_owned();
        let sql = "UPDATE @tenants SET manifest = ?";
        let _none = self
            .in_space(&space, sql, vec![Value::Bytes(manifest)])
            .await;
    }
}

pub(super) async fn a_sealed_batch_takes_as_many_round_trips<E: Tested>() {
    let house = SealedHouse::<E>::empty();
    let (tenants, watch) = house.0.watched().await;
    tenants.create_tenant(&id("acme")).await.unwrap();
    let store = tenants.open(&id("acme")).await.unwrap();
    store.put_schema(unique_index()).await.unwrap();
    let mut taken = Vec::new();
    for (round, size) in [(0, 1), (1, 3), (2, 300)] {
        let all = (0..size).map(|n| insert(&format!(r#"{{"n":{}}}"#, round * 1000 + n)));
        let before = watch.round_trips.load(Ordering::SeqCst);
        let _outcomes = store.apply_all(all.collect()).await.unwrap();
        taken.push(watch.round_trips.load(Ordering::SeqCst) - before);
    }
    assert_eq!(taken[1], taken[2], "{taken:?}");
    assert!(taken[1] <= 5, "{taken:?}");
}

/// Has each column that may hold content hold some.
async fn fill(store: &Arc<dyn TenantStore>) {
    let text = format!(r#"{{"{CANARY}":"{CANARY}"}}"#);
    let index = json!([{"name": CANARY, "fields": [CANARY], "unique": true}]);
    let schema = json!({"table": "t", "indexes": index}).to_string();
    let schema = TableSchema::from_json(&schema).unwrap();
    store.put_schema(schema).await.unwrap();
    let once = Some(Once::new(CANARY.as_bytes(), [7; 32], "somebody"));
    let done = store.apply_once(vec![insert(&text)], once).await.unwrap();
    assert!(!done.replayed);
    // One waits, one fails when it runs: its entry of a unique index is taken.
    let job = |ms| NewJob {
        delay: Duration::from_millis(ms),
        mutation: insert(&text),
    };
    let _failing = store.schedule(job(0), NOW).await.unwrap();
    let failing_cron = cron("c", &every(1), &insert(&text));
    let _state = store.put_cron(failing_cron, NOW).await.unwrap();
    let _ran = store.run_due(NOW + 2000, 10, None).await.unwrap();
    let _waiting = store.schedule(job(10_000_000), NOW).await.unwrap();
    let content = CANARY.repeat(10);
    let hash = data_encoding::HEXLOWER.encode(&sha2_of(content.as_bytes()));
    let deploy = json!({
        "name": CANARY,
        "schemas": [{"table": "u", "indexes": [{"name": CANARY, "fields": [CANARY]}]}],
        "crons": [{"name": "d", "schedule": {"type": "interval", "seconds": 3600},
            "mutation": {"type": "insert", "table": "t", "fields": {CANARY: CANARY}}}],
        "files": [{"path": format!("{CANARY}.txt"), "sha256": hash,
            "content_base64": data_encoding::BASE64.encode(content.as_bytes())}],
    });
    let deploy = Deploy::from_json(&deploy.to_string()).unwrap();
    let _deployed = store.deploy(deploy).await.unwrap();
}

fn sha2_of(content: &[u8]) -> Vec<u8> {
    use sha2::Digest as _;
    sha2::Sha256::digest(content).to_vec()
}

/// Columns in which the canary is, or the digest that would confirm it.
async fn found<E: Tested>(dba: &Arc<Dba<E>>) -> Vec<&'static str> {
    let content = CANARY.repeat(10);
    let key = Once::new(CANARY.as_bytes(), [7; 32], "somebody");
    let needles: [Vec<u8>; 4] = [
        CANARY.into(),
        sha2_of(content.as_bytes()),
        key.key().to_vec(),
        [7; 32].to_vec(),
    ];
    let mut found = Vec::new();
    for (name, _kept) in columns::ALL {
        let (table, column) = name.split_once('.').unwrap();
        let sql = format!("SELECT {column} FROM @{table}");
        for mut row in dba.run(&sql, Vec::new()).await {
            let stored = row.maybe_bytes(0).unwrap().unwrap_or_default();
            let has = |needle: &Vec<u8>| stored.windows(needle.len()).any(|part| part == needle);
            if needles.iter().any(has) && !found.contains(name) {
                found.push(*name);
            }
        }
    }
    found
}

pub(super) async fn nothing_of_a_sealed_tenant_is_in_the_database_in_the_clear<E: Tested>() {
    let house = House::<E>::empty();
    let (_tenants, store) = acme(&house).await;
    fill(&store).await;
    // The same search finds each column that is sealed or blind elsewhere.
    let plain = found(&Arc::new(Dba::of(&house))).await;
    let kept = columns::ALL.iter().filter(|(_, kept)| *kept != Kept::Clear);
    // What says nothing of a document by itself.
    let others = [
        "head.cursor_key",
        "journal.mac",
        "crons.schedule",
        "answers.answer",
    ];
    let expected: Vec<&str> = kept.map(|(name, _)| *name).collect();
    let expected: Vec<&str> = expected
        .into_iter()
        .filter(|name| !others.contains(name))
        .collect();
    assert_eq!(plain, expected);

    let house = SealedHouse::<E>::empty();
    let (tenants, store) = acme(&house).await;
    fill(&store).await;
    let dba = Arc::new(Dba::of(&house.0));
    assert_eq!(found(&dba).await, Vec::<&str>::new());
    // And it is all there, also for the next server.
    drop(store);
    tenants.close().await.unwrap();
    let tenants = house.open().await;
    let store = tenants.open(&id("acme")).await.unwrap();
    let documents = store.list(&table("t"), 10).await.unwrap();
    assert_eq!(
        bodies(&documents),
        [format!(r#"{{"{CANARY}":"{CANARY}"}}"#)]
    );
    let file = store.app_file(&path(&format!("{CANARY}.txt"))).await;
    assert_eq!(file.unwrap().size, CANARY.len() as u64 * 10);
    let once = Some(Once::new(CANARY.as_bytes(), [7; 32], "somebody"));
    let text = format!(r#"{{"{CANARY}":"{CANARY}"}}"#);
    let again = store.apply_once(vec![insert(&text)], once).await.unwrap();
    assert!(again.replayed);
    let states = store.crons().await.unwrap();
    assert!(states.iter().any(|state| {
        let failure = state.last_run.as_ref().and_then(|run| run.outcome.error());
        failure.is_some_and(|failure| failure.contains(CANARY))
    }));
}

pub(super) async fn what_is_changed_or_moved_in_the_database_does_not_open<E: Tested>() {
    let house = SealedHouse::<E>::empty();
    let (_tenants, store) = acme(&house).await;
    let mut ids = Vec::new();
    for (name, n) in [("t", 1), ("t", 2), ("u", 3)] {
        let mutation = Mutation::Insert {
            table: table(name),
            fields: fields(&format!(r#"{{"n":{n}}}"#)),
            id: None,
        };
        ids.push((table(name), store.apply(mutation).await.unwrap().id()));
    }
    let dba = Arc::new(Dba::of(&house.0));
    let reads = |place: usize| {
        let (store, (table, id)) = (Arc::clone(&store), ids[place].clone());
        async move { store.get(&table, id).await }
    };
    let mut stored = Vec::new();
    for mut row in dba
        .run("SELECT fields FROM @documents ORDER BY seq", Vec::new())
        .await
    {
        stored.push(row.bytes(0).unwrap());
    }
    let set = "UPDATE @documents SET fields = ? WHERE seq = ?";
    let refused = |read: Result<_, StoreError>, what: &str| match read {
        Err(StoreError::Corrupt { source, .. }) => {
            assert!(
                source.to_string().contains("documents.fields"),
                "{what}: {source}"
            );
        }
        other => panic!("{what}: {other:?}"),
    };
    // Each bit of the head of the blob, some of its body, and the last.
    let bits = (0..74 * 8).step_by(37);
    for bit in bits.chain([stored[0].len() * 8 - 1]) {
        let mut changed = stored[0].clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let _none = dba.run(set, values![changed, 1_i64]).await;
        refused(reads(0).await.map(drop), "a bit");
    }
    // The value of another row, and of another table.
    for other in [1, 2] {
        let _none = dba.run(set, values![&stored[other][..], 1_i64]).await;
        refused(reads(0).await.map(drop), "another row's");
    }
    let _none = dba.run(set, values![r#"{"n":1}"#, 1_i64]).await;
    refused(reads(0).await.map(drop), "plaintext");
    let _none = dba.run(set, values![&stored[0][..], 1_i64]).await;
    assert!(reads(0).await.is_ok());
    // Other columns of its row.
    for column in ["version", "created", "updated"] {
        for step in ["+ 1", "- 1"] {
            let sql = format!("UPDATE @documents SET {column} = {column} {step} WHERE seq = 1");
            let _none = dba.run(&sql, Vec::new()).await;
            if step == "+ 1" {
                refused(reads(0).await.map(drop), column);
                let listed = store.list(&table("t"), 10).await;
                refused(listed.map(drop), column);
            }
        }
    }
    assert!(reads(0).await.is_ok());
    // Two tables change names: servers that know them do not look again, so another one reads.
    for (number, name) in [(1, "x"), (2, "t"), (1, "u")] {
        let sql = "UPDATE @tables SET name = ? WHERE number = ?";
        let _none = dba.run(sql, values![name, i64::from(number)]).await;
    }
    let others = house.open().await;
    let other = others.open(&id("acme")).await.unwrap();
    let renamed: TableName = "u".parse().unwrap();
    refused(
        other.get(&renamed, ids[0].1).await.map(drop),
        "another table",
    );
    // The manifest of another tenant, and a changed one.
    others.create_tenant(&id("other")).await.unwrap();
    let text = dba.manifest_of("acme").await;
    let foreign = dba.manifest_of("other").await;
    let changed = String::from_utf8(text.clone()).unwrap();
    let changed = changed.replace("revision: 1", "revision: 2").into_bytes();
    for manifest in [foreign, changed] {
        dba.set_manifest_of("acme", manifest).await;
        let fresh = house.open().await;
        let opened = fresh.open(&id("acme")).await;
        assert!(matches!(opened, Err(StoreError::Open { .. })), "{opened:?}");
    }
    dba.set_manifest_of("acme", text).await;
    let fresh = house.open().await;
    assert!(fresh.open(&id("acme")).await.is_ok());
}

impl<E: Tested> Dba<E> {
    async fn manifest_of(self: &Arc<Self>, tenant: &str) -> Vec<u8> {
        let space = self.engine.provider_space().to_owned();
        let sql = "SELECT manifest FROM @tenants WHERE name = ?";
        let mut rows = self.in_space(&space, sql, values![tenant]).await;
        rows[0].bytes(0).unwrap()
    }

    async fn set_manifest_of(self: &Arc<Self>, tenant: &str, manifest: Vec<u8>) {
        let space = self.engine.provider_space().to_owned();
        let sql = "UPDATE @tenants SET manifest = ? WHERE name = ?";
        let _none = self.in_space(&space, sql, values![manifest, tenant]).await;
    }
}

pub(super) async fn a_server_that_seals_serves_no_tenant_that_is_not<E: Tested>() {
    let house = SealedHouse::<E>::empty();
    let (tenants, store) = acme(&house).await;
    let _id = add(&store, r#"{"n":1}"#).await;
    drop(store);
    tenants.close().await.unwrap();
    let dba = Arc::new(Dba::of(&house.0));
    let manifest = dba.manifest().await;
    dba.set_manifest(None).await;
    let tenants = house.open().await;
    let opened = tenants.open(&id("acme")).await;
    assert!(
        matches!(opened, Err(StoreError::NotSealed { .. })),
        "{opened:?}"
    );
    // One that does not seal sees that the tenant was sealed.
    let plain = House {
        seals: false,
        database: house.0.database.clone(),
        envelope: house.0.envelope.clone(),
        ..House::<E>::empty()
    };
    let other = plain.open().await;
    let opened = other.open(&id("acme")).await;
    assert!(
        matches!(opened, Err(StoreError::Corrupt { .. })),
        "{opened:?}"
    );
    // It serves those that are, and makes others that are not.
    dba.set_manifest(manifest).await;
    let store = other.open(&id("acme")).await.unwrap();
    assert_eq!(store.list(&table("t"), 10).await.unwrap().len(), 1);
    other.create_tenant(&id("plain")).await.unwrap();
    let opened = tenants.open(&id("plain")).await;
    assert!(
        matches!(opened, Err(StoreError::NotSealed { .. })),
        "{opened:?}"
    );
    // Without keys there is nothing to be had of a sealed one.
    let keyless = House {
        envelope: Envelope::plaintext(),
        ..plain
    };
    let keyless = keyless.open().await;
    let opened = keyless.open(&id("acme")).await;
    assert!(matches!(opened, Err(StoreError::Open { .. })), "{opened:?}");
}

pub(super) async fn two_servers_that_make_a_sealed_tenant_have_one_key<E: Tested>() {
    let house = SealedHouse::<E>::empty();
    let servers = [house.open().await, house.open().await];
    for round in 0..4 {
        let name = id(&format!("acme{round}"));
        let made = futures_util::future::join(
            servers[0].create_tenant(&name),
            servers[1].create_tenant(&name),
        );
        let made: [Result<(), StoreError>; 2] = made.await.into();
        let won = made.iter().filter(|made| made.is_ok()).count();
        assert_eq!(won, 1, "{made:?}");
        for server in &servers {
            let store = server.open(&name).await.unwrap();
            let _id = add(&store, r#"{"n":1}"#).await;
        }
        for server in &servers {
            let store = server.open(&name).await.unwrap();
            assert_eq!(store.list(&table("t"), 10).await.unwrap().len(), 2);
        }
    }
}

pub(super) async fn a_manifest_is_replaced_where_it_is_what_was_read_alone<E: Tested>() {
    let house = SealedHouse::<E>::empty();
    let (_tenants, _store) = acme(&house).await;
    let reaching = house.0.database.clone();
    let rows = blocking(move || Catalog::looking(E::reach(reaching))).await;
    let rows: Arc<dyn ManifestRows> = rows.unwrap();
    let listed = blocking({
        let rows = Arc::clone(&rows);
        move || rows.list()
    });
    let listed = listed.await.unwrap();
    let [(tenant, Some(text))] = &listed[..] else {
        panic!("{listed:?}");
    };
    let replace = |before: &[u8], after: &[u8]| {
        let (rows, tenant) = (Arc::clone(&rows), tenant.clone());
        let (before, after) = (before.to_vec(), after.to_vec());
        blocking(move || rows.replace(&tenant, &before, &after))
    };
    assert!(!replace(b"another", b"new").await.unwrap());
    assert!(replace(text, b"new").await.unwrap());
    // Done by a try that was not answered.
    assert!(replace(text, b"new").await.unwrap());
    assert!(!replace(text, b"newer").await.unwrap());
    assert!(replace(b"new", text).await.unwrap());
}
