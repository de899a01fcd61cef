//! What each error code of AWS means for a key in use: the one table, which docs/keys.md shows and
//! the tests go through over the wire.
//!
//! *Denied* is what AWS has decided about the key or about who asks. What has to do with time,
//! load, the network or the state of AWS is *unavailable*: a lease rides on for its grace.

use std::fmt::Write as _;

use super::call::Call;
use super::error::KmsError;
use crate::failure_class::FailureClass;

/// Codes that mean the same.
#[derive(Debug)]
pub struct Row {
    /// The codes, as KMS, STS and the servers in front of both spell them.
    pub codes: &'static [&'static str],
    /// Words of which the message holds one, in small letters; none where the codes alone decide.
    pub words: &'static [&'static str],
    /// Why they mean what they mean.
    pub why: &'static str,
    kind: Kind,
}

/// Which error is made of it.
#[derive(Clone, Copy, Debug)]
enum Kind {
    NotFound,
    Denied,
    Disabled,
    PendingDeletion,
    InvalidState,
    KeyStore,
    CredentialsRejected,
    CredentialsExpired,
    Clock,
    Unsigned,
    Throttled,
    Internal,
    WrongContext,
    WrongKey,
    WrongKeyType,
    InvalidRequest,
}

impl Row {
    /// What it means for a key in use.
    #[must_use]
    pub fn class(&self) -> FailureClass {
        self.error(&Call::NONE, "", "").class()
    }

    pub(super) fn error(&self, call: &Call<'_>, code: &str, message: &str) -> KmsError {
        let action = call.action;
        let key = call.key.to_owned();
        let subject = call.subject.to_owned();
        let (code, message) = (code.to_owned(), message.to_owned());
        match self.kind {
            Kind::NotFound => KmsError::NotFound { key, message },
            Kind::Denied => KmsError::Denied {
                action,
                key,
                message,
            },
            Kind::Disabled => KmsError::Disabled { key },
            Kind::PendingDeletion => KmsError::PendingDeletion { key },
            Kind::InvalidState => KmsError::InvalidState { key, message },
            Kind::KeyStore => KmsError::KeyStore { key, message },
            Kind::CredentialsRejected => KmsError::CredentialsRejected { code, message },
            Kind::CredentialsExpired => KmsError::CredentialsExpired { message },
            Kind::Clock => KmsError::Clock { code, message },
            Kind::Unsigned => KmsError::Unsigned { code, message },
            Kind::Throttled => KmsError::Throttled {
                action,
                key,
                message,
            },
            Kind::Internal => KmsError::Internal {
                action,
                code,
                message,
            },
            Kind::WrongContext => KmsError::WrongContext { key, subject },
            Kind::WrongKey => KmsError::WrongKey { key, subject },
            Kind::WrongKeyType => KmsError::WrongKeyType { key, message },
            Kind::InvalidRequest => KmsError::InvalidRequest { key, message },
        }
    }
}

/// The row of an error, if its code is known.
pub(super) fn find(code: &str, message: &str) -> Option<&'static Row> {
    let message = message.to_ascii_lowercase();
    TABLE.iter().find(|row| {
        let said = |word: &&str| message.contains(*word);
        row.codes.contains(&code) && (row.words.is_empty() || row.words.iter().any(said))
    })
}

/// The table as docs/keys.md shows it.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from("| KMS or STS says | class | why |\n| --- | --- | --- |\n");
    for row in TABLE {
        let quoted = |words: &[&str]| {
            let all: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
            all.join(", ")
        };
        let mut says = quoted(row.codes);
        if !row.words.is_empty() {
            says += &format!(" with {}", quoted(row.words).replace("`, `", "` or `"));
        }
        let class = match row.class() {
            FailureClass::Denied => "denied",
            FailureClass::Unavailable => "unavailable",
            FailureClass::Invalid => "invalid",
        };
        writeln!(text, "| {says} | {class} | {} |", row.why).expect("a String takes all");
    }
    text
}

/// Every code that is distinguished. The first row that fits counts; a code that is in none is
/// *unavailable*.
pub const TABLE: &[Row] = &[
    Row {
        codes: &["NotFoundException"],
        words: &[],
        kind: Kind::NotFound,
        why: "the key, or the alias, is gone or was never there",
    },
    Row {
        codes: &["AccessDeniedException", "AccessDenied", "NotAuthorized"],
        words: &[],
        kind: Kind::Denied,
        why: "a policy, a grant that is missing, or a session that was revoked",
    },
    Row {
        codes: &["InvalidGrantTokenException", "InvalidGrantIdException"],
        words: &[],
        kind: Kind::Denied,
        why: "the grant was retired or revoked",
    },
    Row {
        codes: &["DisabledException"],
        words: &[],
        kind: Kind::Disabled,
        why: "the holder of the key disabled it",
    },
    Row {
        codes: &["KMSInvalidStateException"],
        words: &[
            "pending deletion",
            "pendingdeletion",
            "pending replica deletion",
        ],
        kind: Kind::PendingDeletion,
        why: "the holder of the key has it deleted",
    },
    Row {
        codes: &["KMSInvalidStateException"],
        words: &["disabled"],
        kind: Kind::Disabled,
        why: "the holder of the key disabled it, here or in an external key manager",
    },
    Row {
        codes: &["KMSInvalidStateException"],
        words: &[
            "did not respond",
            "time allotted",
            "timed out",
            "cannot communicate",
            "cannot interpret",
            "request rate",
            "is creating",
            "is updating",
        ],
        kind: Kind::KeyStore,
        why: "a custom key store is out of reach or busy, or the key is being changed: nobody has decided anything",
    },
    Row {
        codes: &["KMSInvalidStateException"],
        words: &[],
        kind: Kind::InvalidState,
        why: "its material was deleted (pending import), its key store was disconnected (unavailable), or an external key manager refuses: decisions of its holder",
    },
    Row {
        codes: &[
            "UnrecognizedClientException",
            "InvalidClientTokenId",
            "OptInRequired",
        ],
        words: &[],
        kind: Kind::CredentialsRejected,
        why: "AWS does not know the access key, or no longer: it was deactivated or deleted, which is how an account takes a fixed access key back. Restart with the new one before the old one is deleted",
    },
    Row {
        codes: &["ExpiredTokenException", "ExpiredToken"],
        words: &[],
        kind: Kind::CredentialsExpired,
        why: "temporary credentials ended by the clock, and their source has not renewed them; who takes a role back makes it `AccessDenied`",
    },
    Row {
        codes: &[
            "RequestExpired",
            "RequestTimeTooSkewed",
            "RequestInTheFuture",
        ],
        words: &[],
        kind: Kind::Clock,
        why: "the clocks here and at AWS are apart",
    },
    Row {
        codes: &["InvalidSignatureException", "SignatureDoesNotMatch"],
        words: &["expired", "not yet current"],
        kind: Kind::Clock,
        why: "the clocks here and at AWS are apart, also for a moment after one was set right",
    },
    Row {
        codes: &[
            "InvalidSignatureException",
            "SignatureDoesNotMatch",
            "IncompleteSignature",
            "IncompleteSignatureException",
            "MissingAuthenticationToken",
            "MissingAuthenticationTokenException",
        ],
        words: &[],
        kind: Kind::Unsigned,
        why: "the request did not arrive as it was signed, or the secret access key is mistyped: AWS could not tell who asks, and has refused nobody",
    },
    Row {
        codes: &[
            "ThrottlingException",
            "Throttling",
            "RequestThrottled",
            "RequestThrottledException",
            "RequestLimitExceeded",
            "LimitExceededException",
            "TooManyRequestsException",
            "BandwidthLimitExceeded",
            "PriorRequestNotComplete",
            "SlowDown",
        ],
        words: &[],
        kind: Kind::Throttled,
        why: "too many requests",
    },
    Row {
        codes: &[
            "KMSInternalException",
            "KeyUnavailableException",
            "DependencyTimeoutException",
            "InternalFailure",
            "InternalError",
            "InternalServerError",
            "ServiceUnavailable",
            "ServiceUnavailableException",
            "RequestTimeout",
            "RequestTimeoutException",
            "RequestAbortedException",
        ],
        words: &[],
        kind: Kind::Internal,
        why: "AWS failed by itself",
    },
    Row {
        codes: &["InvalidCiphertextException"],
        words: &[],
        kind: Kind::WrongContext,
        why: "the manifest was changed or is another file's",
    },
    Row {
        codes: &["IncorrectKeyException"],
        words: &[],
        kind: Kind::WrongKey,
        why: "the manifest was changed or is another file's",
    },
    Row {
        codes: &["InvalidKeyUsageException"],
        words: &[],
        kind: Kind::WrongKeyType,
        why: "the settings name a key that is not for symmetric encryption",
    },
    Row {
        codes: &[
            "ValidationException",
            "ValidationError",
            "InvalidArnException",
            "InvalidAliasNameException",
            "SerializationException",
        ],
        words: &[],
        kind: Kind::InvalidRequest,
        why: "the settings name what is no key",
    },
];
