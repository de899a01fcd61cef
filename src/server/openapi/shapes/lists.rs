//! Which part of a list is asked for.

use super::{CronName, TableName, TenantId};

#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::server) struct CursorPart {
    /// `next_cursor` of the part before.
    #[param(nullable = false)]
    after: Option<String>,
    /// How many items at most; 1000 without it. A part ends early after some MiB.
    #[param(minimum = 1, maximum = 1000, nullable = false)]
    limit: Option<u32>,
}

#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::server) struct TenantPart {
    /// The id after which to begin.
    #[param(inline, nullable = false)]
    after: Option<TenantId>,
    /// How many ids at most; all of them without it.
    #[param(minimum = 1, maximum = 1000, nullable = false)]
    limit: Option<u32>,
}

#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::server) struct TablePart {
    /// The table after which to begin.
    #[param(inline, nullable = false)]
    after: Option<TableName>,
    /// How many tables at most; 1000 without it. A part ends early after some MiB.
    #[param(minimum = 1, maximum = 1000, nullable = false)]
    limit: Option<u32>,
}

#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::server) struct CronPart {
    /// The name of the cron after which to begin.
    #[param(inline, nullable = false)]
    after: Option<CronName>,
    /// How many crons at most; 1000 without it. A part ends early after some MiB.
    #[param(minimum = 1, maximum = 1000, nullable = false)]
    limit: Option<u32>,
}
