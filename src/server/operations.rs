//! Long-running operations: one request begins them, others ask for their state.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Json;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Mutex as AsyncMutex;
use utoipa::ToSchema;
use uuid::Uuid;

use super::error::{ApiError, Code};
use super::openapi::shapes::{OperationKind, OperationResult};
use crate::clock;
use crate::error_chain::error_chain;
use crate::runtime::{Progress, acting_as, actor, panic_point, short_task};

/// The answer to a request for an operation.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Begun {
    /// What to ask after at `/api/admin/operations/{id}`.
    pub(crate) operation: String,
}

/// How far an operation has come, and what came of it.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = Operation)]
pub(crate) struct OperationReport {
    id: String,
    #[schema(value_type = OperationKind)]
    kind: String,
    state: OperationState,
    pub(crate) done: u64,
    pub(crate) total: u64,
    /// What came of it, once it is done.
    #[schema(value_type = Option<OperationResult>, required)]
    pub(crate) result: Option<Value>,
    /// Why it failed.
    #[schema(required)]
    pub(crate) error: Option<String>,
}

impl OperationReport {
    /// Whether it has not ended.
    pub(crate) fn is_running(&self) -> bool {
        self.state == OperationState::Running
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum OperationState {
    Running,
    Done,
    Failed,
}

/// Operations under way, and the last ones that ended. One runs at a time.
#[derive(Debug, Default)]
pub(super) struct Operations {
    all: Mutex<BTreeMap<Uuid, Operation>>,
    /// Held by the one that runs, an operator's or one that goes on by itself.
    running: AsyncMutex<()>,
    /// How many of an operator's wait for it.
    waiting: AtomicUsize,
}

#[derive(Debug)]
struct Operation {
    kind: &'static str,
    done: u64,
    total: u64,
    end: Option<Result<Value, String>>,
}

/// Held by the task of an operation. However that ends, a panic included, the operation has ended
/// with it.
struct Running {
    operations: Arc<Operations>,
    id: Uuid,
    kind: &'static str,
    end: Result<Value, String>,
}

impl Running {
    fn ended(mut self, end: Result<Value, String>) {
        self.end = end;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let end = std::mem::replace(&mut self.end, Ok(Value::Null));
        let error = end.as_ref().err().cloned();
        if let Some(operation) = self.operations.all().get_mut(&self.id) {
            operation.end = Some(end);
        }
        if let Some(error) = error {
            let (operation, kind) = (self.id, self.kind);
            tracing::error!(%operation, kind, error, "an operation failed");
        }
    }
}

impl Operations {
    /// Begins `work`, which goes on when the request is over; answers its id, with 202.
    ///
    /// # Errors
    ///
    /// [`Code::Conflict`] while another operation runs.
    pub(super) fn begin<F, T, E>(
        self: &Arc<Self>,
        kind: &'static str,
        work: impl FnOnce(Progress) -> F,
    ) -> Result<(StatusCode, Json<Begun>), ApiError>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
        T: Serialize + 'static,
        E: std::error::Error + 'static,
    {
        let id = clock::uuid();
        {
            let mut all = self.all();
            if let Some((id, other)) = all.iter().find(|(_, one)| one.end.is_none()) {
                let message = format!("{} {id} is under way; wait until it has ended", other.kind);
                return Err(ApiError::new(Code::Conflict, message));
            }
            while all.len() >= KEPT {
                drop(all.pop_first());
            }
            let operation = Operation {
                kind,
                done: 0,
                total: 0,
                end: None,
            };
            drop(all.insert(id, operation));
        }
        let operations = self.clone();
        let progress: Progress = Arc::new(move |done, total| {
            if let Some(operation) = operations.all().get_mut(&id) {
                (operation.done, operation.total) = (done, total);
            }
            true
        });
        let running = Running {
            operations: self.clone(),
            id,
            kind,
            end: Err("a fault in the server; see its log".to_owned()),
        };
        let work = self.clone().in_turn(work(progress));
        drop(short_task(acting_as(actor(), async move {
            panic_point!("operations::run");
            let done = work.await.map_err(|error| error_chain(&error));
            let done =
                done.and_then(|done| serde_json::to_value(done).map_err(|error| error.to_string()));
            running.ended(done);
        })));
        let operation = id.to_string();
        Ok((StatusCode::ACCEPTED, Json(Begun { operation })))
    }

    async fn in_turn<T>(self: Arc<Self>, work: impl Future<Output = T>) -> T {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let running = self.running.lock().await;
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        let done = work.await;
        drop(running);
        done
    }

    /// Does what goes on by itself, when no operation runs. Its progress says to stop as soon as an
    /// operation waits.
    pub(super) async fn quietly<F: Future>(
        self: &Arc<Self>,
        work: impl FnOnce(Progress) -> F,
    ) -> F::Output {
        let _running = self.running.lock().await;
        let operations = self.clone();
        work(Arc::new(move |_done, _total| {
            operations.waiting.load(Ordering::SeqCst) == 0
        }))
        .await
    }

    /// How far an operation has come; `None` for one that is not known (any more).
    pub(super) fn describe(&self, id: Uuid) -> Option<OperationReport> {
        let all = self.all();
        let operation = all.get(&id)?;
        let (state, result, error) = match &operation.end {
            None => (OperationState::Running, None, None),
            Some(Ok(result)) => (OperationState::Done, Some(result.clone()), None),
            Some(Err(error)) => (OperationState::Failed, None, Some(error.clone())),
        };
        Some(OperationReport {
            id: id.to_string(),
            kind: operation.kind.to_owned(),
            state,
            done: operation.done,
            total: operation.total,
            result,
            error,
        })
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<Uuid, Operation>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many operations are remembered.
const KEPT: usize = 100;
