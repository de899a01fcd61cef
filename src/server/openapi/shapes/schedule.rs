//! The bodies of `/api/tenants/{t}/schedule`.

use utoipa::ToSchema;

use super::{Mutation, shape, text};

shape! {
    /// The id of a job.
    JobId = text(
        "^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$",
        "The id of a job: a UUID version 7 in lower case",
    );
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct NewJob {
    /// At most 3650 days.
    #[schema(minimum = 0, maximum = 315_360_000_000_i64)]
    run_after_ms: i64,
    mutation: Mutation,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Scheduled {
    job_id: JobId,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Jobs {
    jobs: Vec<Job>,
    /// What to ask for next with `after`, where there are more.
    #[schema(required)]
    next_cursor: Option<String>,
    has_more: bool,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Job {
    id: JobId,
    run_at: i64,
    mutation: Mutation,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct JobResult {
    result: FinishedJob,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct FinishedJob {
    id: JobId,
    run_at: i64,
    mutation: Mutation,
    finished_at: i64,
    outcome: Outcome,
    #[schema(required)]
    error: Option<String>,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum Outcome {
    Succeeded,
    Failed,
}
