//! The standard chain of AWS: region and credentials, for services other than KMS.

use aws_config::{BehaviorVersion, Region};
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};

use super::classify::no_credentials;
use super::error::KmsError;
use super::http;

/// What the chain found.
#[derive(Debug, Clone)]
pub struct AwsChain {
    /// The region; `None` where neither environment nor profile names one.
    pub region: Option<String>,
    /// Who gives credentials, and renews them.
    pub credentials: SharedCredentialsProvider,
}

impl AwsChain {
    /// Looks along the chain: environment, profile, web identity, container, instance. Credentials
    /// are asked for once here.
    ///
    /// # Errors
    ///
    /// [`KmsError`] when there are no credentials, or no trusted certificates to ask for them with.
    pub async fn look(region: Option<String>) -> Result<Self, KmsError> {
        let mut loader =
            aws_config::defaults(BehaviorVersion::latest()).http_client(http::client().await?);
        if let Some(region) = region {
            loader = loader.region(Region::new(region));
        }
        let sdk = loader.load().await;
        let Some(credentials) = sdk.credentials_provider() else {
            return Err(KmsError::NoCredentials {
                reason: "no provider is configured".into(),
            });
        };
        let found = credentials.provide_credentials().await;
        drop(found.map_err(|error| no_credentials(&error))?);
        Ok(Self {
            region: sdk.region().map(ToString::to_string),
            credentials,
        })
    }
}
