//! `/api/tenants/{t}/batch`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::documents::{Bounded, Done, MAX_BATCH, Mutation};
use crate::server::App;
use crate::server::body::{self, FromBody};
use crate::server::error::ApiError;
use crate::server::once::{Answered, Keyed};
use crate::server::openapi::shapes;
use crate::server::tenant_path::Tenant;
use crate::tenants::StoreError;

/// The mutations of a batch.
pub(in crate::server) struct Batch(Vec<Mutation>);

impl FromBody for Batch {
    fn from_body(json: &[u8]) -> Result<Self, ApiError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Written<'a> {
            #[serde(borrow)]
            mutations: Bounded<&'a RawValue, MAX_BATCH>,
        }
        let written: Written<'_> = body::parse(json)?;
        let mutations = written.mutations.0.iter().enumerate();
        let mutations = mutations.map(|(index, json)| {
            Mutation::from_json(json.get()).map_err(|error| StoreError::InBatch {
                index,
                source: Box::new(error.into()),
            })
        });
        Ok(Self(mutations.collect::<Result<_, _>>()?))
    }
}

/// Applies all of the mutations, or none when one of them cannot be; the error names that one by
/// its place.
#[utoipa::path(post, path = "/api/tenants/{t}/batch", operation_id = "applyBatch", tag = "documents",
    request_body = shapes::Batch,
    responses(
        (status = 200, description = "All mutations are stored durably", body = shapes::BatchResults),
        (status = 409, description = "The mutation conflicts with what is stored", body = shapes::ErrorEnvelope),
        (status = 412, description = "A document has another version than the mutation requires", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn apply(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Keyed {
        body: Batch(mutations),
        once,
        ..
    }: Keyed<Batch>,
) -> Result<Answered<Json<Value>>, ApiError> {
    let store = app.open(&tenant).await?;
    let Done { outcome, replayed } = store.apply_once(mutations, once).await?;
    let answer = Json(json!({"results": outcome}));
    Ok(Answered { answer, replayed })
}
