//! The SDK client: endpoint, credentials, timeouts and retries.

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sdk_kms::Client;
use aws_sdk_kms::config::retry::RetryPartition;
use aws_types::service_config::ServiceConfigKey;
use nimbus_manifests::KeyId;
use std::time::Duration;

use super::classify::no_credentials;
use super::error::KmsError;
use super::http;
use super::settings::{self, Field, KmsConfig};

/// The client, and the name of where it goes.
pub(super) async fn connect(
    config: &KmsConfig,
    credentials: Option<SharedCredentialsProvider>,
) -> Result<(Client, String), KmsError> {
    let refused = |setting| move |source| KmsError::Setting { setting, source };
    config.check().map_err(|source| KmsError::Setting {
        setting: match source.field {
            Field::KeyId => "the KMS key",
            Field::Region => "the AWS region",
            Field::EndpointUrl => "the KMS endpoint",
            Field::Profile => "the AWS profile",
        },
        source,
    })?;
    if let Ok(profile) = std::env::var("AWS_PROFILE") {
        settings::check(Field::Profile, &profile).map_err(refused("AWS_PROFILE"))?;
    }
    let arn_region = region_of_arn(&config.key_id);
    if let (Some(region), Some(arn_region)) = (&config.region, arn_region)
        && region != arn_region
    {
        return Err(KmsError::RegionMismatch {
            key: config.key_id.clone(),
            region: region.clone(),
        });
    }
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http::client().await?)
        .retry_config(
            RetryConfig::adaptive()
                .with_max_attempts(config.max_attempts)
                .with_initial_backoff(Duration::from_millis(100))
                .with_max_backoff(Duration::from_secs(2)),
        )
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(config.attempt_timeout.min(Duration::from_secs(3)))
                .operation_attempt_timeout(config.attempt_timeout)
                .operation_timeout(config.deadline)
                .build(),
        );
    if let Some(region) = config.region.as_deref().or(arn_region) {
        loader = loader.region(Region::new(region.to_owned()));
    }
    if let Some(credentials) = credentials {
        loader = loader.credentials_provider(credentials);
    }
    let sdk = loader.load().await;
    let region = sdk.region().ok_or(KmsError::NoRegion)?.to_string();
    settings::check(Field::Region, &region).map_err(refused("AWS_REGION"))?;
    let endpoint = config.endpoint_url.clone().or_else(|| chain_endpoint(&sdk));
    if let Some(endpoint) = &endpoint {
        settings::check(Field::EndpointUrl, endpoint).map_err(refused("AWS_ENDPOINT_URL_KMS"))?;
    }
    // Asked once here, so that their absence is reported at the start and not as a failed Decrypt.
    match sdk.credentials_provider() {
        Some(chain) => {
            let found = chain.provide_credentials().await;
            drop(found.map_err(|error| no_credentials(&error))?);
        }
        None => {
            return Err(KmsError::NoCredentials {
                reason: "no provider is configured".into(),
            });
        }
    }
    let mut builder = aws_sdk_kms::config::Builder::from(&sdk);
    if let Some(endpoint) = &endpoint {
        // For KMS alone: where credentials come from has endpoints of its own.
        builder = builder.endpoint_url(endpoint);
    }
    let endpoint = endpoint.unwrap_or_else(|| format!("kms.{region}"));
    // What throttling teaches about one endpoint holds for every key there, and for no other.
    let partition = RetryPartition::new(format!("nimbus {region} {endpoint}"));
    let client = Client::from_conf(builder.retry_partition(partition).build());
    Ok((client, endpoint))
}

/// The endpoint for KMS that environment and profile name, looked up as the client itself does.
fn chain_endpoint(sdk: &SdkConfig) -> Option<String> {
    let key = ServiceConfigKey::builder()
        .service_id("KMS")
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build()
        .ok()?;
    let of_kms = sdk
        .service_config()
        .and_then(|chain| chain.load_config(key));
    of_kms.or_else(|| sdk.endpoint_url().map(str::to_owned))
}

/// The name of a key as seen from the configured region: of a multi-Region key that is named by the
/// ARN of a replica elsewhere, the replica's here.
pub(super) fn localised(key_id: &str, region: Option<&str>) -> String {
    match (region, replica(key_id)) {
        (Some(region), Some((partition, account, key))) => {
            format!("arn:{partition}:kms:{region}:{account}:{key}")
        }
        _ => key_id.to_owned(),
    }
}

/// Whether two names are those of one key: the same name, or two replicas of one multi-Region key,
/// which open each other's wraps.
#[must_use]
pub fn same_key(one: &KeyId, other: &KeyId) -> bool {
    let replicas = || replica(one.as_str()).zip(replica(other.as_str()));
    one == other || replicas().is_some_and(|(one, other)| one == other)
}

/// What the ARNs of all replicas of a multi-Region key have in common: partition, account,
/// `key/mrk-…`.
fn replica(arn: &str) -> Option<(&str, &str, &str)> {
    let fields: Vec<&str> = arn.splitn(6, ':').collect();
    match fields.as_slice() {
        ["arn", partition, "kms", _region, account, key] if key.starts_with("key/mrk-") => {
            Some((partition, account, key))
        }
        _ => None,
    }
}

/// The region in the ARN of a key (`arn:aws:kms:<region>:<account>:key/<id>`), if it is one.
pub(super) fn region_of_key_arn(name: &str) -> Option<&str> {
    let resource = name.splitn(6, ':').nth(5)?;
    resource
        .starts_with("key/")
        .then(|| region_of_arn(name))
        .flatten()
}

/// The region in an ARN of KMS.
pub(super) fn region_of_arn(name: &str) -> Option<&str> {
    let mut fields = name.split(':');
    (fields.next() == Some("arn")).then_some(())?;
    let _partition = fields.next()?;
    (fields.next() == Some("kms")).then_some(())?;
    fields.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_a_key_arn_from_other_names() {
        let key = "arn:aws:kms:eu-central-1:111122223333:key/mrk-0f5e";
        assert_eq!(region_of_key_arn(key), Some("eu-central-1"));
        let alias = "arn:aws-cn:kms:cn-north-1:111122223333:alias/nimbus";
        assert_eq!(region_of_key_arn(alias), None);
        assert_eq!(region_of_arn(alias), Some("cn-north-1"));
        for other in ["alias/nimbus", "0f5e", "arn:aws:s3:::bucket", ""] {
            assert_eq!(region_of_arn(other), None, "{other}");
        }
    }
}
