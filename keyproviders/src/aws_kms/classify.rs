//! From an error of the SDK to a [`KmsError`].

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::{ErrorMetadata, ProvideErrorMetadata, SdkError};

use super::call::Call;
use super::error::KmsError;
use super::table;
use crate::failure_class::FailureClass;

impl Call<'_> {
    /// Turns what the SDK says into what happened.
    pub(super) fn failed<E>(&self, error: SdkError<E, HttpResponse>) -> KmsError
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        match &error {
            SdkError::ServiceError(service) => {
                let status = service.raw().status().as_u16();
                self.refused(error.code(), error.message(), status)
            }
            SdkError::TimeoutError(_) => self.timed_out(),
            // Not in debug form: that holds the raw answer, and so may hold the key.
            SdkError::ResponseError(_) => self.unexpected(error_chain(&error)),
            _ if caused_by_credentials(&error) => no_credentials(&error),
            SdkError::DispatchFailure(failure) if failure.is_timeout() => self.timed_out(),
            _ => KmsError::Unreachable {
                action: self.action,
                endpoint: self.endpoint.to_owned(),
                reason: error_chain(&error),
                source: error.into(),
            },
        }
    }

    pub(super) fn timed_out(&self) -> KmsError {
        KmsError::TimedOut {
            action: self.action,
            endpoint: self.endpoint.to_owned(),
            deadline: self.deadline,
        }
    }

    pub(super) fn unexpected(&self, reason: impl Into<String>) -> KmsError {
        KmsError::UnexpectedReply {
            action: self.action,
            endpoint: self.endpoint.to_owned(),
            reason: reason.into(),
        }
    }

    /// An error that the service answered with. Told apart by its code, which covers the errors
    /// that the SDK has no type for as well.
    fn refused(&self, code: Option<&str>, message: Option<&str>, status: u16) -> KmsError {
        let code = code.unwrap_or_default();
        let message = message.unwrap_or("no message");
        match table::find(code, message) {
            Some(row) => row.error(self, code, message),
            None if status >= 500 => KmsError::Internal {
                action: self.action,
                code: match code {
                    "" => format!("HTTP {status}"),
                    code => code.to_owned(),
                },
                message: message.to_owned(),
            },
            None => self.unexpected(format!("HTTP {status} {code}: {message}")),
        }
    }
}

/// Where credentials come from has none. What AWS has decided about who asks for them is a denial,
/// as it is from KMS.
pub(super) fn no_credentials(error: &(dyn Error + 'static)) -> KmsError {
    let said = causes(error).find_map(|cause| cause.downcast_ref::<ErrorMetadata>());
    if let Some(said) = said
        && let (Some(code), message) = (said.code(), said.message().unwrap_or("no message"))
        && table::find(code, message).is_some_and(|row| row.class() == FailureClass::Denied)
    {
        return KmsError::CredentialsRejected {
            code: code.to_owned(),
            message: message.to_owned(),
        };
    }
    KmsError::NoCredentials {
        reason: error_chain(error),
    }
}

fn caused_by_credentials(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|error| error.is::<CredentialsError>())
}

/// The messages of an error and its causes, without the repetitions that wrappers add.
fn error_chain(error: &(dyn Error + 'static)) -> String {
    let mut messages: Vec<String> = Vec::new();
    for error in causes(error) {
        let message = error.to_string();
        if !messages.iter().any(|seen| seen.contains(&message)) {
            messages.push(message);
        }
    }
    messages.join(": ")
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    // Deref first: called on the reference, `source` would borrow from the reference.
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| {
        (**error).source()
    })
}
