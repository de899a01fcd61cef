//! The bodies of `/api/tenants/{t}/crons`, and the crons that deploys have, too.

use utoipa::ToSchema;
use utoipa::openapi::schema::{Object, ObjectBuilder, OneOfBuilder, Type};

use super::{Mutation, Outcome, closed, shape, text, word};

shape! {
    /// The name of a cron.
    CronName = text("^[A-Za-z][A-Za-z0-9_-]{0,63}$", "The name of a cron");
}

shape! {
    /// When a cron runs.
    Schedule = OneOfBuilder::new()
        .item(
            closed()
                .property("type", word(&["interval"]))
                .required("type")
                .property("seconds", ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1)))
                .required("seconds"),
        )
        .item(
            closed()
                .property("type", word(&["cron"]))
                .required("type")
                .property("expression", Object::with_type(Type::String))
                .required("expression")
                .property("timezone", Object::with_type(Type::String)),
        )
        .description(Some("When a cron runs"));
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
