//! Each way in which KMS can fail, and what to do about it.

use std::path::PathBuf;
use std::time::Duration;

use aws_sdk_kms::error::BoxError;

use super::settings::InvalidSetting;
use crate::failure_class::FailureClass;

/// Why KMS did not do what it was asked. `key` is the ARN where it is known, else the key as
/// configured; `message` is what KMS said.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KmsError {
    /// There is no such key or alias in the account and region asked.
    #[error(
        "KMS knows no key {key} ({message}): check --encryption-aws-kms-key-id, the region and the \
         account with `aws kms describe-key --key-id {key}`; a key that was deleted is gone for good, \
         and what it wrapped opens only with a recovery recipient's identity"
    )]
    NotFound {
        /// The key.
        key: String,
        /// What KMS said.
        message: String,
    },
    /// The credentials are known and may not do this with this key.
    #[error(
        "KMS denied {action} on {key} ({message}): allow kms:{action} with the encryption context \
         nimbus:* in the key policy or in the role's policy"
    )]
    Denied {
        /// The KMS action.
        action: &'static str,
        /// The key.
        key: String,
        /// What KMS said.
        message: String,
    },
    /// The key is disabled.
    #[error("KMS key {key} is disabled: enable it with `aws kms enable-key --key-id {key}`")]
    Disabled {
        /// The key.
        key: String,
    },
    /// The key is scheduled for deletion.
    #[error(
        "KMS key {key} is pending deletion: stop that with `aws kms cancel-key-deletion --key-id {key}`, \
         then `aws kms enable-key --key-id {key}`; after the waiting period it is gone for good"
    )]
    PendingDeletion {
        /// The key.
        key: String,
    },
    /// The key is in another state that does not allow its use.
    #[error(
        "KMS key {key} is not usable now ({message}): see its state with \
         `aws kms describe-key --key-id {key}`"
    )]
    InvalidState {
        /// The key.
        key: String,
        /// What KMS said.
        message: String,
    },
    /// The key is not a symmetric encryption key.
    #[error(
        "KMS key {key} is not for symmetric encryption ({message}): name a key of spec \
         SYMMETRIC_DEFAULT and usage ENCRYPT_DECRYPT"
    )]
    WrongKeyType {
        /// The key.
        key: String,
        /// Its spec and usage, or what KMS said.
        message: String,
    },
    /// What was given as a key is not the name of one.
    #[error(
        "KMS does not accept {key} as a key ({message}): give a key id, an alias (alias/name) or \
         the ARN of either"
    )]
    InvalidRequest {
        /// The key.
        key: String,
        /// What KMS said.
        message: String,
    },
    /// The wrapped key does not open under this encryption context: it was changed, or it belongs
    /// to another subject, file, cipher or DEK.
    #[error(
        "the wrapped key of {subject} does not open with KMS key {key} under its encryption context: \
         the manifest was changed or belongs to another file; look at it with \
         `nimbus encryption inspect`; restore the right one from a backup, or put it back with \
         `nimbus encryption repair`"
    )]
    WrongContext {
        /// The key.
        key: String,
        /// The subject it was opened for.
        subject: String,
    },
    /// The wrapped key was made by another KMS key than the one the manifest names.
    #[error(
        "the wrapped key of {subject} was not made by KMS key {key}, which its manifest names: the \
         manifest was changed; restore the right one from a backup, or put it back with `nimbus encryption repair`"
    )]
    WrongKey {
        /// The key.
        key: String,
        /// The subject it was opened for.
        subject: String,
    },
    /// The custom key store that holds the key does not answer, or the key is being changed.
    #[error(
        "the key store of KMS key {key} does not answer now ({message}): see to the key store, its proxy and \
         the external key manager; it is safe to try again"
    )]
    KeyStore {
        /// The key.
        key: String,
        /// What KMS said.
        message: String,
    },
    /// The clocks of this machine and of AWS are apart.
    #[error(
        "AWS rejects the time of the request ({code}: {message}): set the clock of this machine (NTP); it is safe \
         to try again"
    )]
    Clock {
        /// The error code.
        code: String,
        /// What KMS said.
        message: String,
    },
    /// The signature is not the one of the request that arrived.
    #[error(
        "AWS does not accept the signature of the request ({code}: {message}): see that no proxy changes requests, \
         and that AWS_SECRET_ACCESS_KEY belongs to the access key"
    )]
    Unsigned {
        /// The error code.
        code: String,
        /// What KMS said.
        message: String,
    },
    /// Too many requests, and retrying did not get through.
    #[error(
        "KMS throttles {action} on {key} ({message}): it is safe to try again; raise the account's \
         KMS request quota if this lasts"
    )]
    Throttled {
        /// The KMS action.
        action: &'static str,
        /// The key.
        key: String,
        /// What KMS said.
        message: String,
    },
    /// No connection, or one that broke.
    #[error(
        "KMS at {endpoint} cannot be reached for {action} ({reason}): check the network, DNS, the proxy and \
         --encryption-aws-endpoint-url"
    )]
    Unreachable {
        /// The KMS action.
        action: &'static str,
        /// The endpoint, or the region whose default endpoint was used.
        endpoint: String,
        /// The whole chain of what went wrong.
        reason: String,
        /// Where the chain starts.
        source: BoxError,
    },
    /// No answer within the deadline, waiting for a turn and retries included.
    #[error(
        "KMS at {endpoint} did not answer {action} within {} s: check the network and the state of KMS \
         in the region, then try again",
        deadline.as_secs_f64()
    )]
    TimedOut {
        /// The KMS action.
        action: &'static str,
        /// The endpoint, or the region whose default endpoint was used.
        endpoint: String,
        /// The deadline that passed.
        deadline: Duration,
    },
    /// KMS failed by itself.
    #[error("KMS failed inside on {action} ({code}: {message}): it is safe to try again")]
    Internal {
        /// The KMS action.
        action: &'static str,
        /// The error code.
        code: String,
        /// What KMS said.
        message: String,
    },
    /// The standard chain gives no credentials: there are none, or their source does not answer.
    #[error(
        "no AWS credentials are to be had ({reason}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or \
         AWS_PROFILE, or give the machine, task or pod a role"
    )]
    NoCredentials {
        /// The whole chain of what went wrong.
        reason: String,
    },
    /// AWS does not, or no longer, know who asks: an access key that was deactivated, a role that
    /// may not be assumed.
    #[error(
        "AWS rejected the credentials ({code}: {message}): see whose they are with \
         `aws sts get-caller-identity`, and check that the access key is active and the role may be assumed"
    )]
    CredentialsRejected {
        /// The error code.
        code: String,
        /// What KMS said.
        message: String,
    },
    /// The session that the credentials belong to has ended and was not renewed.
    #[error(
        "the AWS credentials have expired ({message}): renew them (`aws sso login`, or the role's source)"
    )]
    CredentialsExpired {
        /// What KMS said.
        message: String,
    },
    /// A setting that cannot be right.
    #[error("{setting} is refused: {source}")]
    Setting {
        /// Its name: a flag, or a variable of the environment.
        setting: &'static str,
        /// What is wrong with it.
        source: InvalidSetting,
    },
    /// The proxy of the environment cannot be used. Not shown: there may be a password in it.
    #[error(
        "the value of {setting} is refused: it must be [http://][user:password@]host:port, or https://…; it is not \
         shown here, as it may hold a password"
    )]
    Proxy {
        /// The variable.
        setting: &'static str,
    },
    /// `AWS_CA_BUNDLE` names no certificates.
    #[error("AWS_CA_BUNDLE is refused: {}: {reason}", path.display())]
    CaBundle {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Neither configuration nor the standard chain names a region.
    #[error(
        "no AWS region is set: give --encryption-aws-region, set AWS_REGION, or name the key by its ARN"
    )]
    NoRegion,
    /// The configured region is not the one in the key's ARN.
    #[error(
        "the key {key} is not in region {region}: leave --encryption-aws-region out, or set it to \
         the region in the ARN"
    )]
    RegionMismatch {
        /// The key's ARN.
        key: String,
        /// The configured region.
        region: String,
    },
    /// An answer that KMS does not give: something else stands at the endpoint.
    #[error(
        "the answer to {action} from {endpoint} is not one of KMS ({reason}): check \
         --encryption-aws-endpoint-url and the proxy"
    )]
    UnexpectedReply {
        /// The KMS action.
        action: &'static str,
        /// The endpoint, or the region whose default endpoint was used.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl KmsError {
    /// What the failure means for a key in use.
    #[must_use]
    pub fn class(&self) -> FailureClass {
        match self {
            Self::NotFound { .. }
            | Self::Denied { .. }
            | Self::Disabled { .. }
            | Self::PendingDeletion { .. }
            | Self::InvalidState { .. }
            | Self::CredentialsRejected { .. } => FailureClass::Denied,
            Self::Throttled { .. }
            | Self::KeyStore { .. }
            | Self::Clock { .. }
            | Self::Unsigned { .. }
            | Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::Internal { .. }
            | Self::NoCredentials { .. }
            | Self::CredentialsExpired { .. }
            | Self::UnexpectedReply { .. } => FailureClass::Unavailable,
            Self::WrongContext { .. }
            | Self::WrongKey { .. }
            | Self::WrongKeyType { .. }
            | Self::InvalidRequest { .. }
            | Self::Setting { .. }
            | Self::Proxy { .. }
            | Self::CaBundle { .. }
            | Self::NoRegion
            | Self::RegionMismatch { .. } => FailureClass::Invalid,
        }
    }

    /// Whether the same call may succeed a little later with nothing repaired.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Throttled { .. }
                | Self::KeyStore { .. }
                | Self::Clock { .. }
                | Self::Unreachable { .. }
                | Self::TimedOut { .. }
                | Self::Internal { .. }
        )
    }
}
