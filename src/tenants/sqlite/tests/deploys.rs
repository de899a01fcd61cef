//! Deploys in the tenant's file: what is stored, shared, and removed.

use std::collections::BTreeMap;

use super::{query::store, *};
use crate::documents::deploy::{
    AppPath, Content, ContentHash, Deploy, GENERATIONS_KEPT, Resources,
};
use crate::documents::schedule::Origin;

fn path(text: &str) -> AppPath {
    text.parse().unwrap()
}

fn deploy(files: &[(&str, &[u8])]) -> Deploy {
    let files = files
        .iter()
        .map(|(name, bytes)| (path(name), Content::new(bytes.to_vec())));
    Deploy {
        name: "v".to_owned(),
        resources: Resources::default(),
        files: files.collect::<BTreeMap<_, _>>(),
        dry_run: false,
    }
}

/// With a cron of this name.
fn ticking(name: &str) -> Deploy {
    let json = format!(
        r#"{{"name":"v","schemas":[],"files":[],"crons":[{{"name":"{name}",
            "schedule":{{"type":"interval","seconds":3600}},
            "mutation":{{"type":"insert","table":"t","fields":{{}}}}}}]}}"#
    );
    Deploy::from_json(&json).unwrap()
}

/// How many contents and pieces are stored, and how often each content is used by its own account and by the files'.
async fn stored(house: &House) -> (i64, i64) {
    let connection = house.connection("acme").await;
    let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let wrong = count(
        "SELECT count(*) FROM nimbus_contents
         WHERE uses <> (SELECT count(*) FROM nimbus_files WHERE content = number)",
    );
    assert_eq!(wrong.unwrap(), 0);
    let astray = count(
        "SELECT count(*) FROM nimbus_pieces
         WHERE id / 65536 NOT IN (SELECT number FROM nimbus_contents)",
    );
    assert_eq!(astray.unwrap(), 0);
    (
        count("SELECT count(*) FROM nimbus_contents").unwrap(),
        count("SELECT count(*) FROM nimbus_pieces").unwrap(),
    )
}

#[tokio::test]
async fn equal_contents_are_stored_once_and_removed_with_the_last_generation_that_has_them() {
    let house = House::new(encryption());
    let (tenants, store) = store(&house).await;
    let large = vec![7; 3 * (64 << 10) + 1];
    let (a, b) = (&b"a"[..], &b"b"[..]);
    let first = deploy(&[("a", a), ("again", a), ("large", &large), ("empty", b"")]);
    let _ = store.deploy(first).await.unwrap();
    assert_eq!(stored(&house).await, (3, 1 + 4));
    let _ = store.deploy(deploy(&[("a", a), ("b", b)])).await.unwrap();
    assert_eq!(stored(&house).await, (4, 1 + 4 + 1));
    for _ in 0..GENERATIONS_KEPT - 1 {
        let _ = store.deploy(deploy(&[("a", a)])).await.unwrap();
    }
    // The first generation is gone, and with it what it alone had.
    assert_eq!(stored(&house).await, (2, 2));
    let gone = store.app_content(ContentHash::of(&large), 0..10).await;
    assert!(matches!(gone, Err(StoreError::ContentGone { .. })));
    let _ = store.deploy(deploy(&[])).await.unwrap();
    assert_eq!(stored(&house).await, (1, 1));
    let listed = store.generations().await.unwrap();
    assert_eq!(listed.generations.len(), GENERATIONS_KEPT);
    assert_eq!(listed.active, Some(GENERATIONS_KEPT as i64 + 2));
    tenants.close().await.unwrap();
}

#[tokio::test]
async fn any_part_of_a_content_is_read_exactly() {
    let house = House::new(encryption());
    let (tenants, store) = store(&house).await;
    const PIECE: u64 = 64 << 10;
    let size = 3 * PIECE + 100;
    let content: Vec<u8> = (0..size)
        .map(|n| (n ^ (n >> 8) ^ (n >> 13)) as u8)
        .collect();
    let _ = store.deploy(deploy(&[("x", &content)])).await.unwrap();
    let file = store.app_file(&path("x")).await.unwrap();
    assert_eq!((file.hash, file.size), (ContentHash::of(&content), size));
    let edges = [
        0,
        1,
        PIECE - 1,
        PIECE,
        PIECE + 1,
        2 * PIECE,
        3 * PIECE,
        size - 1,
        size,
    ];
    for start in edges {
        for end in edges.into_iter().filter(|&end| end >= start) {
            let part = store.app_content(file.hash, start..end).await.unwrap();
            assert!(
                part == content[start as usize..end as usize],
                "{start}..{end}"
            );
        }
    }
    for beyond in [
        0..size + 1,
        size..size + 1,
        4 * PIECE..5 * PIECE,
        0..u64::MAX,
    ] {
        let part = store.app_content(file.hash, beyond.clone()).await;
        assert!(
            matches!(part, Err(StoreError::ContentGone { .. })),
            "{beyond:?}"
        );
    }
    tenants.close().await.unwrap();
}

#[tokio::test]
async fn a_dry_run_tells_nobody_of_crons_that_do_not_come_to_be() {
    let house = House::new(encryption());
    let (tenants, store) = store(&house).await;
    let _opened = house.due.told();
    let rehearsal = Deploy {
        dry_run: true,
        ..ticking("hourly")
    };
    let answer = store.deploy(rehearsal).await.unwrap();
    assert_eq!(answer.diff.crons.added.names, ["hourly"]);
    assert_eq!((answer.generation, answer.activated), (None, false));
    assert_eq!(house.due.told(), []);
    assert_eq!(store.crons().await.unwrap(), []);
    let _ = store.deploy(ticking("hourly")).await.unwrap();
    assert!(matches!(house.due.told()[..], [Told::Expect(..)]));
    let crons = store.crons().await.unwrap();
    assert_eq!(crons.len(), 1);
    assert_eq!(crons[0].origin, Origin::Deploy);
    tenants.close().await.unwrap();
}

#[tokio::test]
async fn a_cron_that_stays_keeps_its_next_time() {
    let house = House::new(encryption());
    let (tenants, store) = store(&house).await;
    let _ = store.deploy(ticking("hourly")).await.unwrap();
    let before = store.crons().await.unwrap();
    let answer = store.deploy(ticking("hourly")).await.unwrap();
    assert_eq!(answer.diff.crons.unchanged, 1);
    assert_eq!(store.crons().await.unwrap(), before);
    let _ = store.activate(1).await.unwrap();
    assert_eq!(store.crons().await.unwrap(), before);
    tenants.close().await.unwrap();
}

#[tokio::test]
async fn a_deploy_whose_crons_cannot_be_told_of_is_undone_whole() {
    let house = House::new(encryption());
    let (tenants, store) = store(&house).await;
    let _ = store.deploy(deploy(&[("a", b"1")])).await.unwrap();
    house.due.failing.store(true, Ordering::SeqCst);
    let mut next = ticking("hourly");
    next.files = deploy(&[("a", b"2")]).files;
    let refused = store.deploy(next.clone()).await;
    assert!(matches!(refused, Err(StoreError::Control { .. })));
    let file = store.app_file(&path("a")).await.unwrap();
    assert_eq!(file.hash, ContentHash::of(b"1"));
    assert_eq!(stored(&house).await, (1, 1));
    house.due.failing.store(false, Ordering::SeqCst);
    let answer = store.deploy(next).await.unwrap();
    assert_eq!(answer.generation, Some(2));
    tenants.close().await.unwrap();
}

#[tokio::test]
async fn a_generation_that_nobody_wrote_is_damage() {
    let house = House::new(encryption());
    let (tenants, store) = store(&house).await;
    let _ = store.deploy(ticking("hourly")).await.unwrap();
    let connection = house.connection("acme").await;
    let _ = connection
        .execute("UPDATE nimbus_generations SET cron_list = '[{}]'", [])
        .unwrap();
    drop(connection);
    let damaged = store.activate(1).await;
    assert!(
        matches!(damaged, Err(StoreError::Corrupt { .. })),
        "{damaged:?}"
    );
    tenants.close().await.unwrap();
}
