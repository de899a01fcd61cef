//! Gauges of the keys at rest, for a dashboard and its alarms: read from the manifests alone,
//! without any key or call.

use std::path::Path;

use nimbus_keyproviders::{locked_memory, same_key};
use nimbus_manifests::ProviderKind;

use super::protected_files;
use crate::clock;
use crate::envelope::{Envelope, manifest_path, read_manifest};
use crate::metrics;
use crate::process::free_bytes;
use crate::runtime::blocking;

/// Looks at every manifest in the two directories, and sets the gauges.
pub(crate) async fn tell(envelope: &Envelope, data_dir: &Path, control_dir: &Path) {
    let (data_dir, control_dir) = (data_dir.to_owned(), control_dir.to_owned());
    let looked = blocking(move || {
        let free = free_bytes(&data_dir).unwrap_or(0);
        let files = protected_files(&data_dir, Some(&control_dir)).unwrap_or_default();
        let manifests: Vec<_> = files
            .iter()
            .map(|path| read_manifest(&manifest_path(path)).ok().flatten())
            .collect();
        (free, manifests)
    });
    let (free, manifests) = looked.await;
    let keys = envelope.keys();
    let shared = match &keys {
        Some(keys) if keys.current().kind() != ProviderKind::KeyDir => {
            keys.current().key_id(&crate::control::subject()).await.ok()
        }
        _ => None,
    };
    let now = clock::now().as_second();
    let (mut unreadable, mut behind, mut oldest) = (0_u32, 0_u32, 0_i64);
    for manifest in &manifests {
        let Some(manifest) = manifest.as_ref().map(|sealed| sealed.claims()) else {
            unreadable += 1;
            continue;
        };
        let Some(dek) = manifest.deks().first() else {
            continue;
        };
        oldest = oldest.max(now - dek.created.unix());
        let Some(keys) = &keys else { continue };
        let by = keys.wraps_for(manifest.subject());
        // A tenant with a key of its own, or a directory with a key a file, is asked after by its
        // subject.
        let wanted = match &shared {
            Some(shared) if !by.is_mapped(manifest.subject()) => Some(shared.clone()),
            _ => by.key_id(manifest.subject()).await.ok(),
        };
        let there = dek.wraps.iter().any(|wrap| {
            let is_it = |wanted| same_key(&wrap.key_id, wanted);
            wrap.provider == by.kind() && wanted.as_ref().is_some_and(is_it)
        });
        behind += u32::from(!there);
    }
    metrics::PROTECTED.set(manifests.len() as f64);
    metrics::UNREADABLE.set(f64::from(unreadable));
    metrics::BEHIND.set(f64::from(behind));
    metrics::OLDEST_DEK.set(oldest as f64);
    metrics::UNLOCKED.set(locked_memory().unlocked_bytes as f64);
    metrics::DISK_FREE.set(free as f64);
}
