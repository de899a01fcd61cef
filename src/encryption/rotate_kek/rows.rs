//! The data keys of sealed tenants, whose manifests are rows of a database. Each row is a rotation
//! of its own, as each file is: what a crash, or another server, leaves is done by running it
//! again.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use nimbus_keyproviders::{OsRandom, ProviderConfig, key_dir, keyfile};
use nimbus_manifests::{KeyId, Subject, TenantId};

use super::{CHANGED, Failure, Keys, LEFT_THE_MAP, RotateKek, RotateKekError, Rotated, TRIES};
use crate::envelope::{Envelope, Event, EventKind, EventOutcome, ManifestRows, Mapped, RowRewrap};
use crate::error_chain::error_chain;
use crate::runtime::blocking;

/// What is collected over all files and rows.
pub(super) struct Sums<'a> {
    pub(super) rotated: &'a mut Rotated,
    pub(super) kept: &'a mut BTreeSet<PathBuf>,
    pub(super) dropped: &'a mut BTreeSet<KeyId>,
}

impl RotateKek {
    /// Wraps every row anew.
    pub(super) async fn rewrap_rows(
        &self,
        envelope: &Envelope,
        rows: &Arc<dyn ManifestRows>,
        keys: &Keys,
        sums: Sums<'_>,
    ) -> Result<(), RotateKekError> {
        let mut left: Option<BTreeSet<TenantId>> = None;
        for _again in 0..TRIES {
            let listing = Arc::clone(rows);
            let listed = blocking(move || listing.list()).await;
            let listed = listed.map_err(|source| RotateKekError::Rows { source })?;
            let sealed = listed
                .into_iter()
                .filter_map(|(tenant, manifest)| Some((tenant, manifest?)))
                .filter(|(tenant, _)| left.as_ref().is_none_or(|left| left.contains(tenant)));
            let sealed: Vec<_> = sealed.collect();
            self.make_row_keys(&sealed).await?;
            let wrapping = sealed.into_iter().map(|(tenant, text)| async move {
                let (place, subject) = (rows.place(&tenant), Subject::external_tenant(&tenant));
                let (after, recipients) = (&keys.after, &self.recipients);
                let found = envelope
                    .rewrap_row(&place, &subject, &text, after, recipients)
                    .await;
                (tenant, text, found)
            });
            let mut wrapping = stream::iter(wrapping).buffer_unordered(AT_ONCE);
            let mut changed = BTreeSet::new();
            while let Some((tenant, text, found)) = wrapping.next().await {
                let place = rows.place(&tenant);
                let RowRewrap {
                    mapped,
                    dropped,
                    change,
                } = match found {
                    Ok(found) => found,
                    Err(error) => {
                        sums.rotated.failed.push(Failure {
                            path: place.display().to_string(),
                            error: error_chain(&error),
                        });
                        continue;
                    }
                };
                sums.dropped.extend(dropped);
                if mapped && self.target.is_some() {
                    let _new = sums.kept.insert(place);
                }
                let Some(after) = change else {
                    sums.rotated.unchanged += 1;
                    continue;
                };
                let event = Event::new(EventKind::Rewrap, EventOutcome::Begun).of(after.claims());
                let leaves =
                    self.mapped == Mapped::Move && keys.before.is_mapped(after.claims().subject());
                let event = match leaves {
                    true => event.saying(LEFT_THE_MAP),
                    false => event,
                };
                envelope.record(event.clone()).await?;
                let replaced = blocking({
                    let (rows, tenant, after) = (Arc::clone(rows), tenant.clone(), after.clone());
                    move || rows.replace(&tenant, &text, after.as_bytes())
                })
                .await
                .map_err(|source| RotateKekError::Rows { source });
                let ended = match &replaced {
                    Ok(false) => Event {
                        outcome: EventOutcome::Failed,
                        ..event.saying("its manifest was changed meanwhile")
                    },
                    replaced => event.ended(replaced),
                };
                envelope.record(ended).await?;
                if replaced? {
                    envelope.row_rewrapped(&after);
                    sums.rotated.rewrapped += 1;
                } else {
                    let _new = changed.insert(tenant);
                }
            }
            if changed.is_empty() {
                return Ok(());
            }
            left = Some(changed);
        }
        let failed = left.into_iter().flatten().map(|tenant| Failure {
            path: rows.place(&tenant).display().to_string(),
            error: CHANGED.to_owned(),
        });
        sums.rotated.failed.extend(failed);
        Ok(())
    }

    /// Makes the keys of a new key directory that are not there yet.
    async fn make_row_keys(&self, sealed: &[(TenantId, Vec<u8>)]) -> Result<(), RotateKekError> {
        let Some(ProviderConfig::KeyDir { dir }) = &self.target else {
            return Ok(());
        };
        let subjects = sealed
            .iter()
            .map(|(tenant, _)| Subject::external_tenant(tenant));
        let keys: Vec<_> = subjects
            .map(|subject| key_dir::path_for(dir, &subject))
            .collect();
        blocking(move || {
            for key in keys {
                if std::fs::symlink_metadata(&key).is_err() {
                    let _key = keyfile::generate_new(&key, &OsRandom)?;
                }
            }
            Ok(())
        })
        .await
    }
}

/// Data keys under way at a time.
const AT_ONCE: usize = 16;
