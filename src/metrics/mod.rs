//! What is counted, and under which names. Nothing here knows what it counts: any room may use it.
//!
//! Handles are made once and kept, so that recording costs an atomic operation or two. A process
//! without a recorder (every command but `start`, and tests) records into nothing. No label holds
//! the name of a tenant, a table, a document or a key: the number of series is bounded by what is
//! written in the code. `docs/metrics.md` says what each is good for; a test holds it to [`ALL`].

mod gauge;

use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant};

use metrics::{Counter, Gauge, Histogram, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::clock;

pub(crate) use gauge::{Counted, Share};

/// One thing that is counted.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// What it means.
    pub help: &'static str,
}

/// How a metric behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It is what it is now.
    Gauge,
    /// Values fall into these buckets.
    Histogram(&'static [f64]),
}

impl Kind {
    /// As Prometheus names it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

macro_rules! metrics {
    ($($const:ident = $name:literal, $kind:expr, $help:literal;)*) => {
        $(pub(crate) const $const: &str = $name;)*

        /// Everything that is counted.
        pub const ALL: &[Metric] = &[$(Metric { name: $name, kind: $kind, help: $help },)*];
    };
}

metrics! {
    HTTP_REQUESTS = "nimbus_http_requests_total", Kind::Counter,
        "Requests answered, by method, route and status.";
    HTTP_DURATION = "nimbus_http_request_duration_seconds", Kind::Histogram(REQUEST_SECONDS),
        "Time from a request's head to its answer, by method and route.";
    HTTP_UNDER_WAY = "nimbus_http_requests_under_way", Kind::Gauge,
        "Requests whose answers are not sent to the last byte.";
    HTTP_REFUSED = "nimbus_http_requests_refused_total", Kind::Counter,
        "Requests turned away for overload, by reason: the server is full, or one tenant has its share of it.";
    BUFFERED_BYTES = "nimbus_http_buffered_bytes", Kind::Gauge,
        "Bytes buffered for requests: bodies that arrive and are worked on, answers that are not sent.";
    BUFFERED_LIMIT = "nimbus_http_buffered_bytes_limit", Kind::Gauge,
        "Bytes that may be buffered for requests.";
    BUFFER_REFUSALS = "nimbus_http_buffer_refusals_total", Kind::Counter,
        "Requests turned away because no more bytes may be buffered, in all or for their tenant.";
    COMPILED_BYTES = "nimbus_json_schema_compiled_bytes", Kind::Gauge,
        "About how many bytes compiled JSON Schemas take, of all tenants.";
    COMPILATIONS = "nimbus_json_schema_compilations_total", Kind::Counter,
        "JSON Schemas compiled: set by clients, and again after they had to make room.";
    HTTP_TIMEOUTS = "nimbus_http_request_timeouts_total", Kind::Counter,
        "Requests that took longer than their deadline.";
    CONNECTIONS = "nimbus_http_connections", Kind::Gauge,
        "Connections that are open.";
    CONNECTIONS_ACCEPTED = "nimbus_http_connections_accepted_total", Kind::Counter,
        "Connections accepted.";
    TLS_FAILURES = "nimbus_tls_handshake_failures_total", Kind::Counter,
        "Connections that did not come through the TLS handshake.";
    TENANTS_OPEN = "nimbus_tenants_open", Kind::Gauge,
        "Tenants that are open.";
    TENANTS_OPEN_LIMIT = "nimbus_tenants_open_limit", Kind::Gauge,
        "How many tenants may be open.";
    TENANTS_IN_TROUBLE = "nimbus_tenants_in_trouble", Kind::Gauge,
        "Tenants that did not open when they were asked for last.";
    OPENINGS = "nimbus_tenant_openings_total", Kind::Counter,
        "Tenants opened, by outcome.";
    OPENING_DURATION = "nimbus_tenant_opening_duration_seconds", Kind::Histogram(REQUEST_SECONDS),
        "Time to open a tenant, its key included.";
    CLOSINGS = "nimbus_tenant_closings_total", Kind::Counter,
        "Tenants closed, by outcome.";
    GROUP_SIZE = "nimbus_commit_group_size", Kind::Histogram(GROUP_SIZES),
        "Callers that shared one commit.";
    COMMIT_DURATION = "nimbus_commit_duration_seconds", Kind::Histogram(COMMIT_SECONDS),
        "Time of one group's transaction, from its begin to the end of its commit.";
    COMMIT_FAILURES = "nimbus_commit_failures_total", Kind::Counter,
        "Transactions that failed whole.";
    REPLACED_FILES = "nimbus_tenant_files_replaced_total", Kind::Counter,
        "Commits that were not acknowledged because the database or its WAL was removed or replaced.";
    QUEUE_DEPTH = "nimbus_write_queue_depth", Kind::Gauge,
        "Callers whose work waits for a tenant's writer or is being written, over all tenants.";
    QUEUE_REFUSALS = "nimbus_write_queue_refusals_total", Kind::Counter,
        "Writes refused because their tenant's queue was full.";
    WRITE_REFUSALS = "nimbus_writes_refused_total", Kind::Counter,
        "Changes refused because there is no room for more, by reason: the tenant's limit, the disk's reserve.";
    IDENTITIES_NOT_KEPT = "nimbus_identities_not_kept_total", Kind::Counter,
        "Requests for new identities beyond those that are counted of a tenant in a month.";
    WAL_BYTES = "nimbus_wal_bytes", Kind::Gauge,
        "Bytes in the WALs of open tenants.";
    CHECKPOINTS = "nimbus_checkpoints_total", Kind::Counter,
        "Checkpoints, by outcome.";
    PAGE_CACHE_BYTES = "nimbus_page_cache_bytes", Kind::Gauge,
        "Bytes of pages that are kept decrypted for all connections, and of the same pages encrypted.";
    PAGE_CACHE_LIMIT = "nimbus_page_cache_bytes_limit", Kind::Gauge,
        "Bytes that the page cache may take; 0 where it is off.";
    PAGE_CACHE_HITS = "nimbus_page_cache_hits_total", Kind::Counter,
        "Pages read from disk that were in the page cache.";
    PAGE_CACHE_MISSES = "nimbus_page_cache_misses_total", Kind::Counter,
        "Pages read from disk that were verified and decrypted.";
    PAGE_CACHE_EVICTIONS = "nimbus_page_cache_evictions_total", Kind::Counter,
        "Pages that made room for others in the page cache.";
    TEMPORARY_BYTES = "nimbus_temporary_bytes", Kind::Gauge,
        "Bytes of SQLite's temporary files, for sorts and savepoints that are under way.";
    TEMPORARY_OPEN = "nimbus_temporary_files", Kind::Gauge,
        "SQLite's temporary files that are open.";
    TEMPORARY_REFUSALS = "nimbus_temporary_refusals_total", Kind::Counter,
        "Times that a temporary file was refused room.";
    READS_WAITING = "nimbus_reads_waiting", Kind::Gauge,
        "Reads that wait for one of their tenant's read connections or for a place for scans, over all tenants.";
    READS_INTERRUPTED = "nimbus_reads_interrupted_total", Kind::Counter,
        "Reads stopped because their callers were gone.";
    SCHEDULER_LAG = "nimbus_scheduler_lag_seconds", Kind::Histogram(LAG_SECONDS),
        "Time from when a job or a cron was due to when it ran.";
    SCHEDULER_OVERDUE = "nimbus_scheduler_overdue_seconds", Kind::Gauge,
        "How long the first work waits that is due and has not run.";
    KEY_OPERATIONS = "nimbus_key_operations_total", Kind::Counter,
        "Calls of key providers, by provider, operation and outcome.";
    KEY_DURATION = "nimbus_key_operation_duration_seconds", Kind::Histogram(REQUEST_SECONDS),
        "Time of a key provider's call, by provider and operation.";
    PROTECTED_FILES = "nimbus_protected_files", Kind::Gauge,
        "Files that have a manifest.";
    MANIFESTS_UNREADABLE = "nimbus_manifests_unreadable", Kind::Gauge,
        "Manifests that are damaged, or cannot be read.";
    FILES_BEHIND = "nimbus_files_not_on_current_key", Kind::Gauge,
        "Files that the key which wraps now does not wrap.";
    OLDEST_DEK_AGE = "nimbus_oldest_dek_age_seconds", Kind::Gauge,
        "Age of the oldest data key.";
    DEKS_OVERDUE = "nimbus_encryption_deks_overdue", Kind::Gauge,
        "Data keys that are older than --encryption-dek-max-age.";
    KEY_MEMORY_UNLOCKED = "nimbus_key_memory_unlocked_bytes", Kind::Gauge,
        "Bytes of key memory that the kernel refused to lock.";
    DATA_DISK_FREE = "nimbus_data_disk_free_bytes", Kind::Gauge,
        "Bytes that are free on the disk of the data directory.";
    PANICS = "nimbus_panics_total", Kind::Counter,
        "Faults of the server itself, in whatever thread or task.";
    BACKGROUND_PANICS = "nimbus_background_panics_total", Kind::Counter,
        "Long-lived threads and tasks that ended by a fault, by name.";
    BACKGROUND_DOWN = "nimbus_background_down", Kind::Gauge,
        "1 while a long-lived thread or task is gone by a fault and does not run again, by name.";
    LOG_DROPPED = "nimbus_log_lines_dropped_total", Kind::Counter,
        "Lines of the log that could not be written.";
    DATA_DISK_RESERVE = "nimbus_data_disk_reserve_bytes", Kind::Gauge,
        "Bytes that are kept free on the disk of the data directory.";
    BACKUP_SHIPPING = "nimbus_backup_shipping", Kind::Gauge,
        "1 while what is committed is shipped to --backup-to; 0 where it is not, or no longer.";
    BACKUP_LAG_BYTES = "nimbus_backup_lag_bytes", Kind::Gauge,
        "Bytes that were committed and wait to be shipped.";
    BACKUP_LAG_SECONDS = "nimbus_backup_lag_seconds", Kind::Gauge,
        "How long the oldest commit waits that was not shipped.";
    BACKUP_LAST_SHIPPED = "nimbus_backup_last_shipped_timestamp_seconds", Kind::Gauge,
        "The newest instant that can be restored, in seconds since the Unix epoch.";
    BACKUP_PACKS = "nimbus_backup_packs_total", Kind::Counter,
        "Packs that were shipped.";
    BACKUP_ERRORS = "nimbus_backup_errors_total", Kind::Counter,
        "Times that the repository did not take what was to be shipped; it is tried again.";
    BACKUP_PROOFS = "nimbus_backup_proofs_total", Kind::Counter,
        "Tenants that were restored from the repository into a scratch directory, and proven page by page (--backup-verify-every).";
    BACKUP_PROOFS_FAILED = "nimbus_backup_proofs_failed_total", Kind::Counter,
        "Times that a tenant did not restore from the repository, or that it could not be asked.";
    BACKUP_UNPROVEN = "nimbus_backup_unproven_tenants", Kind::Gauge,
        "Tenants that did not restore at the last try, or were not restored for twice --backup-verify-every.";
    BACKUP_OLDEST_PROOF = "nimbus_backup_oldest_proof_timestamp_seconds", Kind::Gauge,
        "When the tenant whose last proven restore is the oldest was restored, in seconds since the Unix epoch; 0 while none was.";
    BACKUP_LAST_PRUNED = "nimbus_backup_last_pruned_timestamp_seconds", Kind::Gauge,
        "When this server last pruned the repository of backups, in seconds since the Unix epoch; 0 while it did not.";
    BACKUP_PRUNING_FAILED = "nimbus_backup_pruning_failed_total", Kind::Counter,
        "Times that the repository of backups could not be pruned.";
    BACKUP_RESTARTS = "nimbus_backup_restarts_total", Kind::Counter,
        "Times that shipping began afresh with a snapshot because something that was committed could not be kept for it.";
    BUILD_INFO = "nimbus_build_info", Kind::Gauge,
        "1; the version is a label.";
    PROCESS_START = "process_start_time_seconds", Kind::Gauge,
        "When the process started, in seconds since the Unix epoch.";
}

/// From a point read to what is near the deadline.
const REQUEST_SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];
/// From an SSD with a cache that survives a power cut to a disk in trouble.
const COMMIT_SECONDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0,
];
/// From at once to a day: a server that was down.
const LAG_SECONDS: &[f64] = &[
    0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 3600.0, 86_400.0,
];
const GROUP_SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// Begins to record, for all of this process, before anything is recorded.
///
/// # Errors
///
/// A recorder was there before.
pub fn install() -> Result<(), InstallError> {
    let mut builder = PrometheusBuilder::new();
    for metric in ALL {
        if let Kind::Histogram(buckets) = metric.kind {
            let name = Matcher::Full(metric.name.to_owned());
            builder = builder.set_buckets_for_metric(name, buckets)?;
        }
    }
    let handle = builder.install_recorder()?;
    for metric in ALL {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, Unit::Count, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, Unit::Count, metric.help),
            Kind::Histogram(_) => {
                metrics::describe_histogram!(metric.name, Unit::Count, metric.help);
            }
        }
    }
    metrics::gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    metrics::gauge!(PROCESS_START).set(clock::now().as_duration().as_secs_f64());
    show_from_the_start();
    drop(RECORDER.set(handle));
    Ok(())
}

/// A metric that cannot be recorded.
#[derive(Debug, thiserror::Error)]
#[error("metrics cannot be recorded")]
pub struct InstallError(#[from] metrics_exporter_prometheus::BuildError);

/// Everything that was recorded, as Prometheus reads it; `None` in a process that records nothing.
#[must_use]
pub fn render() -> Option<String> {
    RECORDER.get().map(PrometheusHandle::render)
}

/// Folds what was recorded since into the histograms. To be called every few seconds: until then
/// each value takes room of its own.
pub fn upkeep() {
    if let Some(recorder) = RECORDER.get() {
        recorder.run_upkeep();
    }
}

static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

/// An alert on what never happened needs its zero.
fn show_from_the_start() {
    for counter in [
        &*HTTP_TIMED_OUT,
        &*ACCEPTED,
        &*HANDSHAKE_FAILED,
        &*COMMIT_FAILED,
        &*FILES_REPLACED,
        &*QUEUE_REFUSED,
        &*READ_INTERRUPTED,
        &*OPENED,
        &*OPENING_FAILED,
        &*CLOSED,
        &*CLOSING_FAILED,
        &*CHECKPOINT_DONE,
        &*CHECKPOINT_FAILED,
        &*REFUSED_TENANT_LIMIT,
        &*REFUSED_DISK_RESERVE,
        &*IDENTITIES_BEYOND,
        &*REFUSED_FULL,
        &*REFUSED_SHARE,
        &*PANICKED,
        &*LOG_LINES_DROPPED,
        &*BUFFER_REFUSED,
        &*SCHEMAS_COMPILED,
        &*PAGES_HIT,
        &*PAGES_MISSED,
        &*PAGES_EVICTED,
        &*TEMPORARY_REFUSED,
        &*PACKS_SHIPPED,
        &*SHIPPING_FAILED,
        &*SHIPPED_AFRESH,
        &*PROOFS,
        &*PROOFS_FAILED,
        &*PRUNING_FAILED,
    ] {
        counter.increment(0);
    }
    for gauge in [
        &*UNPROVEN,
        &*OLDEST_PROOF,
        &*LAST_PRUNED,
        &*UNDER_WAY,
        &*BUFFERED,
        &*SCHEMA_BYTES,
        &*OPEN_CONNECTIONS,
        &*OPEN_TENANTS,
        &*OPEN_TENANTS_LIMIT,
        &*IN_TROUBLE,
        &*QUEUED,
        &*WAL,
        &*PAGES_KEPT,
        &*PAGES_LIMIT,
        &*TEMPORARY,
        &*TEMPORARY_FILES,
        &*WAITING_READS,
        &*SCHEDULER_LATE,
        &*PROTECTED,
        &*UNREADABLE,
        &*BEHIND,
        &*OLDEST_DEK,
        &*OVERDUE,
        &*UNLOCKED,
        &*DISK_FREE,
        &*DISK_RESERVE,
        &*SHIPPING,
        &*BACKUP_LAG,
        &*BACKUP_LATE,
        &*LAST_SHIPPED,
    ] {
        gauge.set(0.0);
    }
}

macro_rules! handles {
    ($($(#[$doc:meta])* $static:ident: $type:ident = $make:expr;)*) => {
        $($(#[$doc])* pub(crate) static $static: LazyLock<$type> = LazyLock::new(|| $make);)*
    };
}

handles! {
    HTTP_TIMED_OUT: Counter = metrics::counter!(HTTP_TIMEOUTS);
    REFUSED_FULL: Counter = metrics::counter!(HTTP_REFUSED, "reason" => "server_full");
    REFUSED_SHARE: Counter = metrics::counter!(HTTP_REFUSED, "reason" => "tenant_share");
    PANICKED: Counter = metrics::counter!(PANICS);
    LOG_LINES_DROPPED: Counter = metrics::counter!(LOG_DROPPED);
    BUFFER_REFUSED: Counter = metrics::counter!(BUFFER_REFUSALS);
    BUFFERED: Gauge = metrics::gauge!(BUFFERED_BYTES);
    SCHEMA_BYTES: Gauge = metrics::gauge!(COMPILED_BYTES);
    SCHEMAS_COMPILED: Counter = metrics::counter!(COMPILATIONS);
    BUFFER_LIMIT: Gauge = metrics::gauge!(BUFFERED_LIMIT);
    UNDER_WAY: Gauge = metrics::gauge!(HTTP_UNDER_WAY);
    OPEN_CONNECTIONS: Gauge = metrics::gauge!(CONNECTIONS);
    ACCEPTED: Counter = metrics::counter!(CONNECTIONS_ACCEPTED);
    HANDSHAKE_FAILED: Counter = metrics::counter!(TLS_FAILURES);
    OPEN_TENANTS: Gauge = metrics::gauge!(TENANTS_OPEN);
    OPEN_TENANTS_LIMIT: Gauge = metrics::gauge!(TENANTS_OPEN_LIMIT);
    IN_TROUBLE: Gauge = metrics::gauge!(TENANTS_IN_TROUBLE);
    OPENED: Counter = metrics::counter!(OPENINGS, "outcome" => "ok");
    OPENING_FAILED: Counter = metrics::counter!(OPENINGS, "outcome" => "failed");
    OPENING_SECONDS: Histogram = metrics::histogram!(OPENING_DURATION);
    CLOSED: Counter = metrics::counter!(CLOSINGS, "outcome" => "ok");
    CLOSING_FAILED: Counter = metrics::counter!(CLOSINGS, "outcome" => "failed");
    GROUP: Histogram = metrics::histogram!(GROUP_SIZE);
    COMMIT: Histogram = metrics::histogram!(COMMIT_DURATION);
    COMMIT_FAILED: Counter = metrics::counter!(COMMIT_FAILURES);
    FILES_REPLACED: Counter = metrics::counter!(REPLACED_FILES);
    QUEUED: Gauge = metrics::gauge!(QUEUE_DEPTH);
    QUEUE_REFUSED: Counter = metrics::counter!(QUEUE_REFUSALS);
    REFUSED_TENANT_LIMIT: Counter = metrics::counter!(WRITE_REFUSALS, "reason" => "tenant_limit");
    REFUSED_DISK_RESERVE: Counter = metrics::counter!(WRITE_REFUSALS, "reason" => "disk_reserve");
    IDENTITIES_BEYOND: Counter = metrics::counter!(IDENTITIES_NOT_KEPT);
    WAL: Gauge = metrics::gauge!(WAL_BYTES);
    CHECKPOINT_DONE: Counter = metrics::counter!(CHECKPOINTS, "outcome" => "ok");
    CHECKPOINT_FAILED: Counter = metrics::counter!(CHECKPOINTS, "outcome" => "failed");
    PAGES_KEPT: Gauge = metrics::gauge!(PAGE_CACHE_BYTES);
    PAGES_LIMIT: Gauge = metrics::gauge!(PAGE_CACHE_LIMIT);
    PAGES_HIT: Counter = metrics::counter!(PAGE_CACHE_HITS);
    PAGES_MISSED: Counter = metrics::counter!(PAGE_CACHE_MISSES);
    PAGES_EVICTED: Counter = metrics::counter!(PAGE_CACHE_EVICTIONS);
    TEMPORARY: Gauge = metrics::gauge!(TEMPORARY_BYTES);
    TEMPORARY_FILES: Gauge = metrics::gauge!(TEMPORARY_OPEN);
    TEMPORARY_REFUSED: Counter = metrics::counter!(TEMPORARY_REFUSALS);
    WAITING_READS: Gauge = metrics::gauge!(READS_WAITING);
    READ_INTERRUPTED: Counter = metrics::counter!(READS_INTERRUPTED);
    LAG: Histogram = metrics::histogram!(SCHEDULER_LAG);
    SCHEDULER_LATE: Gauge = metrics::gauge!(SCHEDULER_OVERDUE);
    PROTECTED: Gauge = metrics::gauge!(PROTECTED_FILES);
    UNREADABLE: Gauge = metrics::gauge!(MANIFESTS_UNREADABLE);
    BEHIND: Gauge = metrics::gauge!(FILES_BEHIND);
    OLDEST_DEK: Gauge = metrics::gauge!(OLDEST_DEK_AGE);
    OVERDUE: Gauge = metrics::gauge!(DEKS_OVERDUE);
    UNLOCKED: Gauge = metrics::gauge!(KEY_MEMORY_UNLOCKED);
    DISK_FREE: Gauge = metrics::gauge!(DATA_DISK_FREE);
    DISK_RESERVE: Gauge = metrics::gauge!(DATA_DISK_RESERVE);
    SHIPPING: Gauge = metrics::gauge!(BACKUP_SHIPPING);
    BACKUP_LAG: Gauge = metrics::gauge!(BACKUP_LAG_BYTES);
    BACKUP_LATE: Gauge = metrics::gauge!(BACKUP_LAG_SECONDS);
    LAST_SHIPPED: Gauge = metrics::gauge!(BACKUP_LAST_SHIPPED);
    PACKS_SHIPPED: Counter = metrics::counter!(BACKUP_PACKS);
    SHIPPING_FAILED: Counter = metrics::counter!(BACKUP_ERRORS);
    SHIPPED_AFRESH: Counter = metrics::counter!(BACKUP_RESTARTS);
    PROOFS: Counter = metrics::counter!(BACKUP_PROOFS);
    PROOFS_FAILED: Counter = metrics::counter!(BACKUP_PROOFS_FAILED);
    UNPROVEN: Gauge = metrics::gauge!(BACKUP_UNPROVEN);
    OLDEST_PROOF: Gauge = metrics::gauge!(BACKUP_OLDEST_PROOF);
    LAST_PRUNED: Gauge = metrics::gauge!(BACKUP_LAST_PRUNED);
    PRUNING_FAILED: Counter = metrics::counter!(BACKUP_PRUNING_FAILED);
}

/// Records one call of a key provider. Providers and operations are few and their calls slow: no
/// handle is kept.
pub(crate) fn key_operation(
    provider: &'static str,
    operation: &'static str,
    outcome: &'static str,
    took: Duration,
) {
    let labels = [("provider", provider), ("operation", operation)];
    metrics::histogram!(KEY_DURATION, &labels).record(took);
    let labels = [labels[0], labels[1], ("outcome", outcome)];
    metrics::counter!(KEY_OPERATIONS, &labels).increment(1);
}

/// Says whether a long-lived thread or task is gone. It is rare: no handle is kept.
pub(crate) fn background_down(name: &'static str, down: bool) {
    metrics::gauge!(BACKGROUND_DOWN, "name" => name).set(f64::from(u8::from(down)));
}

/// Counts `more` ends by a fault of a long-lived thread or task.
pub(crate) fn background_panics(name: &'static str, more: u64) {
    metrics::counter!(BACKGROUND_PANICS, "name" => name).increment(more);
}

/// Counts a success or a failure.
pub(crate) fn count<T, E>(result: &Result<T, E>, ok: &Counter, failed: &Counter) {
    match result {
        Ok(_) => ok.increment(1),
        Err(_) => failed.increment(1),
    }
}

/// Seconds since `started`.
pub(crate) fn since(started: Instant) -> f64 {
    started.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_page_lists_every_metric_with_its_kind_and_no_other() {
        let page = include_str!("../../docs/metrics.md");
        let listed: BTreeSet<(String, String)> = page
            .lines()
            .filter_map(|line| {
                let mut cells = line.strip_prefix("| `")?.split('|');
                let name = cells.next()?.trim().trim_end_matches('`');
                let name = name.split('`').next()?.split('{').next()?;
                Some((name.to_owned(), cells.next()?.trim().to_owned()))
            })
            .collect();
        let counted: BTreeSet<_> = ALL
            .iter()
            .map(|metric| (metric.name.to_owned(), metric.kind.as_str().to_owned()))
            .collect();
        assert_eq!(listed, counted);
    }

    #[test]
    fn names_follow_the_convention() {
        for Metric { name, kind, help } in ALL {
            assert_eq!(
                name.ends_with("_total"),
                *kind == Kind::Counter,
                "{name} is a {}",
                kind.as_str()
            );
            assert!(help.ends_with('.'), "{name}: {help}");
        }
    }
}
