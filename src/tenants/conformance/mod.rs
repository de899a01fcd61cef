//! One suite for every backend: what a tenant does, whatever it is stored on.
//!
//! A backend runs it with `conformance!` over a [`Fixture`]. The cases use what requests use, and
//! nothing of a backend. One that is not on the list of that macro is dead code, which the compiler
//! rejects.

mod blind;
pub(super) mod deploys;
pub(super) mod documents;
pub(super) mod idempotency;
pub(super) mod jobs;
pub(super) mod journal;
pub(super) mod lookups;
pub(super) mod moving;
pub(super) mod queries;
pub(super) mod schemas;
pub(super) mod versions;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use nimbus_manifests::TenantId;

use super::{
    DeletionLog, DueLog, StoreError, TenantProvider as _, TenantStore, Tenants, backend::Backend,
};
use crate::documents::{Document, DocumentId, Fields, Mutation, TableName};

/// A place for tenants of one backend, which outlives the server that uses it.
pub(in crate::tenants) trait Fixture: Sized {
    /// The backend.
    type Backend: Backend;

    /// Whether indexes have no order: queries that need one are refused, and each case lists them.
    const BLIND: bool = false;

    /// An empty place.
    fn empty() -> Self;

    /// A server on the place: again and again, one after another.
    async fn open(&self) -> Tenants<Self::Backend>;

    /// Receives due times.
    fn due(&self) -> &Due;
}

/// Makes a test of each case of the suite, for one fixture.
macro_rules! conformance {
    ($fixture:ty) => {
        conformance! { $fixture:
            async {
                documents:
                    documents_survive_closing,
                    what_is_not_there_is_not_found,
                    lists_follow_insertion_and_not_the_ids_clients_chose,
                    lists_are_bounded,
                    a_tenant_has_a_limit_of_tables,
                    a_patch_that_makes_a_document_too_large_is_refused;
                versions:
                    a_version_is_the_number_of_the_last_write_in_every_answer,
                    a_condition_that_fails_undoes_its_whole_batch_and_says_what_is_there;
                queries:
                    the_table_of_cases_is_answered_as_it_says,
                    a_document_that_stays_is_seen_once_whatever_is_written_meanwhile,
                    pages_of_large_documents_end_early_and_lose_none,
                    a_table_that_is_not_there_has_no_documents;
                journal:
                    the_journal_has_every_applied_write_in_order_and_nothing_else,
                    the_journal_is_read_in_pages_and_survives_closing;
                idempotency:
                    a_request_is_done_once_under_its_key_also_after_a_restart,
                    a_request_that_was_refused_is_not_remembered,
                    requests_that_are_under_way_together_have_one_effect,
                    a_job_is_scheduled_once_under_its_key;
                jobs:
                    a_job_runs_when_it_is_due_and_not_before_and_once,
                    a_job_that_cannot_be_done_has_failed_alone,
                    cancelling_tells_what_waits_from_what_ran_and_what_never_was,
                    a_cron_runs_again_and_again_and_says_how_it_went,
                    a_cron_that_missed_its_times_runs_once_and_goes_on,
                    a_clock_that_is_set_back_a_little_repeats_nothing_and_one_set_back_far_starts_again,
                    nothing_is_scheduled_that_nobody_would_be_told_of,
                    an_interval_that_ends_after_time_itself_is_refused;
                schemas:
                    a_schema_is_kept_and_taken_away,
                    every_way_to_write_is_held_to_the_schema,
                    a_schema_is_refused_while_documents_do_not_fit_and_the_first_are_named,
                    a_unique_index_keeps_types_apart_and_does_not_compare_what_has_no_value,
                    a_schema_and_writes_in_one_group_see_each_other_in_turn;
                deploys:
                    any_part_of_a_content_is_read_exactly,
                    a_dry_run_tells_nobody_of_crons_that_do_not_come_to_be,
                    a_cron_that_stays_keeps_its_next_time,
                    a_deploy_whose_crons_cannot_be_told_of_is_undone_whole;
                lookups:
                    who_goes_away_takes_nobody_along,
                    an_answer_is_of_after_the_question,
                    a_closed_tenant_answers_those_who_wait;
            }
            threads {
                lookups:
                    each_of_a_crowd_is_answered_with_its_own;
                moving:
                    a_copy_has_all_that_there_is_however_much,
                    a_copy_of_what_is_written_meanwhile_is_none;
            }
            blocking {
                versions:
                    batches_with_conditions_do_what_plain_maps_do;
                queries:
                    random_queries_over_random_documents_agree_with_the_reference,
                    any_name_and_any_text_is_found_however_it_was_escaped;
            }
        }
    };
    ($fixture:ty:
        async { $($module:ident: $($case:ident),+;)+ }
        threads { $($threaded:ident: $($crowd:ident),+;)+ }
        blocking { $($random:ident: $($model:ident),+;)+ }
    ) => {
        $($(
            #[tokio::test]
            async fn $case() {
                crate::tenants::conformance::$module::$case::<$fixture>().await;
            }
        )+)+
        $($(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $crowd() {
                crate::tenants::conformance::$threaded::$crowd::<$fixture>().await;
            }
        )+)+
        $($(
            #[test]
            fn $model() {
                crate::tenants::conformance::$random::$model::<$fixture>();
            }
        )+)+
    };
}
pub(in crate::tenants) use conformance;

/// A control file that outlives its server, and can be set to fail.
#[derive(Debug, Default)]
pub(in crate::tenants) struct Log {
    pub(in crate::tenants) pending: Mutex<BTreeSet<TenantId>>,
    pub(in crate::tenants) failing: AtomicBool,
}

impl Log {
    pub(in crate::tenants) fn write(
        &self,
        change: impl FnOnce(&mut BTreeSet<TenantId>),
    ) -> Result<(), StoreError> {
        if self.failing.load(Ordering::SeqCst) {
            let source = Arc::new(std::io::Error::other("told to fail"));
            return Err(StoreError::Control { source });
        }
        change(&mut self.pending.lock().unwrap());
        Ok(())
    }
}

impl DeletionLog for Log {
    fn begin_create(&self, _tenant: &TenantId) -> Result<(), StoreError> {
        self.write(|_pending| {})
    }

    fn begin_delete(&self, tenant: &TenantId) -> Result<(), StoreError> {
        self.write(|pending| assert!(pending.insert(tenant.clone())))
    }

    fn finish_delete(&self, tenant: &TenantId) -> Result<(), StoreError> {
        self.write(|pending| assert!(pending.remove(tenant)))
    }

    fn pending_deletes(&self) -> Result<Vec<TenantId>, StoreError> {
        Ok(self.pending.lock().unwrap().iter().cloned().collect())
    }
}

/// Receives due times, and can be set to fail.
#[derive(Debug, Default)]
pub(in crate::tenants) struct Due {
    pub(in crate::tenants) noted: Mutex<Vec<Noted>>,
    pub(in crate::tenants) failing: AtomicBool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::tenants) enum Noted {
    Expect(TenantId, i64),
    Found(TenantId, i64),
    Forget(TenantId),
}

impl Due {
    pub(in crate::tenants) fn note(&self, noted: Noted) {
        self.noted.lock().unwrap().push(noted);
    }

    /// What was noted since the last call.
    pub(in crate::tenants) fn take(&self) -> Vec<Noted> {
        std::mem::take(&mut *self.noted.lock().unwrap())
    }
}

impl DueLog for Due {
    fn expect(&self, tenant: &TenantId, due_ms: i64) -> Result<(), StoreError> {
        if self.failing.load(Ordering::SeqCst) {
            let source = Arc::new(std::io::Error::other("told to fail"));
            return Err(StoreError::Control { source });
        }
        self.note(Noted::Expect(tenant.clone(), due_ms));
        Ok(())
    }

    fn found(&self, tenant: &TenantId, due_ms: i64) {
        self.note(Noted::Found(tenant.clone(), due_ms));
    }

    fn forget(&self, tenant: &TenantId) {
        self.note(Noted::Forget(tenant.clone()));
    }
}

pub(in crate::tenants) fn id(tenant: &str) -> TenantId {
    tenant.parse().unwrap()
}

pub(in crate::tenants) fn table(name: &str) -> TableName {
    name.parse().unwrap()
}

pub(in crate::tenants) fn fields(json: &str) -> Fields {
    Fields::from_json(json).unwrap()
}

pub(in crate::tenants) fn insert(json: &str) -> Mutation {
    Mutation::Insert {
        table: table("t"),
        fields: fields(json),
        id: None,
    }
}

pub(in crate::tenants) async fn add(store: &Arc<dyn TenantStore>, json: &str) -> DocumentId {
    store.apply(insert(json)).await.unwrap().id()
}

pub(in crate::tenants) fn bodies(documents: &[Document]) -> Vec<&str> {
    documents
        .iter()
        .map(|document| document.fields.as_json())
        .collect()
}

/// A server with one tenant.
pub(in crate::tenants) async fn acme<F: Fixture>(
    house: &F,
) -> (Tenants<F::Backend>, Arc<dyn TenantStore>) {
    let tenants = house.open().await;
    tenants.create_tenant(&id("acme")).await.unwrap();
    let store = tenants.open(&id("acme")).await.unwrap();
    (tenants, store)
}
