//! Who a request comes from: its one credential, and what it is known for.

use axum::http::{HeaderMap, header};

use crate::control::{AccessKey, KeyError, KeyVerdict};
use crate::error_chain::error_chain;
use crate::server::App;
use crate::server::caller::{Caller, Identified};
use crate::server::error::{ApiError, Code};
use crate::server::token::Verdict;

/// Looks at the credential, which takes no place among requests under way and reads no body.
pub(in crate::server) async fn identify(app: &App, headers: &HeaderMap) -> Identified {
    Identified(match credential(headers) {
        Ok(Credential::Bearer(text)) => match AccessKey::parse(text) {
            Some(key) => identify_key(app, &key).await,
            None => identify_admin(app, text),
        },
        Ok(Credential::AdminToken(text)) => identify_admin(app, text),
        Err(error) => Err(error),
    })
}

async fn identify_key(app: &App, key: &AccessKey) -> Result<Caller, ApiError> {
    let unsure = |error: KeyError| ApiError::new(Code::Unavailable, error_chain(&error));
    if !app.keys.is_fresh() {
        let _shared = app.keys.refresh().await.map_err(unsure)?;
    }
    let mut verdict = app.keys.judge(key);
    // Another server may have made it just now.
    if verdict == KeyVerdict::Unknown && app.keys.refresh().await.map_err(unsure)? {
        verdict = app.keys.judge(key);
    }
    match verdict {
        KeyVerdict::Live { tenant, scope } => Ok(Caller::Key {
            id: key.id(),
            tenant,
            scope,
        }),
        KeyVerdict::Revoked => Err(ApiError::new(
            Code::TokenRevoked,
            "this access key has been revoked",
        )),
        KeyVerdict::Unknown => Err(unknown()),
    }
}

fn identify_admin(app: &App, token: &[u8]) -> Result<Caller, ApiError> {
    match app.tokens.judge(token) {
        Ok(Verdict::Admin(credential)) => Ok(Caller::Admin { credential }),
        Ok(Verdict::Revoked) => Err(ApiError::new(
            Code::TokenRevoked,
            "this token has been replaced by a rotation",
        )),
        Ok(Verdict::Unknown) => Err(unknown()),
        Err(error) => {
            tracing::error!(%error, "the admin token cannot be checked");
            Err(ApiError::new(
                Code::Unavailable,
                "the admin token cannot be read; the server's log says why",
            ))
        }
    }
}

fn unknown() -> ApiError {
    ApiError::new(Code::Unauthorized, "this credential is not known")
}

/// A credential as the request carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Credential<'a> {
    /// The admin token or an access key.
    Bearer(&'a [u8]),
    /// The admin token.
    AdminToken(&'a [u8]),
}

/// The one credential of a request. Two are refused: what stands before this server may have looked
/// at the other one.
pub(super) fn credential(headers: &HeaderMap) -> Result<Credential<'_>, ApiError> {
    let authorizations = headers.get_all(header::AUTHORIZATION);
    let bearers = authorizations
        .iter()
        .filter_map(|value| bearer(value.as_bytes()));
    let mut malformed = false;
    let bearers = bearers.map(|token| {
        malformed |= token.is_none();
        Credential::Bearer(token.unwrap_or_default())
    });
    let tokens = headers.get_all(ADMIN_TOKEN);
    let tokens = tokens
        .iter()
        .map(|token| Credential::AdminToken(token.as_bytes()));
    let mut all = bearers.chain(tokens);
    let Some(credential) = all.next() else {
        return Err(ApiError::new(
            Code::Unauthorized,
            "this route needs a credential",
        ));
    };
    if all.next().is_some() || authorizations.iter().nth(1).is_some() {
        return Err(ApiError::new(
            Code::Unauthorized,
            "the request carries more than one credential; send one",
        ));
    }
    if malformed {
        return Err(ApiError::new(
            Code::Unauthorized,
            "Authorization must be `Bearer`, spaces, and the token; there is something else between or behind them",
        ));
    }
    Ok(credential)
}

/// The token of `Authorization: Bearer`, as RFC 9110, section 11.4 has it: the scheme in any case,
/// one space or more, the token. `None` within for what is not that; `None` for another scheme.
fn bearer(value: &[u8]) -> Option<Option<&[u8]>> {
    let (scheme, rest) = value.split_at_checked(BEARER.len())?;
    if !scheme.eq_ignore_ascii_case(BEARER) {
        return None;
    }
    let token = rest.iter().position(|byte| *byte != b' ');
    match (token, rest) {
        // `Bearer` alone, and schemes that begin alike.
        (None, _) | (Some(0), [b'!'..=b'~', ..]) => None,
        (Some(0), _) => Some(None),
        (Some(spaces), _) => {
            let token = &rest[spaces..];
            let is_one_word = token.iter().all(u8::is_ascii_graphic);
            Some(is_one_word.then_some(token))
        }
    }
}

const BEARER: &[u8] = b"Bearer";
pub(super) const ADMIN_TOKEN: &str = "x-nimbus-admin-token";
