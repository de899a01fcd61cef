//! Each error of AWS over the wire, and whether it takes a key in use away.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use nimbus_keyproviders::aws_kms::{KmsConfig, KmsError, table};
use nimbus_keyproviders::{FailureClass, KeyProvider, ProviderError};
use nimbus_test_support::{Fault, FaultProxy, Moto};

use crate::common::{Owned, generate, kms, kms_config};

/// What takes a key away, and nothing else does: said here once more, and not taken from the table.
const DENIED: &[(&str, &str)] = &[
    ("NotFoundException", ""),
    ("AccessDeniedException", ""),
    ("AccessDenied", ""),
    ("NotAuthorized", ""),
    ("InvalidGrantTokenException", ""),
    ("InvalidGrantIdException", ""),
    ("DisabledException", ""),
    ("KMSInvalidStateException", ""),
    ("KMSInvalidStateException", "pending deletion"),
    ("KMSInvalidStateException", "pendingdeletion"),
    ("KMSInvalidStateException", "pending replica deletion"),
    ("KMSInvalidStateException", "disabled"),
    ("UnrecognizedClientException", ""),
    ("InvalidClientTokenId", ""),
    ("OptInRequired", ""),
];

/// What says that manifest or settings are wrong.
const INVALID: &[&str] = &[
    "InvalidCiphertextException",
    "IncorrectKeyException",
    "InvalidKeyUsageException",
    "ValidationException",
    "ValidationError",
    "InvalidArnException",
    "InvalidAliasNameException",
    "SerializationException",
];

fn expected(code: &str, word: &str) -> FailureClass {
    if DENIED.contains(&(code, word)) {
        FailureClass::Denied
    } else if INVALID.contains(&code) {
        FailureClass::Invalid
    } else {
        FailureClass::Unavailable
    }
}

#[tokio::test]
async fn every_row_of_the_table_means_over_the_wire_what_it_says() {
    let moto = Moto::start();
    let proxy = FaultProxy::in_front_of(moto.url());
    let config = KmsConfig {
        max_attempts: 1,
        ..kms_config(proxy.url(), &moto.create_key())
    };
    let kms = kms(config).await;
    let owned = Owned::demo();
    let (_, wrap) = generate(&kms, &owned.context()).await;
    let mut told = 0;
    for row in table::TABLE {
        for code in row.codes {
            let words = if row.words.is_empty() {
                &[""]
            } else {
                row.words
            };
            for word in words {
                let message = format!("Key arn:aws:kms:us-east-1:1:key/2 {word} (Service: Kms)");
                for action in ["Decrypt", "GenerateDataKey"] {
                    proxy.inject(action, Fault::error(400, code, &message));
                }
                let failures = [
                    kms.unwrap(&wrap, &owned.context()).await.err(),
                    kms.generate(&owned.context()).await.err(),
                ];
                for failure in failures {
                    let failure = failure.expect("it fails");
                    let class = failure.class();
                    assert_eq!(class, expected(code, word), "{code} {word:?}: {failure}");
                    assert_eq!(class, row.class(), "{code} {word:?}: {failure}");
                    let known = !matches!(
                        failure,
                        ProviderError::Kms(KmsError::UnexpectedReply { .. })
                    );
                    assert!(known, "{code} {word:?}: {failure}");
                }
                told += 1;
            }
        }
    }
    assert!(told > 50, "{told}");
    // What nobody knows takes nothing away.
    for (status, code) in [
        (400, "NeverHeardOf"),
        (403, ""),
        (404, ""),
        (407, ""),
        (500, ""),
        (503, "X"),
    ] {
        proxy.inject("Decrypt", Fault::error(status, code, "?"));
        let failure = kms.unwrap(&wrap, &owned.context()).await.unwrap_err();
        assert_eq!(
            failure.class(),
            FailureClass::Unavailable,
            "{status} {code}: {failure}"
        );
    }
}

#[test]
fn the_manual_shows_the_table() {
    let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/keys.md");
    let manual = fs::read_to_string(manual).unwrap();
    let table = table::markdown();
    assert!(manual.contains(&table), "docs/keys.md is to hold:\n{table}");
}

#[tokio::test]
async fn what_the_network_does_takes_no_key_away() {
    let plaintext = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = plaintext.local_addr().unwrap();
    // Answers TLS with something else.
    let _ends_with_the_process = std::thread::spawn(move || {
        for stream in plaintext.incoming() {
            drop(stream.map(|mut stream| {
                std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 no\r\n\r\n")
            }));
        }
    });
    for endpoint in [
        format!("https://{address}"),
        "https://kms.invalid".to_owned(),
    ] {
        let config = KmsConfig {
            max_attempts: 1,
            attempt_timeout: Duration::from_secs(3),
            ..kms_config(&endpoint, "alias/any")
        };
        let failure = kms(config).await.check().await.unwrap_err();
        assert_eq!(failure.class(), FailureClass::Unavailable, "{failure}");
        assert!(failure.to_string().contains(&endpoint), "{failure}");
    }
}
