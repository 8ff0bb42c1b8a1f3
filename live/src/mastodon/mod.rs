//! Mastodon's streaming API, in place of Mastodon's own streaming server: its Redis says what happens, its database who may
//! see it.
//!
//! ```text
//! GET /api/v1/streaming/... -> [auth] -> [admission] -> [events]  \
//! WebSocket                 -> [auth] -> [sockets]              ---> a reactor, that of the account
//!                                  "subscribe" -> [admission]   /
//! Redis -> [redis]: a subscription for each channel that somebody listens to -> the reactors that have listeners
//! what viewers have blocked, muted and filtered -> [viewers]: read again every so often, never for a message
//! ```

mod admission;
mod auth;
pub mod config;
mod entry;
mod events;
mod headers;
mod languages;
mod limits;
mod redis;
mod refusal;
mod sockets;
mod tokens;
mod viewers;

pub use self::{
    admission::Admission,
    limits::Guard,
    viewers::{Lens, Viewer},
};

use self::{
    config::MastodonConfig, languages::AllLanguages, limits::Limits, redis::State, tokens::Tokens,
    viewers::Viewers,
};
use crate::{
    gateway::Entrance,
    reactor::{Question, Want},
};
use anyhow::Context as _;
use axum::{Router, middleware, routing::any};
use cratemill_service::Context;
use cratemill_store::bulk::Pool;
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedReceiver;

#[derive(Debug)]
pub struct Mastodon {
    entrance: Entrance,
    pool: Pool,
    viewers: Arc<Viewers>,
    redis: Arc<State>,
    limits: Arc<Limits>,
    languages: AllLanguages,
}

/// What reactors ask for.
#[derive(Debug)]
pub struct Asked {
    pub wants: UnboundedReceiver<Want>,
    pub questions: UnboundedReceiver<Question>,
}

impl Mastodon {
    pub fn start(
        config: &MastodonConfig,
        address_header: Option<&axum::http::HeaderName>,
        entrance: Entrance,
        asked: Asked,
        context: &Context,
    ) -> anyhow::Result<Arc<Self>> {
        let pool = config.database.connect(config.flags.db_pool.into()).context("Mastodon's database")?;
        let (viewers, nudged) = Viewers::new(pool.clone(), config.flags.mastodon_refresh_s);
        let state = Arc::new(State::default());
        let shutdown = context.shutdown.clone();
        let refresh = viewers::refresh(Arc::clone(&viewers), nudged, Arc::clone(&entrance.reactors));
        context.spawn(cancelled_with(shutdown.clone(), refresh));
        let (tokens, due) = Tokens::new();
        let look = tokens::look(pool.clone(), Arc::clone(&entrance.reactors), due);
        context.spawn(cancelled_with(shutdown.clone(), look));
        let redis = redis::Redis {
            source: config.redis.clone(),
            prefix: config.prefix(),
            state: Arc::clone(&state),
            reactors: Arc::clone(&entrance.reactors),
            viewers: Arc::clone(&viewers),
            tokens,
        };
        context.essential("redis", redis.run(asked.wants, shutdown.clone()));
        watch_health(context, &state);
        let mastodon = Arc::new(Self {
            entrance,
            pool,
            viewers,
            redis: state,
            limits: Limits::new(config.flags.clone().into(), address_header.cloned()),
            languages: AllLanguages::default(),
        });
        let answers = admission::answer(Arc::clone(&mastodon), asked.questions);
        context.spawn(cancelled_with(shutdown, answers));
        Ok(mastodon)
    }
}

async fn cancelled_with(shutdown: tokio_util::sync::CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        () = shutdown.cancelled() => {}
    }
}

/// Without Redis nothing comes; without the database nobody is let in, and who is in goes on.
fn watch_health(context: &Context, state: &Arc<State>) {
    let state = Arc::clone(state);
    context.health.require("redis", move || {
        let is_up = state.is_up();
        async move { if is_up { Ok(()) } else { Err("not connected".to_owned()) } }
    });
}

/// All below the prefix, whatever the path and the method, beside `others`. Of all other paths a WebSocket may come on any,
/// and if nothing else is spoken here the rest is as unknown as below the prefix.
pub fn router(mastodon: &Arc<Mastodon>, others: Router, is_alone: bool) -> Router {
    let add = middleware::from_fn(headers::add);
    let others = if is_alone { others.layer(add.clone()) } else { others };
    let elsewhere = if is_alone { any(entry::enter) } else { any(entry::enter_or_not_found) };
    let ours = Router::new()
        .route("/api/v1/streaming", any(entry::enter))
        .route("/api/v1/streaming/", any(entry::enter))
        .route("/api/v1/streaming/{*path}", any(entry::enter))
        .fallback_service(elsewhere.with_state(Arc::clone(mastodon)))
        .layer(add)
        .with_state(Arc::clone(mastodon));
    others.merge(ours)
}
