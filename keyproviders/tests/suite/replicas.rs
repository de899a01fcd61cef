//! Multi-Region keys: a wrap that one replica made is opened by another.

use nimbus_keyproviders::aws_kms::{Credentials, KmsConfig, KmsKeyMap, SharedCredentialsProvider};
use nimbus_keyproviders::{FailureClass, KeyProvider, ProviderError, Unwrapped, same_key};
use nimbus_manifests::KeyId;
use nimbus_test_support::{FaultProxy, Moto};
use serde_json::{Value, json};

use crate::common::{Owned, generate, key, kms, kms_config, same, wrap};

/// The ARNs of a key in us-east-1 and of its replica in eu-west-1.
fn replicas(moto: &Moto, proxy: &FaultProxy) -> (String, String) {
    let key = moto.create_key();
    (
        proxy.replica(&key, "us-east-1"),
        proxy.replica(&key, "eu-west-1"),
    )
}

fn in_region(proxy: &FaultProxy, region: &str, key: &str) -> KmsConfig {
    KmsConfig {
        region: Some(region.to_owned()),
        ..kms_config(proxy.url(), key)
    }
}

#[tokio::test]
async fn a_replica_opens_what_the_primary_wrapped_and_decrypt_names_the_replica() {
    let moto = Moto::start();
    let proxy = FaultProxy::in_front_of(moto.url());
    let (primary, replica) = replicas(&moto, &proxy);
    let owned = Owned::demo();
    let there = kms(in_region(&proxy, "us-east-1", &primary)).await;
    let (dek, made) = generate(&there, &owned.context()).await;
    assert_eq!(made.key_id.as_str(), primary);
    // Named by its own ARN, by its id, and by the primary's ARN with another region configured.
    for name in [&replica, replica.rsplit('/').next().unwrap(), &primary] {
        let here = kms(in_region(&proxy, "eu-west-1", name)).await;
        let id = here.key_id(&owned.subject).await.unwrap();
        assert_eq!(id.as_str(), replica, "{name}");
        let before = proxy.calls("Decrypt").len();
        let opened = key(here.unwrap(&made, &owned.context()).await.unwrap());
        assert!(same(&dek, &opened), "{name}");
        let calls = proxy.calls("Decrypt");
        assert_eq!(calls.len(), before + 1);
        let call: Value = serde_json::from_str(calls.last().unwrap()).unwrap();
        assert_eq!(call["KeyId"], json!(replica), "{name}");
        // What it wraps itself is pinned to itself, and opens with the primary.
        let again = wrap(&here, &dek, &owned.context()).await;
        assert_eq!(again.key_id.as_str(), replica);
        assert!(same(
            &dek,
            &key(there.unwrap(&again, &owned.context()).await.unwrap())
        ));
    }
}

#[tokio::test]
async fn keys_that_only_look_alike_are_not_the_same() {
    let id = |text: &str| KeyId::new(text).unwrap();
    let of = |partition: &str, region: &str, account: &str, key: &str| {
        id(&format!("arn:{partition}:kms:{region}:{account}:key/{key}"))
    };
    let one = of("aws", "us-east-1", "111122223333", "mrk-1");
    assert!(same_key(&one, &one));
    assert!(same_key(
        &one,
        &of("aws", "eu-west-1", "111122223333", "mrk-1")
    ));
    for other in [
        of("aws-cn", "cn-north-1", "111122223333", "mrk-1"),
        of("aws", "eu-west-1", "999988887777", "mrk-1"),
        of("aws", "eu-west-1", "111122223333", "mrk-2"),
        id("arn:aws:kms:eu-west-1:111122223333:alias/mrk-1"),
        id("arn:aws:s3:eu-west-1:111122223333:key/mrk-1"),
        id("mrk-1"),
    ] {
        assert!(!same_key(&one, &other), "{other}");
        assert!(same_key(&other, &other), "{other}");
    }
    // A key of one region is itself alone.
    let single = of("aws", "us-east-1", "111122223333", "0f5e");
    assert!(!same_key(
        &single,
        &of("aws", "eu-west-1", "111122223333", "0f5e")
    ));

    let moto = Moto::start();
    let proxy = FaultProxy::in_front_of(moto.url());
    let ((_, replica), (other, _)) = (replicas(&moto, &proxy), replicas(&moto, &proxy));
    let owned = Owned::demo();
    let stranger = kms(in_region(&proxy, "us-east-1", &other)).await;
    let (_, made) = generate(&stranger, &owned.context()).await;
    let here = kms(in_region(&proxy, "eu-west-1", &replica)).await;
    let unwrapped = here.unwrap(&made, &owned.context()).await.unwrap();
    assert!(matches!(unwrapped, Unwrapped::NotMine));
    // One that says it is the same key, and is not, does not open.
    let renamed = nimbus_manifests::Wrap {
        key_id: KeyId::new(replica.replace("eu-west-1", "us-east-1")).unwrap(),
        ..made
    };
    let failed = here.unwrap(&renamed, &owned.context()).await.unwrap_err();
    assert!(matches!(failed, ProviderError::Kms(_)), "{failed}");
    assert_ne!(failed.class(), FailureClass::Unavailable, "{failed}");
}

#[tokio::test]
async fn a_tenants_own_multi_region_key_is_used_where_the_region_is_configured() {
    let moto = Moto::start();
    let proxy = FaultProxy::in_front_of(moto.url());
    let (shared, _) = replicas(&moto, &proxy);
    let (own, own_replica) = replicas(&moto, &proxy);
    let owned = Owned::demo();
    let tenant = owned.subject.tenant().unwrap().clone();
    let credentials = Credentials::new("test", "test", None, None, "test");
    let credentials = SharedCredentialsProvider::new(credentials);
    let tenants = [(tenant, own.clone())].into();
    let map = KmsKeyMap::connect_as(
        in_region(&proxy, "eu-west-1", &shared),
        &tenants,
        Some(credentials),
    );
    let map = map.await.unwrap();
    let (dek, made) = generate(&map, &owned.context()).await;
    assert_eq!(made.key_id.as_str(), own_replica);
    let there = kms(in_region(&proxy, "us-east-1", &own)).await;
    assert!(same(
        &dek,
        &key(there.unwrap(&made, &owned.context()).await.unwrap())
    ));
}
