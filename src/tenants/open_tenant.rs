//! One open tenant: its writer and its readers.

use std::sync::Arc;

use async_trait::async_trait;
use nimbus_manifests::TenantId;
use tokio::time::sleep;

use super::backend::{Opened, OpenedConnection, Storage};
use super::group_commit::{IDLE, Writer};
use super::readers::{GiveWay, ReaderLimits, Readers};
use super::registry::Resource;
use super::{Cursors, DueLog, StoreError};
use crate::metrics::{self, Counted};
use crate::runtime::short_task;

/// An open tenant: its writer and its readers.
#[derive(Debug)]
pub struct OpenTenant<S: Storage> {
    pub(super) writer: Arc<Writer<S>>,
    pub(super) readers: Arc<Readers<S>>,
    pub(super) cursors: Cursors,
    _open: Counted,
}

impl<S: Storage> OpenTenant<S> {
    /// Takes over what a backend has opened: starts its writer, and reads within
    /// `readers`.
    pub(super) fn start(
        tenant: &TenantId,
        opened: Opened<S>,
        readers: &ReaderLimits,
        due: Arc<dyn DueLog>,
        way: Arc<dyn GiveWay>,
    ) -> Result<Self, StoreError> {
        let Opened {
            storage,
            connection,
            halted,
            cursor_key,
            ..
        } = opened;
        let readers = Readers::new(tenant, storage, readers, halted, Some(way));
        let writes = match connection {
            OpenedConnection::None => None,
            OpenedConnection::Reader(rows) => {
                readers.adopt(rows);
                None
            }
            OpenedConnection::Writer(connection) => Some(connection),
        };
        let writer = Arc::new(Writer::start(tenant, writes, Arc::clone(&readers), due)?);
        // Its thread gives back the memory of a tenant at rest, also of one that is only read.
        let resting = Arc::downgrade(&writer);
        drop(short_task(async move {
            sleep(IDLE).await;
            if let Some(writer) = resting.upgrade()
                && let Err(error) = writer.begin()
            {
                tracing::debug!(%error, "the memory of a tenant at rest is given back later");
            }
        }));
        Ok(Self {
            writer,
            readers,
            cursors: Cursors::new(tenant, &cursor_key),
            _open: Counted::new(&metrics::OPEN_TENANTS),
        })
    }

    /// Its writer.
    pub(super) fn writer(&self) -> &Arc<Writer<S>> {
        &self.writer
    }

    /// Its readers.
    pub(super) fn readers(&self) -> &Arc<Readers<S>> {
        &self.readers
    }
}

#[async_trait]
impl<S: Storage> Resource for OpenTenant<S> {
    async fn close(&self) -> Result<(), StoreError> {
        // Readers first: the last connection to go takes the WAL with it.
        self.readers.close().await;
        let writer = Arc::clone(&self.writer);
        // A panic in the writer's thread is reported by its join; this closure has nothing that
        // panics.
        tokio::task::spawn_blocking(move || writer.close())
            .await
            .unwrap_or(Ok(()))
    }

    fn halt(&self) {
        self.readers.halt();
    }

    fn is_broken(&self) -> bool {
        self.writer.has_ended() || self.readers.is_lost()
    }
}
