//! What becomes of threads and tasks that end by a fault. Names are the process's: each test has
//! its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;

use super::*;

#[tokio::test]
async fn a_task_that_is_kept_runs_again_after_a_fault_and_is_missed_until_then() {
    let (begun, begins) = (
        Arc::new(AtomicU32::new(0)),
        Arc::new(tokio::sync::Notify::new()),
    );
    let (counted, told) = (begun.clone(), begins.clone());
    let kept = keep(Background::Gauges, move || {
        let (begun, begins) = (counted.clone(), told.clone());
        async move {
            if begun.fetch_add(1, Ordering::SeqCst) == 0 {
                panic!("as told");
            }
            begins.notify_one();
            std::future::pending::<()>().await;
        }
    });
    while !gone().contains(&Background::Gauges) {
        assert_eq!(begun.load(Ordering::SeqCst) / 2, 0, "it was missed first");
        tokio::task::yield_now().await;
    }
    begins.notified().await;
    assert!(!gone().contains(&Background::Gauges));
    drop(kept);
}

#[tokio::test]
async fn a_task_that_is_watched_stays_missed() {
    let ended = task(Background::Acceptor, async { panic!("as told") });
    assert!(ended.await.is_err());
    assert!(gone().contains(&Background::Acceptor));
}

#[test]
fn a_thread_that_ends_by_itself_is_not_missed_and_one_that_panics_is() {
    thread(Background::AuditLog, || ()).unwrap().join().unwrap();
    assert!(!gone().contains(&Background::AuditLog));
    let panics = thread(Background::AuditLog, || panic!("as told"));
    let _panic = panics.unwrap().join().unwrap_err();
    assert!(gone().contains(&Background::AuditLog));
    // The next that needs it starts another.
    let panics = thread(Background::TenantWriter, || panic!("as told"));
    let _panic = panics.unwrap().join().unwrap_err();
    assert!(!gone().contains(&Background::TenantWriter));
}

#[test]
fn a_thread_that_is_kept_runs_again() {
    let (sender, begun) = mpsc::channel();
    let first = std::sync::atomic::AtomicBool::new(true);
    let kept = keep_thread(Background::MetricsUpkeep, move || {
        sender.send(()).unwrap();
        assert!(!first.swap(false, Ordering::SeqCst), "as told");
    });
    kept.unwrap().join().unwrap();
    assert_eq!(begun.iter().count(), 2);
}

#[test]
fn the_manual_says_of_each_what_its_end_does() {
    let page = include_str!("../../docs/operations.md");
    for who in Background::ALL {
        let row = format!("| `{}` |", who.name());
        assert!(page.contains(&row), "{row}");
    }
}
