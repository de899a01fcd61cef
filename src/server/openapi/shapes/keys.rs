//! The bodies of `/api/tenants/{t}/keys`.

use utoipa::ToSchema;

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct NewKey {
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    scope: Scope,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum Scope {
    Read,
    Write,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct ShownKey {
    id: String,
    /// Stored hashed: it is in this answer and nowhere else.
    key: String,
    name: String,
    scope: Scope,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Keys {
    keys: Vec<KnownKey>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct KnownKey {
    id: String,
    name: String,
    scope: Scope,
    created: String,
}
