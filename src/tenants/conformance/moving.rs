//! A tenant that is copied to another place of its kind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use nimbus_manifests::TenantId;
use tokio::runtime::Handle;

use super::jobs::after;
use super::{Fixture, acme, add, fields, id, insert, table};
use crate::control::{
    AccessKey, AccessKeyId, AccessKeys, KeyError, KeyInfo, KeyName, KeyRecord, KeyVerdict, Scope,
};
use crate::documents::schema::TableSchema;
use crate::documents::{Document, JournalRecord, Mutation};
use crate::runtime::Progress;
use crate::tenants::backend::Backend;
use crate::tenants::copy::{Copied, CopyTenantError, Source, copy};
use crate::tenants::full_list::FullList as _;
use crate::tenants::{StoreError, TenantProvider as _, TenantStore, Tenants};

/// A tenant without access keys.
#[derive(Debug)]
struct NoKeys;

#[async_trait]
impl AccessKeys for NoKeys {
    fn judge(&self, _presented: &AccessKey) -> KeyVerdict {
        KeyVerdict::Unknown
    }

    fn is_live(&self, _tenant: &TenantId, _id: AccessKeyId) -> bool {
        false
    }

    fn deletions(&self) -> u64 {
        0
    }

    fn create(
        &self,
        _tenant: &TenantId,
        _name: KeyName,
        _scope: Scope,
        _deletions: u64,
    ) -> Result<(AccessKey, KeyInfo), KeyError> {
        Err(KeyError::Deleted)
    }

    fn list(&self, _tenant: &TenantId) -> Vec<KeyInfo> {
        Vec::new()
    }

    fn records(&self, _tenant: &TenantId) -> Result<Vec<(AccessKeyId, KeyRecord)>, KeyError> {
        Ok(Vec::new())
    }

    fn revoke(&self, _tenant: &TenantId, _id: AccessKeyId) -> Result<bool, KeyError> {
        Ok(false)
    }
}

async fn copied<B: Backend>(
    source: &Tenants<B>,
    target: &Tenants<B>,
    progress: Progress,
) -> Result<Copied, CopyTenantError> {
    let source = Source {
        tenants: source,
        keys: Arc::new(NoKeys),
        shared: false,
    };
    copy(source, target, &id("acme"), progress).await
}

async fn all(store: &Arc<dyn TenantStore>) -> (Vec<Document>, Vec<JournalRecord>) {
    let mut records: Vec<JournalRecord> = Vec::new();
    loop {
        let after = records.last().map(|record| record.sequence as u64);
        let page = store.journal(after, 500).await.unwrap();
        records.extend(page.records);
        if !page.has_more {
            break;
        }
    }
    (store.list(&table("t"), 5000).await.unwrap(), records)
}

pub(in crate::tenants) async fn a_copy_has_all_that_there_is_however_much<F: Fixture>() {
    let (here, there) = (F::empty(), F::empty());
    let (source, store) = acme(&here).await;
    // More than is read, and written, at a time: of documents, and of bytes.
    for part in 0..7 {
        let many = (0..400).map(|n| insert(&format!(r#"{{"n":{n},"part":{part}}}"#)));
        let _ids = store.apply_all(many.collect()).await.unwrap();
    }
    let large = "x".repeat(400 << 10);
    for n in 0..8 {
        let _id = add(&store, &format!(r#"{{"n":{n},"large":"{large}"}}"#)).await;
    }
    let first = store.list(&table("t"), 3).await.unwrap();
    let patch = Mutation::Update {
        table: table("t"),
        id: first[0].id,
        patch: fields(r#"{"new":1.10}"#),
        if_version: None,
    };
    let delete = Mutation::Delete {
        table: table("t"),
        id: first[1].id,
        if_version: None,
    };
    let _outcomes = store.apply_all(vec![patch, delete]).await.unwrap();
    let schema = r#"{"table":"t","indexes":[{"name":"one","fields":["part","n"],"unique":true}]}"#;
    let schema = TableSchema::from_json(schema).unwrap();
    store.put_schema(schema.clone()).await.unwrap();
    for n in 0..3 {
        let job = after(1000 + n, insert(r#"{"by":"job"}"#));
        let _job = store.schedule(job, 1).await.unwrap();
    }

    let target = there.open().await;
    let copied = copied(&source, &target, Arc::new(|_done, _total| true)).await;
    if F::BLIND {
        // What is sealed is bound to its tenant, and is not sealed anew yet.
        assert!(copied.is_err(), "{copied:?}");
        assert_eq!(target.list_tenants().await.unwrap(), []);
        drop(store);
        source.close().await.unwrap();
        return target.close().await.unwrap();
    }
    let copied = copied.unwrap();
    assert_eq!((copied.documents, copied.jobs), (2807, 3), "{copied:?}");
    let copy = target.open(&id("acme")).await.unwrap();
    assert_eq!(all(&copy).await, all(&store).await);
    assert_eq!(copy.schema(&table("t")).await.unwrap(), schema);
    let jobs = copy.list_jobs(None, 10).await.unwrap();
    assert_eq!(jobs, store.list_jobs(None, 10).await.unwrap());
    let twice = copy.apply(insert(r#"{"n":399,"part":6}"#)).await;
    assert!(
        matches!(twice, Err(StoreError::NotUnique { .. })),
        "{twice:?}"
    );
    let next = copy.apply(insert(r#"{"n":399,"part":7}"#)).await.unwrap();
    assert_eq!(next.version(), Some(copied.latest_sequence + 1));
    drop((store, copy));
    source.close().await.unwrap();
    target.close().await.unwrap();
}

pub(in crate::tenants) async fn a_copy_of_what_is_written_meanwhile_is_none<F: Fixture>() {
    if F::BLIND {
        // The case before says what becomes of a sealed one.
        return;
    }
    let (here, there) = (F::empty(), F::empty());
    let (source, store) = acme(&here).await;
    let _id = add(&store, r#"{"n":1}"#).await;
    let target = there.open().await;
    let (writing, runtime) = (Arc::clone(&store), Handle::current());
    let written = AtomicBool::new(false);
    let writes: Progress = Arc::new(move |_done, _total| {
        if !written.swap(true, Ordering::SeqCst) {
            let _id = runtime.block_on(add(&writing, r#"{"n":2}"#));
        }
        true
    });
    let refused = copied(&source, &target, writes).await;
    assert!(
        matches!(refused, Err(CopyTenantError::Differs { .. })),
        "{refused:?}"
    );
    let stopped = copied(&source, &target, Arc::new(|_done, _total| false)).await;
    assert!(
        matches!(stopped, Err(CopyTenantError::Stopped { .. })),
        "{stopped:?}"
    );
    assert_eq!(target.list_tenants().await.unwrap(), []);
    // Nothing of it is in the way of another tenant of the name, nor of the next copy.
    target.create_tenant(&id("acme")).await.unwrap();
    let new = target.open(&id("acme")).await.unwrap();
    assert_eq!(all(&new).await, (Vec::new(), Vec::new()));
    drop(new);
    let exists = copied(&source, &target, Arc::new(|_done, _total| true)).await;
    let exists = exists.unwrap_err();
    assert!(exists.to_string().contains("exists already"), "{exists}");
    target.delete_tenant(&id("acme")).await.unwrap();
    let again = copied(&source, &target, Arc::new(|_done, _total| true)).await;
    assert_eq!(again.unwrap().documents, 2);
    let copy = target.open(&id("acme")).await.unwrap();
    assert_eq!(all(&copy).await, all(&store).await);
    drop((store, copy));
    source.close().await.unwrap();
    target.close().await.unwrap();
}
