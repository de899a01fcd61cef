//! Where `aws-kms` has its region and its credentials from.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;

use nimbus_keyproviders::aws_kms::{AwsKms, KmsConfig, KmsError};
use nimbus_keyproviders::{ProviderConfig, ProviderError};
use nimbus_test_support::Moto;

#[tokio::test]
async fn a_region_that_is_not_the_arns_is_refused() {
    let arn = "arn:aws:kms:eu-central-1:111122223333:key/11111111-2222-3333-4444-555555555555";
    let config = KmsConfig {
        region: Some("us-east-1".into()),
        ..KmsConfig::new(arn)
    };
    let error = AwsKms::connect(config).await.unwrap_err();
    assert!(matches!(error, KmsError::RegionMismatch { .. }), "{error}");
}

/// The standard chain reads the process's environment, so each case is a process of its own: this
/// test starts itself again with the environment of the case and reads what it prints.
#[test]
fn region_and_credentials_come_from_the_standard_chain() {
    const NAME: &str = "aws_chain::region_and_credentials_come_from_the_standard_chain";
    const CASE: &str = "KEYPROVIDERS_TEST_CASE";
    if let Ok(key_id) = std::env::var(CASE) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        println!("<{}>", runtime.block_on(connect_from_environment(key_id)));
        return;
    }
    let moto = Moto::start();
    let arn = moto.create_key();
    let id = arn.rsplit('/').next().unwrap();
    let keys = [
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
    ];
    let region = [("AWS_REGION", "us-east-1")];
    for (key_id, environment, expected) in [
        (id, [&keys[..], &region].concat(), "usable"),
        (arn.as_str(), keys.to_vec(), "usable"),
        (id, keys.to_vec(), "no region"),
        (id, region.to_vec(), "no credentials"),
    ] {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env_clear()
            .envs(environment.iter().copied())
            .env("HOME", "/nonexistent")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_ENDPOINT_URL_KMS", moto.url())
            .env(CASE, key_id)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            said.contains(&format!("<{expected}>")),
            "{environment:?}: {said}"
        );
    }
}

/// Where credentials come from an STS that has other things to say. Each case is a process of its
/// own, as above.
#[test]
fn a_role_that_is_refused_is_a_denial_and_an_sts_in_trouble_is_none() {
    const NAME: &str =
        "aws_chain::a_role_that_is_refused_is_a_denial_and_an_sts_in_trouble_is_none";
    const CASE: &str = "KEYPROVIDERS_TEST_ROLE";
    if std::env::var(CASE).is_ok() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let config = KmsConfig::new("alias/any");
        let failed = runtime.block_on(AwsKms::connect(config)).unwrap_err();
        println!("<{:?}> {failed}", failed.class());
        return;
    }
    let dir = crate::common::private_dir();
    let token = crate::common::file(dir.path(), "token", b"a.b.c", 0o400);
    for (status, code, class) in [
        (403, "AccessDenied", "Denied"),
        (403, "InvalidClientTokenId", "Denied"),
        (400, "ExpiredTokenException", "Unavailable"),
        (403, "SignatureDoesNotMatch", "Unavailable"),
        (400, "IDPCommunicationError", "Unavailable"),
        (503, "ServiceUnavailable", "Unavailable"),
        (400, "Throttling", "Unavailable"),
    ] {
        let sts = sts_that_says(status, code);
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env_clear()
            .env("HOME", "/nonexistent")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/nimbus")
            .env("AWS_WEB_IDENTITY_TOKEN_FILE", &token)
            .env("AWS_ENDPOINT_URL_STS", sts)
            .env(CASE, "role")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(&format!("<{class}>")), "{code}: {said}");
        assert!(said.contains(code), "{code}: {said}");
    }
}

/// The URL of an STS that answers all questions with one error.
fn sts_that_says(status: u16, code: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let body = format!(
        "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>no</Message></Error></ErrorResponse>"
    );
    let answer = format!(
        "HTTP/1.1 {status} No\r\nContent-Type: text/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ends_with_the_process = std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            // The whole request: who closes with bytes unread resets the connection.
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            while !is_whole(&request) {
                match stream.read(&mut buffer) {
                    Ok(0) | Err(_) => break,
                    Ok(read) => request.extend_from_slice(&buffer[..read]),
                }
            }
            drop(stream.write_all(answer.as_bytes()));
        }
    });
    url
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"));
    let length = length.and_then(|length| length.trim().parse().ok());
    body.len() >= length.unwrap_or(0)
}

async fn connect_from_environment(key_id: String) -> &'static str {
    let config = ProviderConfig::AwsKms {
        key_id,
        region: None,
        endpoint_url: None,
        key_map: std::collections::BTreeMap::new(),
    };
    let checked = match config.connect().await {
        Ok(provider) => provider.check().await,
        Err(error) => Err(error),
    };
    match checked {
        Ok(()) => "usable",
        Err(ProviderError::Kms(KmsError::NoRegion)) => "no region",
        Err(ProviderError::Kms(KmsError::NoCredentials { .. })) => "no credentials",
        Err(error) => panic!("{error:?}"),
    }
}
