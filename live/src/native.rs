//! Our own dialect, over SSE ([`crate::sse`]) and WebSocket ([`crate::ws`]), and what people publish ([`crate::publish`]).

use crate::{
    auth::Access,
    engine::Engine,
    gateway::Gateway,
    origin::Origins,
    publish::{self, Publisher},
    sse, ws,
};
use axum::Router;
use std::sync::Arc;

/// What a request in this dialect needs.
#[derive(Debug, Clone)]
pub struct Native {
    pub gateway: Gateway,
    /// For viewers that have a task.
    pub engine: Arc<Engine>,
    pub access: Arc<Access>,
    pub origins: Arc<Origins>,
}

pub fn router(native: &Native) -> Router {
    let publisher = Publisher::new(native.gateway.bus.clone(), Arc::clone(&native.access));
    sse::router(native.clone())
        .merge(ws::router(native.clone()))
        .merge(publish::router(publisher))
        .layer(native.origins.cors())
}
