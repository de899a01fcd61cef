//! Where `aws-kms` has its region and its credentials from.

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
