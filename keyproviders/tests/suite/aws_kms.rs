//! `aws-kms` over the wire: what it asks for, and each way in which it fails.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nimbus_keyproviders::aws_kms::{AwsKms, KmsConfig, KmsError};
use nimbus_keyproviders::{
    Dek, FailureClass, KeyProvider, MemoryProvider, OsRandom, ProviderError, Unproven, Unwrapped,
    proof,
};
use nimbus_manifests::Wrap;
use nimbus_test_support::{Fault, FaultProxy, Moto};
use serde_json::{Value, json};

use crate::common::{Owned, generate, key, kms, kms_config, now, same, try_wrap, wrap};

/// A KMS with one key, a proxy in front of it, a provider behind that, and a wrap it made.
struct Scene {
    moto: Moto,
    proxy: FaultProxy,
    arn: String,
    kms: AwsKms,
    owned: Owned,
    dek: Dek,
    wrap: Wrap,
}

impl Scene {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut KmsConfig)) -> Self {
        let moto = Moto::start();
        let arn = moto.create_key();
        let proxy = FaultProxy::in_front_of(moto.url());
        let mut config = kms_config(proxy.url(), &arn);
        change(&mut config);
        let kms = kms(config).await;
        let owned = Owned::demo();
        let (dek, wrap) = generate(&kms, &owned.context()).await;
        Self {
            moto,
            proxy,
            arn,
            kms,
            owned,
            dek,
            wrap,
        }
    }

    async fn unwrap(&self) -> Result<Unwrapped, ProviderError> {
        self.kms.unwrap(&self.wrap, &self.owned.context()).await
    }

    /// How an unwrap fails; never with a key.
    async fn failure(&self) -> KmsError {
        match self.unwrap().await {
            Err(ProviderError::Kms(error)) => error,
            other => panic!("expected a failure of KMS, not {other:?}"),
        }
    }

    async fn failure_with(&self, status: u16, code: &str, message: &str) -> KmsError {
        self.proxy
            .inject("Decrypt", Fault::error(status, code, message));
        let error = self.failure().await;
        self.proxy.clear();
        error
    }
}

#[tokio::test]
async fn every_call_carries_the_context_and_names_the_key() {
    let scene = Scene::new().await;
    drop(wrap(&scene.kms, &scene.dek, &scene.owned.context()).await);
    let expected = json!({
        "nimbus:format": "nimbus-enc/1",
        "nimbus:subject": "db:sqlite:tenant:demo:demo.sqlite3",
        "nimbus:file-id": "0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a10",
        "nimbus:cipher": "sqlcipher4",
        "nimbus:dek-id": "4f1c0a9be2d35577",
    });
    // Both wraps were proven by a call of their own.
    for (action, times) in [("GenerateDataKey", 1), ("Encrypt", 1), ("Decrypt", 2)] {
        let calls = scene.proxy.calls(action);
        assert_eq!(calls.len(), times, "{action}: {calls:?}");
        for call in calls {
            let call: Value = serde_json::from_str(&call).unwrap();
            assert_eq!(call["EncryptionContext"], expected, "{action}");
            assert_eq!(call["KeyId"], json!(scene.arn), "{action}");
        }
    }
}

#[tokio::test]
async fn the_wrap_opens_with_kms_alone_and_not_without_its_context() {
    let scene = Scene::new().await;
    let blob = data_encoding::BASE64.encode(&scene.wrap.blob);
    let context: Value = serde_json::from_str(&scene.proxy.calls("GenerateDataKey")[0]).unwrap();
    let reply = scene.moto.kms(
        "us-east-1",
        "Decrypt",
        &json!({"CiphertextBlob": blob, "EncryptionContext": context["EncryptionContext"]}),
    );
    assert_eq!(reply["KeyId"], json!(scene.arn));
    let plaintext = reply["Plaintext"].as_str().unwrap();
    assert_eq!(
        data_encoding::BASE64
            .decode(plaintext.as_bytes())
            .unwrap()
            .len(),
        32
    );

    let other = Owned {
        subject: crate::common::other_subject(),
        ..scene.owned.clone()
    };
    let error = scene
        .kms
        .unwrap(&scene.wrap, &other.context())
        .await
        .unwrap_err();
    let ProviderError::Kms(KmsError::WrongContext { subject, .. }) = &error else {
        panic!("{error}")
    };
    assert_eq!(subject, other.subject.as_str());
    assert_eq!(error.class(), FailureClass::Invalid);
}

#[tokio::test]
async fn an_alias_is_resolved_once_and_pinned() {
    let moto = Moto::start();
    let proxy = FaultProxy::in_front_of(moto.url());
    let (first, second) = (moto.create_key(), moto.create_key());
    let alias = format!("alias/nimbus-{}", &first[first.len() - 12..]);
    drop(moto.kms(
        "us-east-1",
        "CreateAlias",
        &json!({"AliasName": alias, "TargetKeyId": first}),
    ));
    let provider = kms(kms_config(proxy.url(), &alias)).await;
    let owned = Owned::demo();
    let (dek, wrap) = generate(&provider, &owned.context()).await;
    assert_eq!(wrap.key_id.as_str(), first);

    drop(moto.kms(
        "us-east-1",
        "UpdateAlias",
        &json!({"AliasName": alias, "TargetKeyId": second}),
    ));
    // The running provider keeps to the key it knows, and asked about the alias once.
    assert!(same(
        &dek,
        &key(provider.unwrap(&wrap, &owned.context()).await.unwrap())
    ));
    assert_eq!(proxy.calls("DescribeKey").len(), 1);
    // One that starts now means the other key, and does not take the wrap for its own.
    let moved = kms(kms_config(proxy.url(), &alias)).await;
    let unwrapped = moved.unwrap(&wrap, &owned.context()).await.unwrap();
    assert!(matches!(unwrapped, Unwrapped::NotMine));
}

/// What a wrap must not become a manifest's with: a KMS that encrypts and does not decrypt.
#[tokio::test]
async fn a_wrap_that_does_not_give_its_key_back_is_given_to_nobody() {
    let scene = Scene::new().await;
    let context = scene.owned.context();
    let local = MemoryProvider::random().unwrap();
    let (dek, _) = generate(&local, &context).await;
    let other = scene.moto.create_key();
    let denied = || Fault::error(400, "AccessDeniedException", "kms:Decrypt");
    let elsewhere = || Fault::Rewrite(scene.arn.clone(), other.clone());
    let wrong = data_encoding::BASE64.encode(&[7; 32]);
    let wrong = || Fault::Reply(json!({"KeyId": scene.arn, "Plaintext": wrong}).to_string());
    type Case<'a> = (&'a str, &'a dyn Fn() -> Fault, FailureClass, &'a str);
    let cases: [Case<'_>; 5] = [
        ("Decrypt", &denied, FailureClass::Denied, "kms:Decrypt"),
        ("Decrypt", &wrong, FailureClass::Invalid, "another key"),
        (
            "Encrypt",
            &elsewhere,
            FailureClass::Denied,
            "denied Decrypt",
        ),
        (
            "GenerateDataKey",
            &elsewhere,
            FailureClass::Denied,
            "denied Decrypt",
        ),
        (
            "Decrypt",
            &|| Fault::Reset,
            FailureClass::Unavailable,
            "reached",
        ),
    ];
    for (action, fault, class, words) in cases {
        scene.proxy.inject(action, fault());
        let mut failures = vec![proof::generate(&scene.kms, &context, now()).await.err()];
        failures.push(try_wrap(&scene.kms, &dek, &context).await.err());
        scene.proxy.clear();
        let failures: Vec<_> = failures.into_iter().flatten().collect();
        assert!(!failures.is_empty(), "{action}");
        for failure in failures {
            let ProviderError::Unproven { source, .. } = &failure else {
                panic!("{failure:?}")
            };
            assert_eq!(failure.class(), class, "{action} {failure:?}");
            let why = match source {
                Unproven::Refused(why) => why.to_string(),
                why => why.to_string(),
            };
            assert!(why.contains(words), "{action}: {why}");
        }
    }
    drop(wrap(&scene.kms, &dek, &context).await);
}

#[tokio::test]
async fn check_tells_the_state_of_the_key() {
    let scene = Scene::new().await;
    scene.kms.check().await.unwrap();
    // moto takes only the bare id here.
    let input = json!({"KeyId": scene.arn.rsplit('/').next()});
    drop(scene.moto.kms("us-east-1", "DisableKey", &input));
    let error = scene.kms.check().await.unwrap_err();
    assert!(
        matches!(&error, ProviderError::Kms(KmsError::Disabled { .. })),
        "{error}"
    );
    assert_eq!(error.class(), FailureClass::Denied);
    drop(scene.moto.kms("us-east-1", "EnableKey", &input));
    scene.kms.check().await.unwrap();
    drop(scene.moto.kms("us-east-1", "ScheduleKeyDeletion", &input));
    let error = scene.kms.check().await.unwrap_err();
    assert!(
        matches!(error, ProviderError::Kms(KmsError::PendingDeletion { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn rejects_a_key_that_does_not_encrypt() {
    let moto = Moto::start();
    let input = json!({"KeyUsage": "SIGN_VERIFY", "KeySpec": "ECC_NIST_P256"});
    let reply = moto.kms("us-east-1", "CreateKey", &input);
    let provider = kms(kms_config(
        moto.url(),
        reply["KeyMetadata"]["KeyId"].as_str().unwrap(),
    ))
    .await;
    let error = provider.check().await.unwrap_err();
    assert!(
        matches!(error, ProviderError::Kms(KmsError::WrongKeyType { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn a_key_that_does_not_exist_is_not_found() {
    let moto = Moto::start();
    for name in [
        "alias/nobody-made-this",
        "11111111-2222-3333-4444-555555555555",
    ] {
        let error = kms(kms_config(moto.url(), name))
            .await
            .check()
            .await
            .unwrap_err();
        let ProviderError::Kms(KmsError::NotFound { key, .. }) = &error else {
            panic!("{error}")
        };
        assert_eq!(key, name);
        assert!(
            error.to_string().contains("--encryption-aws-kms-key-id"),
            "{error}"
        );
    }
}

/// The refusals that moto does not model, as KMS words them.
#[tokio::test]
async fn refusals_are_told_apart() {
    let scene = Scene::new().await;
    let arn = &scene.arn;
    let error = scene
        .failure_with(
            400,
            "AccessDeniedException",
            "User: arn:aws:iam::1:user/u is not authorized to perform: kms:Decrypt",
        )
        .await;
    assert!(
        matches!(&error, KmsError::Denied { action: "Decrypt", key, .. } if key == arn),
        "{error}"
    );
    assert_eq!(error.class(), FailureClass::Denied);
    assert!(error.to_string().contains("allow kms:Decrypt"), "{error}");

    let error = scene
        .failure_with(400, "DisabledException", &format!("{arn} is disabled."))
        .await;
    assert!(
        matches!(&error, KmsError::Disabled { key } if key == arn),
        "{error}"
    );
    assert_eq!(error.class(), FailureClass::Denied);

    let pending = format!("{arn} is pending deletion.");
    let error = scene
        .failure_with(400, "KMSInvalidStateException", &pending)
        .await;
    assert!(
        matches!(&error, KmsError::PendingDeletion { key } if key == arn),
        "{error}"
    );
    assert!(error.to_string().contains("cancel-key-deletion"), "{error}");
    let error = scene
        .failure_with(
            400,
            "KMSInvalidStateException",
            &format!("{arn} is pending import."),
        )
        .await;
    assert!(matches!(error, KmsError::InvalidState { .. }), "{error}");

    let error = scene
        .failure_with(400, "NotFoundException", "Key does not exist")
        .await;
    assert!(matches!(error, KmsError::NotFound { .. }), "{error}");
    let error = scene
        .failure_with(400, "InvalidCiphertextException", "")
        .await;
    assert!(matches!(error, KmsError::WrongContext { .. }), "{error}");
    let error = scene
        .failure_with(
            400,
            "IncorrectKeyException",
            "The key ID in the request does not identify a CMK that can perform this operation.",
        )
        .await;
    assert!(matches!(error, KmsError::WrongKey { .. }), "{error}");

    let error = scene
        .failure_with(
            400,
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
        )
        .await;
    assert!(
        matches!(error, KmsError::CredentialsRejected { .. }),
        "{error}"
    );
    assert_eq!(error.class(), FailureClass::Denied);
    let error = scene
        .failure_with(
            400,
            "ExpiredTokenException",
            "The security token included in the request is expired",
        )
        .await;
    assert!(
        matches!(error, KmsError::CredentialsExpired { .. }),
        "{error}"
    );
    assert_eq!(error.class(), FailureClass::Unavailable);

    let error = scene
        .failure_with(418, "TeapotException", "short and stout")
        .await;
    assert!(matches!(error, KmsError::UnexpectedReply { .. }), "{error}");
    assert!(
        same(&scene.dek, &key(scene.unwrap().await.unwrap())),
        "the scene works without faults"
    );
}

#[tokio::test]
async fn throttling_is_ridden_out_or_told() {
    let scene = Scene::new().await;
    let throttled = || Fault::error(400, "ThrottlingException", "You have exceeded the rate");
    scene.proxy.inject_times("Decrypt", throttled(), 2);
    let before = scene.proxy.calls("Decrypt").len();
    assert!(same(&scene.dek, &key(scene.unwrap().await.unwrap())));
    assert_eq!(scene.proxy.calls("Decrypt").len(), before + 3);

    scene.proxy.inject("Decrypt", throttled());
    let error = scene.failure().await;
    assert!(
        matches!(
            error,
            KmsError::Throttled {
                action: "Decrypt",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(error.class(), FailureClass::Unavailable);
    assert!(error.is_retryable());
}

#[tokio::test]
async fn failures_inside_kms_are_ridden_out_or_told() {
    let scene = Scene::new().await;
    let internal = || Fault::error(500, "KMSInternalException", "internal");
    scene.proxy.inject_times("Decrypt", internal(), 1);
    assert!(same(&scene.dek, &key(scene.unwrap().await.unwrap())));
    scene.proxy.inject("Decrypt", internal());
    let error = scene.failure().await;
    assert!(matches!(error, KmsError::Internal { .. }), "{error}");
    assert_eq!(error.class(), FailureClass::Unavailable);
}

#[tokio::test]
async fn a_broken_connection_is_tried_again_or_told() {
    let scene = Scene::new().await;
    scene.proxy.inject_times("Decrypt", Fault::Reset, 1);
    assert!(same(&scene.dek, &key(scene.unwrap().await.unwrap())));
    scene.proxy.inject("Decrypt", Fault::Reset);
    let error = scene.failure().await;
    let KmsError::Unreachable { endpoint, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(endpoint, scene.proxy.url());
    assert_eq!(error.class(), FailureClass::Unavailable);
    assert!(error.is_retryable());
}

#[tokio::test]
async fn nobody_listening_is_unreachable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = kms(kms_config(&url, "alias/any"))
        .await
        .check()
        .await
        .unwrap_err();
    assert!(
        matches!(&error, ProviderError::Kms(KmsError::Unreachable { .. })),
        "{error}"
    );
    assert_eq!(error.class(), FailureClass::Unavailable);
}

#[tokio::test]
async fn silence_ends_at_the_deadline() {
    let deadline = Duration::from_millis(1500);
    let scene = Scene::with(|config| {
        config.deadline = deadline;
        config.attempt_timeout = Duration::from_millis(400);
    })
    .await;
    scene.proxy.inject("Decrypt", Fault::Hang);
    let before = Instant::now();
    let error = scene.failure().await;
    assert!(
        matches!(
            error,
            KmsError::TimedOut {
                action: "Decrypt",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(error.class(), FailureClass::Unavailable);
    // Not a measurement: only that it ended, long before a default timeout would have.
    assert!(before.elapsed() < Duration::from_secs(30));
    // One silent try is ridden out.
    scene.proxy.inject_times("Decrypt", Fault::Hang, 1);
    assert!(same(&scene.dek, &key(scene.unwrap().await.unwrap())));
}

#[tokio::test]
async fn an_answer_that_is_not_kms_is_refused() {
    let scene = Scene::new().await;
    let short = data_encoding::BASE64.encode(&[7; 16]);
    let whole = data_encoding::BASE64.encode(&[7; 32]);
    for reply in [
        "<html>sign in</html>".to_owned(),
        "{}".to_owned(),
        json!({"KeyId": scene.arn, "Plaintext": short}).to_string(),
        json!({"KeyId": "arn:aws:kms:us-east-1:1:key/other", "Plaintext": whole}).to_string(),
        // Broken on the way, with the key already in it.
        format!(r#"{{"Plaintext":"{whole}","KeyId":"arn"#),
        format!(r#"{{"Plaintext":"{whole}"}}}}"#),
        format!(r#"{{"Plaintext":"{whole}%"}}"#),
        format!(r#"{{"Plaintext":["{whole}"]}}"#),
    ] {
        scene.proxy.inject("Decrypt", Fault::Reply(reply.clone()));
        let error = scene.failure().await;
        assert!(
            matches!(error, KmsError::UnexpectedReply { .. }),
            "{reply}: {error}"
        );
        assert!(
            !format!("{error} {error:?}").contains(&whole[..8]),
            "a plaintext key in an error"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_under_way_are_bounded() {
    let scene = Arc::new(Scene::with(|config| config.max_concurrency = 3).await);
    scene
        .proxy
        .inject("Decrypt", Fault::Delay(Duration::from_millis(50)));
    let tasks: Vec<_> = (0..24)
        .map(|_| {
            let scene = Arc::clone(&scene);
            tokio::spawn(async move { same(&scene.dek, &key(scene.unwrap().await.unwrap())) })
        })
        .collect();
    for task in tasks {
        assert!(task.await.unwrap());
    }
    let most = scene.proxy.max_in_flight();
    assert!((2..=3).contains(&most), "{most} at once");
}

#[tokio::test]
async fn debug_shows_the_key_and_no_credentials() {
    let scene = Scene::new().await;
    let printed = format!("{:?} {:?}", scene.kms, Dek::generate(&OsRandom).unwrap());
    assert!(printed.contains(&scene.arn), "{printed}");
    assert!(!printed.to_lowercase().contains("credential"), "{printed}");
}
