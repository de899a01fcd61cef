//! Access keys: what is let in, after restarts, revocations and deletions.

use super::*;

fn demo() -> TenantId {
    "demo".parse().unwrap()
}

/// Makes a key as a server does.
fn make(control: &Control, tenant: &TenantId, scope: Scope) -> AccessKey {
    let name = "a name".parse().unwrap();
    let made = control.create_key(tenant, name, scope, control.deletions());
    made.unwrap().0
}

fn live(tenant: &TenantId, scope: Scope) -> KeyVerdict {
    let tenant = tenant.clone();
    KeyVerdict::Live { tenant, scope }
}

#[tokio::test]
async fn lets_a_key_in_until_it_is_revoked_also_after_restarts() {
    let house = House::new();
    let (demo, other) = (demo(), "other".parse().unwrap());
    let control = house.open().await.unwrap();
    let (one, two) = (
        make(&control, &demo, Scope::Read),
        make(&control, &demo, Scope::Write),
    );
    assert_eq!(control.judge_key(&one), live(&demo, Scope::Read));
    let listed = control.tenant_keys(&demo);
    drop(control);

    let control = house.open().await.unwrap();
    assert_eq!(control.tenant_keys(&demo), listed);
    assert_eq!(listed.len(), 2);
    assert_eq!(control.judge_key(&two), live(&demo, Scope::Write));
    assert!(
        !control.revoke_key(&other, one.id()).unwrap(),
        "not of this tenant"
    );
    assert_eq!(control.judge_key(&one), live(&demo, Scope::Read));
    assert!(control.revoke_key(&demo, one.id()).unwrap());
    assert_eq!(control.judge_key(&one), KeyVerdict::Revoked);
    assert!(!control.revoke_key(&demo, one.id()).unwrap(), "once");
    drop(control);

    let control = house.open().await.unwrap();
    assert_eq!(control.judge_key(&one), KeyVerdict::Revoked);
    assert_eq!(control.judge_key(&two), live(&demo, Scope::Write));
    assert_eq!(control.tenant_keys(&demo).len(), 1);
}

#[tokio::test]
async fn knows_no_key_of_another_deployment_and_none_with_another_secret() {
    let (ours, theirs) = (House::new(), House::new());
    let ours = ours.open().await.unwrap();
    let key = make(&ours, &demo(), Scope::Write);
    let theirs = theirs.open().await.unwrap();
    assert_eq!(theirs.judge_key(&key), KeyVerdict::Unknown);
    // The same id with another secret: it is not even told that the id is revoked.
    let forged = key.with_other_secret();
    assert_eq!(ours.judge_key(&forged), KeyVerdict::Unknown);
    assert!(ours.revoke_key(&demo(), key.id()).unwrap());
    assert_eq!(ours.judge_key(&forged), KeyVerdict::Unknown);
}

#[tokio::test]
async fn a_deletion_ends_keys_for_good() {
    let house = House::new();
    let (demo, other) = (demo(), "other".parse().unwrap());
    let control = house.open().await.unwrap();
    let (gone, kept) = (
        make(&control, &demo, Scope::Write),
        make(&control, &other, Scope::Write),
    );
    let looked = control.deletions();
    control.begin_delete(&demo).unwrap();
    control.finish_delete(&demo).unwrap();
    assert_eq!(control.judge_key(&gone), KeyVerdict::Unknown);
    assert_eq!(control.judge_key(&kept), live(&other, Scope::Write));
    // Who looked whether the tenant exists before it was deleted has to look again.
    let late = control.create_key(&demo, "late".parse().unwrap(), Scope::Read, looked);
    assert!(matches!(late, Err(KeyError::Deleted)), "{late:?}");
    drop(control);
    let control = house.open().await.unwrap();
    assert_eq!(control.judge_key(&gone), KeyVerdict::Unknown);
    assert_eq!(control.judge_key(&kept), live(&other, Scope::Write));
}

#[tokio::test]
async fn a_tenant_made_where_files_were_taken_away_by_hand_has_no_old_keys() {
    let house = House::new();
    let demo = demo();
    let control = house.open().await.unwrap();
    let old = make(&control, &demo, Scope::Write);
    control.begin_create(&demo).unwrap();
    assert_eq!(control.judge_key(&old), KeyVerdict::Unknown);
    drop(control);
    let control = house.open().await.unwrap();
    assert_eq!(control.judge_key(&old), KeyVerdict::Unknown);
}

#[tokio::test]
async fn keeps_as_many_keys_as_it_says_and_remembers_the_last_revoked() {
    let house = House::new();
    let (demo, other) = (demo(), "other".parse().unwrap());
    let control = house.open().await.unwrap();
    // Put in at once: a thousand commits would take their time.
    let first = make(&control, &demo, Scope::Read);
    control.fill_with_keys(&demo, MAX_KEYS - 1);
    let name: KeyName = "one too many".parse().unwrap();
    let more = control.create_key(&demo, name, Scope::Read, control.deletions());
    assert!(matches!(more, Err(KeyError::TooMany { .. })), "{more:?}");
    let _fits = make(&control, &other, Scope::Read);
    assert!(control.revoke_key(&demo, first.id()).unwrap());
    let mut keys = vec![first, make(&control, &demo, Scope::Read)];
    for _ in 0..100 {
        let last = keys.last().unwrap().id();
        assert!(control.revoke_key(&demo, last).unwrap());
        keys.push(make(&control, &demo, Scope::Read));
    }
    assert_eq!(
        control.judge_key(&keys[0]),
        KeyVerdict::Unknown,
        "forgotten"
    );
    assert_eq!(control.judge_key(&keys[1]), KeyVerdict::Revoked);
    assert_eq!(control.judge_key(&keys[101]), live(&demo, Scope::Read));
}

#[tokio::test]
async fn rejects_a_record_that_is_not_one() {
    let house = House::new();
    let control = house.open().await.unwrap();
    let key = make(&control, &demo(), Scope::Read);
    control
        .write(|transaction| {
            let mut keys = transaction.open_table(tables::ACCESS_KEYS)?;
            keys.insert(key.id().to_string().as_str(), b"{}".as_slice())?;
            Ok(())
        })
        .unwrap();
    drop(control);
    let error = house.open().await.unwrap_err();
    assert!(matches!(error, ControlError::Damaged { .. }), "{error:?}");
}
