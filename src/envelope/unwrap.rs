//! From wraps to data keys, and from new data keys to wraps: by the providers of the ring, and
//! under a lease where the provider is remote.

use std::path::Path;
use std::sync::Arc;

use nimbus_keyproviders::{Dek, KeyProvider, ProviderError, Unwrapped, proof};
use nimbus_manifests::{DekEntry, Timestamp, Wrap, WrapContext};

use super::lease::{Admitted, LeaseGuard};
use super::{Envelope, EnvelopeError, KeyRing};

impl Envelope {
    /// A fresh data key, wrapped by the current provider and to every recipient.
    pub(super) async fn generate(
        &self,
        keys: &KeyRing,
        context: &WrapContext<'_>,
        now: Timestamp,
    ) -> Result<(Dek, Vec<Wrap>, Option<LeaseGuard>), Arc<ProviderError>> {
        let provider = keys.wraps_for(context.subject);
        let admitted = match provider.is_remote() {
            true => Some(self.admit(&provider.key_id(context.subject).await?, context.subject)?),
            false => None,
        };
        let generated = proof::generate(provider, context, now)
            .await
            .map_err(Arc::new);
        if let (Err(why), Some(admitted)) = (&generated, &admitted)
            // Who may not make a data key may be allowed to open those that are there.
            && why.concerns_key()
        {
            self.refused(admitted, why);
        }
        let (dek, wrap) = generated?;
        let mut wraps = vec![wrap];
        let lease = match &admitted {
            Some(admitted) => {
                admitted.confirm();
                Some(self.leased(context, &wraps[0], admitted)?)
            }
            None => None,
        };
        for recipient in keys.recipients() {
            wraps.push(recipient.wrap(&dek, context, now)?);
        }
        Ok((dek, wraps, lease))
    }

    /// The data key of `entry`, by the first configured key that a wrap of it names.
    ///
    /// A wrap that names a configured key and fails does not end the search: another wrap may still
    /// open. Its failure is what is reported when none does.
    pub(super) async fn unwrap(
        &self,
        keys: &KeyRing,
        path: &Path,
        entry: &DekEntry,
        context: &WrapContext<'_>,
    ) -> Result<(Dek, Option<LeaseGuard>), Failure> {
        let mut failure: Option<Refused> = None;
        for provider in keys.providers() {
            for wrap in &entry.wraps {
                if wrap.provider != provider.kind() {
                    continue;
                }
                match self.unwrap_by(provider, wrap, context).await {
                    Ok(Some(opened)) => return Ok(opened),
                    Ok(None) => {}
                    Err(error) => failure = failure.or(Some(error)),
                }
            }
        }
        let fresh = failure.as_ref().is_none_or(|failure| failure.asked);
        let error = match failure {
            Some(Refused { why, .. }) => EnvelopeError::Unwrap {
                path: path.to_owned(),
                source: why,
            },
            None => EnvelopeError::NoMatchingKey {
                path: path.to_owned(),
                wrapped_by: entry
                    .wraps
                    .iter()
                    .map(|wrap| format!("{} {}", wrap.provider, wrap.key_id))
                    .collect(),
                configured: keys.describe(context.subject).await,
            },
        };
        Err(Failure { error, fresh })
    }

    /// The data key in `wrap`, if it is this provider's.
    async fn unwrap_by(
        &self,
        provider: &dyn KeyProvider,
        wrap: &Wrap,
        context: &WrapContext<'_>,
    ) -> Result<Option<(Dek, Option<LeaseGuard>)>, Refused> {
        let refused = |asked| move |why| Refused { why, asked };
        let admitted: Option<Admitted<'_>> = match provider.is_remote() {
            true => {
                let admitted = self.admit(&wrap.key_id, context.subject);
                Some(admitted.map_err(refused(false))?)
            }
            false => None,
        };
        match (provider.unwrap(wrap, context).await, &admitted) {
            (Ok(Unwrapped::NotMine), _) => Ok(None),
            (Ok(Unwrapped::Key(dek)), None) => Ok(Some((dek, None))),
            (Ok(Unwrapped::Key(dek)), Some(admitted)) => {
                admitted.confirm();
                let lease = self.leased(context, wrap, admitted);
                Ok(Some((dek, Some(lease.map_err(refused(true))?))))
            }
            (Err(why), admitted) => {
                let why = Arc::new(why);
                if let Some(admitted) = admitted {
                    self.refused(admitted, &why);
                }
                Err(Refused { why, asked: true })
            }
        }
    }
}

/// Why a data key was not available, and whether anybody was asked just now, or told what somebody
/// else heard.
struct Refused {
    why: Arc<ProviderError>,
    asked: bool,
}

/// The same, of a file.
pub(super) struct Failure {
    pub(super) error: EnvelopeError,
    pub(super) fresh: bool,
}
