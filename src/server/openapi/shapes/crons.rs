//! The bodies of `/api/tenants/{t}/crons`, and the crons that deploys have, too.

use utoipa::ToSchema;

use super::{Mutation, Outcome, shape, text, word};

shape! {
    /// The name of a cron.
    CronName = text("^[A-Za-z][A-Za-z0-9_-]{0,63}$", "The name of a cron");
}

/// When a cron runs.
#[derive(ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("interval" = "#/components/schemas/IntervalSchedule"),
    ("cron" = "#/components/schemas/CronSchedule"),
)))]
pub(in crate::server) enum Schedule {
    Interval(IntervalSchedule),
    Cron(CronSchedule),
}

shape! {
    /// The `type` of a schedule by intervals.
    IntervalType = word(&["interval"]);
}

shape! {
    /// The `type` of a schedule by the clock.
    CronType = word(&["cron"]);
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct IntervalSchedule {
    #[schema(inline)]
    r#type: IntervalType,
    #[schema(minimum = 1, maximum = 315_360_000)]
    seconds: i64,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct CronSchedule {
    #[schema(inline)]
    r#type: CronType,
    /// Five fields: minute, hour, day of the month, month, day of the week.
    #[schema(max_length = 256)]
    expression: String,
    /// The name of a zone of the IANA database.
    timezone: String,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct NewCron {
    name: CronName,
    schedule: Schedule,
    mutation: Mutation,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct CronMade {
    name: CronName,
    next_run_at: i64,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Crons {
    crons: Vec<CronState>,
    /// What to ask for next with `after`, where there are more.
    #[schema(required)]
    next_cursor: Option<String>,
    has_more: bool,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct CronState {
    name: CronName,
    schedule: Schedule,
    mutation: Mutation,
    origin: CronOrigin,
    next_run_at: i64,
    #[schema(required)]
    last_run: Option<LastRun>,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum CronOrigin {
    Api,
    Deploy,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct LastRun {
    run_at: i64,
    finished_at: i64,
    outcome: Outcome,
    #[schema(required)]
    error: Option<String>,
}
