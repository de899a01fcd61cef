//! The control file: what it keeps across restarts. What it refuses, and what its device survives,
//! is below.

use std::sync::Arc;

use nimbus_keyproviders::MemoryProvider;
use nimbus_manifests::TenantId;

use super::*;
use crate::envelope::{KeyRing, ManifestMirror as _};

mod access_keys;
mod device;
mod layout;
mod rekey;
mod tampering;
mod usage;

struct House {
    dir: tempfile::TempDir,
    envelope: Envelope,
}

impl House {
    fn new() -> Self {
        let key = Arc::new(MemoryProvider::random().unwrap());
        Self {
            dir: tempfile::tempdir().unwrap(),
            envelope: Envelope::new(KeyRing::new(key, vec![], vec![])),
        }
    }

    async fn open(&self) -> Result<Control, ControlError> {
        Control::open(&self.envelope, self.dir.path()).await
    }

    /// A closed control file with some manifests in it.
    async fn filled(&self) -> PathBuf {
        let control = self.open().await.unwrap();
        for round in 0_u8..4 {
            let entries: Vec<_> = (0..40)
                .map(|n| (tenant_subject(&format!("t{n}")), vec![round; 700]))
                .collect();
            control
                .put_many(entries.iter().map(|(subject, text)| (subject, &text[..])))
                .unwrap();
        }
        Control::path_in(self.dir.path())
    }
}

fn tenant_subject(tenant: &str) -> Subject {
    format!("db:sqlite:tenant:{tenant}:{tenant}.sqlite3")
        .parse()
        .unwrap()
}

#[tokio::test]
async fn keeps_manifests_across_a_restart() {
    let house = House::new();
    let subject = tenant_subject("demo");
    house
        .open()
        .await
        .unwrap()
        .put_many([(&subject, &b"text"[..])])
        .unwrap();
    let control = house.open().await.unwrap();
    assert!(control.get(&subject).unwrap().all().eq([b"text"]));
    control.remove(&subject).unwrap();
    assert!(control.get(&subject).unwrap().is_empty());
}

#[tokio::test]
async fn keeps_an_announced_manifest_beside_the_one_in_force_until_one_is_put() {
    let house = House::new();
    let (subject, other) = (tenant_subject("demo"), tenant_subject("other"));
    let control = house.open().await.unwrap();
    control.put_many([(&subject, &b"old"[..])]).unwrap();
    control
        .announce(&[(&subject, b"new"), (&other, b"alone")])
        .unwrap();
    drop(control);
    let control = house.open().await.unwrap();
    let copies = |subject: &Subject| {
        let copies = control.get(subject).unwrap();
        copies.all().map(<[u8]>::to_vec).collect::<Vec<_>>()
    };
    assert_eq!(copies(&subject), [b"new", b"old"]);
    assert_eq!(copies(&other), [b"alone"]);
    let all = control.manifests().unwrap();
    assert_eq!(all.len(), 2);
    assert_eq!(all[&subject], control.get(&subject).unwrap());
    assert_eq!(all[&other], control.get(&other).unwrap());
    assert_eq!(
        control.subjects().unwrap(),
        [subject.clone(), other.clone()]
    );
    control.begin_delete(other.tenant().unwrap()).unwrap();
    assert_eq!(
        control.subjects().unwrap(),
        std::slice::from_ref(&subject),
        "what is being deleted exists no more"
    );
    assert_eq!(
        control.announced().unwrap(),
        [subject.clone(), other.clone()]
    );
    control.put_many([(&subject, &b"new"[..])]).unwrap();
    assert_eq!(copies(&subject), [b"new"]);
    assert_eq!(control.announced().unwrap(), std::slice::from_ref(&other));
    control.remove(&other).unwrap();
    assert!(control.get(&other).unwrap().is_empty());
}

#[tokio::test]
async fn ends_a_deletion_with_the_tenants_manifests_and_no_others() {
    let control = House::new().open().await.unwrap();
    let (one, other) = (tenant_subject("one"), tenant_subject("one-more"));
    control.put_many([(&one, &b"1"[..])]).unwrap();
    control.put_many([(&other, &b"2"[..])]).unwrap();
    control.announce(&[(&one, b"3"), (&other, b"4")]).unwrap();
    let tenant: TenantId = "one".parse().unwrap();
    control.begin_delete(&tenant).unwrap();
    assert_eq!(
        control.pending_deletes().unwrap(),
        std::slice::from_ref(&tenant)
    );
    control.finish_delete(&tenant).unwrap();
    assert_eq!(control.pending_deletes().unwrap(), []);
    assert!(control.get(&one).unwrap().is_empty());
    assert!(control.get(&other).unwrap().all().eq([b"4", b"2"]));
}

#[tokio::test]
async fn rejects_a_second_opener() {
    let house = House::new();
    let _first = house.open().await.unwrap();
    let error = house.open().await.unwrap_err();
    assert!(matches!(error, ControlError::InUse { .. }), "{error:?}");
}
