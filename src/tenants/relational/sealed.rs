//! A tenant whose documents are sealed before they reach the engine (`docs/sealed-format.md`).
//!
//! A tenant is sealed if its row in `tenants` has a manifest. Values are sealed where rows are
//! written and opened where they are read; what is in memory is plain, as with every backend.

use std::{fmt, path::PathBuf, sync::Arc};

use nimbus_keyproviders::{BlindKey, OsRandom, ProviderError, SealKey, SecureRandom as _};
use nimbus_manifests::{Manifest, Subject, TenantId, on_wiped_stack};
use nimbus_sealing::value::{self, Context, FieldKey, MAC, NotOpened, SALT};

use super::{
    columns::Column,
    engine::{Malformed, Value},
};
use crate::envelope::{Envelope, EnvelopeError, HeldLease, KeyedFile, LeaseStanding};
use crate::tenants::StoreError;
use crate::tenants::backend::Standing;

/// What seals the values of a tenant. Its keys are wiped when it is dropped.
pub(super) struct Seal {
    subject: String,
    file_id: String,
    dek_id: [u8; 8],
    key: SealKey,
    blind: BlindKey,
    manifest: Manifest,
    place: PathBuf,
    envelope: Envelope,
    /// Where the key came from a remote provider.
    lease: Option<HeldLease>,
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Seal").field(&self.subject).finish()
    }
}

impl Seal {
    /// By the key of a tenant's row.
    pub(super) fn of(envelope: &Envelope, file: &KeyedFile) -> Self {
        let manifest = file.manifest().clone();
        Self {
            subject: manifest.subject().to_string(),
            file_id: manifest.file_id().to_string(),
            dek_id: *manifest.deks()[0].id.as_bytes(),
            key: file.seal_key(),
            blind: file.blind_key(),
            manifest,
            place: file.path().to_owned(),
            envelope: envelope.clone(),
            lease: file.lease(),
        }
    }

    fn context(&self, column: Column, row: &[Value]) -> Context {
        let start = Context::new(&self.subject, &self.file_id, column.0);
        row.iter().fold(start, |context, value| match value {
            Value::Integer(Some(integer)) => context.integer(*integer),
            Value::Bytes(Some(bytes)) => context.bytes(bytes),
            Value::Integer(None) | Value::Bytes(None) => context.absent(),
        })
    }

    /// A value as the engine is to have it.
    pub(super) fn seal(
        &self,
        column: Column,
        row: &[Value],
        content: &[u8],
    ) -> Result<Vec<u8>, StoreError> {
        let mut salt = [0; SALT];
        OsRandom.fill(&mut salt)?;
        let context = self.context(column, row);
        let seal = || value::seal(self.key.expose(), self.dek_id, &salt, &context, content);
        Ok(on_wiped_stack(seal))
    }

    /// The same, alike for equal contents, so that it is found.
    pub(super) fn findable(&self, column: Column, content: &[u8]) -> Vec<u8> {
        let context = self.context(column, &[]);
        on_wiped_stack(|| {
            let salt = value::salt_of(self.blind.expose(), &context, content);
            value::seal(self.key.expose(), self.dek_id, &salt, &context, content)
        })
    }

    pub(super) fn open(
        &self,
        column: Column,
        row: &[Value],
        blob: Vec<u8>,
    ) -> Result<Vec<u8>, Malformed> {
        let context = self.context(column, row);
        let open = || value::open(self.key.expose(), self.dek_id, &context, blob);
        on_wiped_stack(open).map_err(|why| match why {
            NotOpened::Malformed => Malformed::unsealed(column.0),
            NotOpened::OtherKey => Malformed::other_key(column.0),
            NotOpened::Forged => Malformed::forged(column.0),
        })
    }

    /// The MAC of a row that is in the clear.
    pub(super) fn mac(&self, column: Column, row: &[Value]) -> [u8; MAC] {
        let context = self.context(column, row);
        on_wiped_stack(|| value::mac_of(self.blind.expose(), &context))
    }

    pub(super) fn is_mac(&self, column: Column, row: &[Value], mac: &[u8]) -> bool {
        let context = self.context(column, row);
        on_wiped_stack(|| value::is_mac_of(self.blind.expose(), &context, mac))
    }

    /// The key of the blind entries of a field.
    pub(super) fn field_key(&self, table: &str, path: &[String]) -> FieldKey {
        on_wiped_stack(|| FieldKey::new(self.blind.expose(), table, path))
    }

    /// Whether it may be used now.
    pub(super) fn standing(&self, tenant: &TenantId) -> Standing {
        match self.lease.as_ref().map(HeldLease::standing) {
            None | Some(LeaseStanding::Good) => Standing::Good,
            Some(LeaseStanding::RanOut) => Standing::Refused(not_opened(
                tenant,
                EnvelopeError::Unwrap {
                    path: self.place.clone(),
                    source: Arc::new(ProviderError::LeaseRanOut),
                },
            )),
            Some(LeaseStanding::Abandoned) => Standing::Unknown,
        }
    }

    /// Why its key is not available, where that is known without asking.
    pub(super) fn withheld(&self, tenant: &TenantId) -> Option<StoreError> {
        match self.envelope.withheld(&self.place, &self.manifest)? {
            // Of a lock the database tells, to who asks next: another server may have ended it.
            EnvelopeError::Locked { .. } => None,
            why => Some(not_opened(tenant, why)),
        }
    }
}

/// A tenant whose key cannot be had.
pub(super) fn not_opened(tenant: &TenantId, error: EnvelopeError) -> StoreError {
    StoreError::Open {
        tenant: tenant.clone(),
        trouble: error.trouble(),
        exhausted: false,
        source: Arc::new(error),
    }
}

/// Who the manifest of a sealed tenant belongs to.
pub(super) fn subject(tenant: &TenantId) -> Subject {
    Subject::external_tenant(tenant)
}
