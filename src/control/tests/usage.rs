//! Usage: each identity once a month, whatever the clock does.

use redb::{ReadableDatabase as _, ReadableTable as _};

use super::*;

fn time(text: &str) -> jiff::Timestamp {
    text.parse().unwrap()
}

/// A tenant with a key.
fn settle(control: &Control, tenant: &str) -> (TenantId, AccessKeyId) {
    let tenant: TenantId = tenant.parse().unwrap();
    let name = "a name".parse().unwrap();
    let made = control.create_key(&tenant, name, Scope::Read, control.deletions());
    (tenant, made.unwrap().1.id.parse().unwrap())
}

fn see(control: &Control, (tenant, key): &(TenantId, AccessKeyId), month: &str, names: &[&str]) {
    let month: Month = month.parse().unwrap();
    let seen: Vec<_> = names
        .iter()
        .map(|name| Sighting {
            month,
            tenant: tenant.clone(),
            key: *key,
            hash: control.identity_hash(month, tenant, Identity::Named(name.as_bytes())),
        })
        .collect();
    control.count_identities(&seen).unwrap();
}

/// `2026-11 demo:2 other:1 -:0`: the newest month first.
fn counted(control: &Control) -> Vec<String> {
    let months = control.usage(None).unwrap();
    let show = |one: MonthUsage| {
        let tenants = one.tenants.iter();
        let tenants = tenants.map(|one| format!(" {}:{}", one.tenant, one.identities));
        let sum: u64 = one.tenants.iter().map(|one| one.identities).sum();
        assert_eq!(one.identities, sum + one.deleted_tenants);
        format!(
            "{}{} -:{}",
            one.month,
            tenants.collect::<String>(),
            one.deleted_tenants
        )
    };
    months.into_iter().map(show).collect()
}

#[test]
fn a_month_is_the_calendars_in_utc() {
    for (moment, month) in [
        ("2026-10-31T23:59:59.999999999Z", "2026-10"),
        ("2026-11-01T00:00:00Z", "2026-11"),
        ("2026-11-01T00:30:00+01:00", "2026-10"),
        ("2027-01-01T00:00:00Z", "2027-01"),
        ("1969-12-31T23:00:00Z", "1969-12"),
    ] {
        assert_eq!(Month::of(time(moment)).to_string(), month);
        assert_eq!(month.parse(), Ok(Month::of(time(moment))));
    }
    for text in [
        "",
        "2026",
        "2026-0",
        "2026-00",
        "2026-13",
        "2026-1",
        "26-11",
        "2026-11-01",
        "+026-11",
        "2026-+1",
        "２０２６-11",
        "2026_11",
    ] {
        assert_eq!(text.parse::<Month>(), Err(InvalidMonth), "{text}");
    }
}

#[tokio::test]
async fn counts_each_identity_once_a_month_and_tenant() {
    let house = House::new();
    let control = house.open().await.unwrap();
    let (demo, other) = (settle(&control, "demo"), settle(&control, "other"));
    see(&control, &demo, "2026-11", &["ann", "bob", "ann"]);
    see(&control, &demo, "2026-11", &["bob", "cy"]);
    see(&control, &other, "2026-11", &["ann"]);
    see(&control, &demo, "2026-12", &["ann"]);
    let expected = ["2026-12 demo:1 -:0", "2026-11 demo:3 other:1 -:0"];
    assert_eq!(counted(&control), expected);
    drop(control);
    let control = house.open().await.unwrap();
    see(&control, &demo, "2026-11", &["ann"]);
    assert_eq!(counted(&control), expected, "known after a restart");
    let month = control.usage(Some("2026-11".parse().unwrap())).unwrap();
    assert_eq!(month.len(), 1);
    assert_eq!(month[0].identities, 4);
}

#[tokio::test]
async fn a_key_and_a_name_of_the_same_text_are_two_identities_and_no_month_shows_who_came_in_another()
 {
    let house = House::new();
    let control = house.open().await.unwrap();
    let (demo, key) = settle(&control, "demo");
    let text = key.to_string();
    let (november, december) = ("2026-11".parse().unwrap(), "2026-12".parse().unwrap());
    let hashes = [
        control.identity_hash(november, &demo, Identity::Key(key)),
        control.identity_hash(november, &demo, Identity::Named(text.as_bytes())),
        control.identity_hash(december, &demo, Identity::Key(key)),
        control.identity_hash(november, &"dem".parse().unwrap(), Identity::Named(b"o")),
    ];
    for (at, hash) in hashes.iter().enumerate() {
        assert!(!hashes[..at].contains(hash));
    }
    drop(control);
    let control = house.open().await.unwrap();
    let again = control.identity_hash(november, &demo, Identity::Key(key));
    assert_eq!(again, hashes[0], "the same key after a restart");
    let stranger = House::new().open().await.unwrap();
    let theirs = stranger.identity_hash(november, &demo, Identity::Key(key));
    assert_ne!(theirs, hashes[0], "another deployment, another key");
}

#[tokio::test]
async fn a_clock_that_jumps_ahead_and_back_costs_nothing() {
    let control = House::new().open().await.unwrap();
    let demo = settle(&control, "demo");
    see(&control, &demo, "2026-11", &["ann"]);
    see(&control, &demo, "2099-01", &["ann"]);
    see(&control, &demo, "2026-11", &["ann", "bob"]);
    see(&control, &demo, "2026-12", &["ann"]);
    see(&control, &demo, "2027-01", &["ann"]);
    see(&control, &demo, "2027-01", &["ann"]);
    assert_eq!(
        counted(&control),
        [
            "2099-01 demo:1 -:0",
            "2027-01 demo:1 -:0",
            "2026-12 demo:1 -:0",
            "2026-11 demo:2 -:0"
        ]
    );
}

#[tokio::test]
async fn a_month_that_has_ended_keeps_its_count_and_forgets_its_identities() {
    let control = House::new().open().await.unwrap();
    let demo = settle(&control, "demo");
    see(&control, &demo, "2026-10", &["ann", "bob"]);
    see(&control, &demo, "2026-11", &["ann"]);
    // The month before is still counted: a clock may be set back over the boundary.
    see(&control, &demo, "2026-10", &["ann", "cy"]);
    see(&control, &demo, "2026-12", &["ann"]);
    see(&control, &demo, "2026-10", &["dan"]);
    let expected = [
        "2026-12 demo:1 -:0",
        "2026-11 demo:1 -:0",
        "2026-10 demo:3 -:0",
    ];
    assert_eq!(counted(&control), expected);
    assert_eq!(identities(&control), 2, "those of two months");
}

fn identities(control: &Control) -> usize {
    control
        .with(|database| {
            let transaction = database.begin_read()?;
            Ok(transaction.open_table(tables::IDENTITIES)?.iter()?.count())
        })
        .unwrap()
}

#[tokio::test]
async fn keeps_two_years() {
    let control = House::new().open().await.unwrap();
    let demo = settle(&control, "demo");
    for year in [2026, 2027, 2028] {
        for month in 1..=12 {
            see(&control, &demo, &format!("{year}-{month:02}"), &["ann"]);
        }
    }
    let months = counted(&control);
    assert_eq!(months.len(), KEPT_MONTHS);
    assert_eq!(months[0], "2028-12 demo:1 -:0");
    assert_eq!(months[KEPT_MONTHS - 1], "2027-01 demo:1 -:0");
}

#[tokio::test]
async fn what_a_deleted_tenant_had_stays_in_the_sum_without_its_name() {
    let house = House::new();
    let control = house.open().await.unwrap();
    let (demo, other) = (settle(&control, "demo"), settle(&control, "other"));
    see(&control, &demo, "2026-10", &["ann"]);
    see(&control, &demo, "2026-11", &["ann", "bob"]);
    see(&control, &other, "2026-11", &["ann"]);
    control.begin_delete(&demo.0).unwrap();
    control.finish_delete(&demo.0).unwrap();
    let expected = ["2026-11 other:1 -:2", "2026-10 -:1"];
    assert_eq!(counted(&control), expected);
    assert_eq!(identities(&control), 1);
    // What was still in the queue comes too late, also for a tenant of the same name.
    see(&control, &demo, "2026-11", &["cy"]);
    assert_eq!(counted(&control), expected);
    let anew = settle(&control, "demo");
    see(&control, &demo, "2026-11", &["cy"]);
    assert_eq!(counted(&control), expected);
    see(&control, &anew, "2026-11", &["ann"]);
    assert_eq!(counted(&control)[0], "2026-11 demo:1 other:1 -:2");
}

#[tokio::test]
async fn counts_no_more_than_it_says() {
    let control = House::new().open().await.unwrap();
    let demo = settle(&control, "demo");
    see(&control, &demo, "2026-11", &["ann"]);
    control
        .write(|transaction| {
            let mut counts = transaction.open_table(tables::USAGE_COUNTS)?;
            counts.insert((202_611, "demo"), MAX_IDENTITIES - 1)?;
            Ok(())
        })
        .unwrap();
    see(&control, &demo, "2026-11", &["bob", "cy", "dan"]);
    let month = &control.usage(None).unwrap()[0];
    assert_eq!(month.tenants[0].identities, MAX_IDENTITIES);
    assert!(month.capped && month.tenants[0].capped);
    assert_eq!(identities(&control), 2, "beyond that nothing is kept");
}
