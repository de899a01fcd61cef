//! The one way from what a provider made to a [`Wrap`]: it is unwrapped again first.
//!
//! A provider hands out a [`Wrapped`], which nobody outside this crate can look into. [`generate`]
//! and [`wrap`] turn it into a `Wrap` once the same provider has given the same data key back for
//! it. So a manifest never holds a wrap that opens only in theory: made by a key that may encrypt
//! and not decrypt, by something that only looks like KMS, or under another key.

use nimbus_manifests::{Timestamp, Wrap, WrapContext};

use crate::error::{ProviderError, Unproven};
use crate::failure_class::FailureClass;
use crate::keys::Dek;
use crate::provider::{KeyProvider, Unwrapped, Wrapped};

/// A new data key of `by`, and its wrap, which `by` has opened.
///
/// # Errors
/// As [`KeyProvider::generate`], or [`ProviderError::Unproven`].
pub async fn generate(
    by: &dyn KeyProvider,
    context: &WrapContext<'_>,
    at: Timestamp,
) -> Result<(Dek, Wrap), ProviderError> {
    let (dek, wrapped) = by.generate(context).await?;
    let wrap = prove(wrapped, by, &dek, context, at).await?;
    Ok((dek, wrap))
}

/// A wrap of `dek` that `by` has made and opened.
///
/// # Errors
/// As [`KeyProvider::wrap`], or [`ProviderError::Unproven`].
pub async fn wrap(
    by: &dyn KeyProvider,
    dek: &Dek,
    context: &WrapContext<'_>,
    at: Timestamp,
) -> Result<Wrap, ProviderError> {
    let wrapped = by.wrap(dek, context).await?;
    prove(wrapped, by, dek, context, at).await
}

/// Whether `by` gives `dek` back for a wrap that there is.
///
/// # Errors
/// When nobody answers.
pub async fn opens(
    by: &dyn KeyProvider,
    wrap: &Wrap,
    dek: &Dek,
    context: &WrapContext<'_>,
) -> Result<bool, ProviderError> {
    match by.unwrap(wrap, context).await {
        Ok(Unwrapped::Key(again)) => Ok(again.is(dek)),
        Ok(Unwrapped::NotMine) => Ok(false),
        Err(error) if error.class() == FailureClass::Unavailable => Err(error),
        Err(_refused) => Ok(false),
    }
}

async fn prove(
    wrapped: Wrapped,
    by: &dyn KeyProvider,
    dek: &Dek,
    context: &WrapContext<'_>,
    at: Timestamp,
) -> Result<Wrap, ProviderError> {
    let wrap = wrapped.at(at);
    let why = match by.unwrap(&wrap, context).await {
        Ok(Unwrapped::Key(again)) if again.is(dek) => return Ok(wrap),
        Ok(Unwrapped::Key(_another)) => Unproven::AnotherKey,
        Ok(Unwrapped::NotMine) => Unproven::NotItsOwn,
        Err(source) => Unproven::Refused(Box::new(source)),
    };
    Err(ProviderError::Unproven {
        provider: wrap.provider,
        key_id: wrap.key_id,
        subject: context.subject.clone(),
        source: why,
    })
}
