//! All routes of the node, and what every request passes through: an id, a log line, a net for panics.

use crate::{
    App, builders, crates, download, jobs, log, observe, openapi::Document, problem::Problem, source,
    statistics, upload,
};
use axum::{
    Router,
    extract::Request,
    http::{StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

/// The REST API and its description.
pub fn api() -> (Router<App>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(Document::openapi())
        .merge(crates::router())
        .merge(jobs::router())
        .merge(builders::router())
        .merge(statistics::router())
        .merge(log::router())
        .merge(download::router())
        .merge(source::router())
        .merge(upload::router())
        .split_for_parts()
}

/// Everything the node serves; `beside` is what is not REST: health, and the builders' WebSocket.
pub fn router(app: App, beside: Router) -> anyhow::Result<Router> {
    let (api, document) = api();
    let durations = app.durations.clone();
    let document = bytes::Bytes::from(document.to_json()?);
    let serve_document = get(async move || ([(header::CONTENT_TYPE, "application/json")], document.clone()));
    Ok(api
        .route("/api/v1/openapi.json", serve_document)
        .with_state(app)
        .merge(beside)
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(durations, observe::request)))
}

async fn unknown(request: Request) -> Problem {
    let path: String = request.uri().path().chars().take(200).collect();
    Problem::not_found(format!("there is nothing at {path}"))
}

/// The router adds which methods there are.
async fn wrong_method(request: Request) -> Problem {
    let detail = format!("{} is no method of this route", request.method());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
}

// The layer's signature.
#[allow(clippy::needless_pass_by_value)]
fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("?");
    tracing::error!(panic = text, "a handler panicked");
    Problem::internal().into_response()
}
