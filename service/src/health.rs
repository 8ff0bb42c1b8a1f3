//! Liveness, readiness and metrics of a process, over HTTP.

use axum::{
    Json, Router,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::IntoResponse,
    routing::get,
};
use futures_util::future::{BoxFuture, join_all};
use metrics_exporter_prometheus::PrometheusHandle;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// A dependency that has not answered by then counts as missing: probes have deadlines of their own.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// Of a dependency that is not required: a load balancer gives a whole probe a second, and must not wait for it.
const WATCH_TIMEOUT: Duration = Duration::from_millis(500);
/// One answer serves all probes of this long, so that probing costs the dependencies nothing. Shorter than a load balancer
/// waits until it asks again after a failure (`fastinter`): one failure must not count as two.
const CHECK_TTL: Duration = Duration::from_millis(200);

type Check = Box<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// What a process needs to serve, and whether it has it.
#[derive(Clone)]
pub struct Health(Arc<Inner>);

struct Inner {
    checks: Mutex<Vec<Dependency>>,
    last: tokio::sync::Mutex<Option<(Instant, Vec<Missing>)>>,
    shutdown: CancellationToken,
    metrics: PrometheusHandle,
}

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Health").finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct Dependency {
    name: &'static str,
    /// Without it the process serves nothing; otherwise only some of it.
    required: bool,
    check: Arc<Check>,
}

/// A dependency that is away, and why, in a sentence without secrets.
#[derive(Debug, Clone)]
struct Missing {
    name: &'static str,
    required: bool,
    why: String,
}

impl Health {
    pub(crate) fn new(shutdown: CancellationToken, metrics: PrometheusHandle) -> Self {
        Self(Arc::new(Inner {
            checks: Mutex::default(),
            last: tokio::sync::Mutex::default(),
            shutdown,
            metrics,
        }))
    }

    /// Adds a dependency: `check` says what is wrong with it, if anything.
    pub fn require<F, Fut>(&self, name: &'static str, check: F)
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.add(name, true, Box::new(move || Box::pin(check())));
    }

    /// Adds a dependency that only some of the work needs: `/readyz` names it when it is away, and stays ready, so that
    /// no load balancer takes the rest away too.
    pub fn watch<F, Fut>(&self, name: &'static str, check: F)
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.add(name, false, Box::new(move || Box::pin(check())));
    }

    fn add(&self, name: &'static str, required: bool, check: Check) {
        let dependency = Dependency { name, required, check: Arc::new(check) };
        self.0.checks.lock().unwrap_or_else(PoisonError::into_inner).push(dependency);
    }

    /// `/healthz`, `/readyz` and `/metrics`.
    pub fn router<S: Clone + Send + Sync + 'static>(&self) -> Router<S> {
        Router::new()
            .route("/healthz", get(async || "ok\n"))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(self.clone())
    }

    async fn missing(&self) -> Vec<Missing> {
        let mut last = self.0.last.lock().await;
        if let Some((at, missing)) = &*last
            && at.elapsed() < CHECK_TTL
        {
            return missing.clone();
        }
        let checks = self.0.checks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let results = join_all(checks.iter().map(|Dependency { name, required, check }| async move {
            let limit = if *required { CHECK_TIMEOUT } else { WATCH_TIMEOUT };
            let result = tokio::time::timeout(limit, check()).await;
            let why = result.unwrap_or_else(|_| Err("no answer in time".into())).err()?;
            Some(Missing { name, required: *required, why })
        }));
        let missing: Vec<_> = results.await.into_iter().flatten().collect();
        *last = Some((Instant::now(), missing.clone()));
        missing
    }
}

#[derive(Default, serde::Deserialize)]
struct Probe {
    /// A dependency that this probe needs too, though others do not: `/readyz?with=nats`.
    #[serde(default)]
    with: String,
}

async fn readyz(
    State(health): State<Health>,
    probe: Result<Query<Probe>, QueryRejection>,
) -> impl IntoResponse {
    let Probe { with } = probe.map(|Query(probe)| probe).unwrap_or_default();
    if health.0.shutdown.is_cancelled() {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            Json(serde_json::json!({"ready": false, "draining": true})),
        );
    }
    let missing = health.missing().await;
    let ready = !missing.iter().any(|missing| missing.required || missing.name == with);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let list: serde_json::Map<_, _> =
        missing.into_iter().map(|m| (m.name.to_owned(), m.why.into())).collect();
    (status, Json(serde_json::json!({"ready": ready, "missing": list})))
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    ([("content-type", "text/plain; version=0.0.4")], health.0.metrics.render())
}
