//! Deploys.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use super::{Fixture, Noted, acme};
use crate::documents::deploy::{AppPath, Content, ContentHash, Deploy, Resources};
use crate::documents::schedule::Origin;
use crate::tenants::full_list::FullList as _;
use crate::tenants::{StoreError, TenantProvider as _};

pub(in crate::tenants) fn path(text: &str) -> AppPath {
    text.parse().unwrap()
}

pub(in crate::tenants) fn deploy(files: &[(&str, &[u8])]) -> Deploy {
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
pub(in crate::tenants) fn ticking(name: &str) -> Deploy {
    let json = format!(
        r#"{{"name":"v","schemas":[],"files":[],"crons":[{{"name":"{name}",
            "schedule":{{"type":"interval","seconds":3600}},
            "mutation":{{"type":"insert","table":"t","fields":{{}}}}}}]}}"#
    );
    Deploy::from_json(&json).unwrap()
}

pub(in crate::tenants) async fn any_part_of_a_content_is_read_exactly<F: Fixture>() {
    let house = F::empty();
    let (tenants, store) = acme(&house).await;
    const PIECE: u64 = 64 << 10;
    let size = 3 * PIECE + 100;
    let content: Vec<u8> = (0..size)
        .map(|n| (n ^ (n >> 8) ^ (n >> 13)) as u8)
        .collect();
    store.deploy(deploy(&[("x", &content)])).await.unwrap();
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

pub(in crate::tenants) async fn a_dry_run_tells_nobody_of_crons_that_do_not_come_to_be<
    F: Fixture,
>() {
    let house = F::empty();
    let (tenants, store) = acme(&house).await;
    let _opened = house.due().take();
    let rehearsal = Deploy {
        dry_run: true,
        ..ticking("hourly")
    };
    let answer = store.deploy(rehearsal).await.unwrap();
    assert_eq!(answer.diff.crons.added.names, ["hourly"]);
    assert_eq!((answer.generation, answer.activated), (None, false));
    assert_eq!(house.due().take(), []);
    assert_eq!(store.crons().await.unwrap(), []);
    store.deploy(ticking("hourly")).await.unwrap();
    assert!(matches!(house.due().take()[..], [Noted::Expect(..)]));
    let crons = store.crons().await.unwrap();
    assert_eq!(crons.len(), 1);
    assert_eq!(crons[0].origin, Origin::Deploy);
    tenants.close().await.unwrap();
}

pub(in crate::tenants) async fn a_cron_that_stays_keeps_its_next_time<F: Fixture>() {
    let house = F::empty();
    let (tenants, store) = acme(&house).await;
    store.deploy(ticking("hourly")).await.unwrap();
    let before = store.crons().await.unwrap();
    let answer = store.deploy(ticking("hourly")).await.unwrap();
    assert_eq!(answer.diff.crons.unchanged, 1);
    assert_eq!(store.crons().await.unwrap(), before);
    let _ = store.activate(1).await.unwrap();
    assert_eq!(store.crons().await.unwrap(), before);
    tenants.close().await.unwrap();
}

pub(in crate::tenants) async fn a_deploy_whose_crons_cannot_be_told_of_is_undone_whole<
    F: Fixture,
>() {
    let house = F::empty();
    let (tenants, store) = acme(&house).await;
    store.deploy(deploy(&[("a", b"1")])).await.unwrap();
    house.due().failing.store(true, Ordering::SeqCst);
    let mut next = ticking("hourly");
    next.files = deploy(&[("a", b"2")]).files;
    let refused = store.deploy(next.clone()).await;
    assert!(matches!(refused, Err(StoreError::Control { .. })));
    let file = store.app_file(&path("a")).await.unwrap();
    assert_eq!(file.hash, ContentHash::of(b"1"));
    assert_eq!(store.generations().await.unwrap().generations.len(), 1);
    house.due().failing.store(false, Ordering::SeqCst);
    let answer = store.deploy(next).await.unwrap();
    assert_eq!(answer.generation, Some(2));
    tenants.close().await.unwrap();
}
