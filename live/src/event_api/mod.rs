//! The zero-code event API: people sign up, log in and insert events; everybody who watches gets all of them, each at its
//! time.
//!
//! ```text
//! POST /users, /login -> [accounts] -> [passwords], [limits] -> users
//! POST /insert        -> [inserter] -> events -> (the scheduler, at their time) -> TIMELINE -> channel -> reactor
//! GET  /events        -> [stream]: the latest of each name [sync], then a place in the channel
//! ```
//! Its contract is an older system's, whose clients go on working; ARCHITECTURE.md says what is better here.

mod accounts;
mod body;
mod error;
mod events;
mod inserter;
mod limits;
mod lists;
mod passwords;
mod stream;
mod sync;
mod token;

use crate::{config::EventApiConfig, gateway::Gateway};
use axum::{
    Router,
    http::{HeaderMap, HeaderName, HeaderValue, Method, header},
    routing::{get, post},
};
use cratemill_protocol::{CollectionId, UserId};
use cratemill_service::{Context, clock};
use cratemill_store::{PgPool, users};
use error::Error;
use inserter::Inserter;
use limits::Limits;
use passwords::Passwords;
use std::{sync::Arc, time::Duration};
use sync::Sync;
use token::Tokens;
use tokio::sync::Semaphore;
use tower_http::cors::CorsLayer;

/// Clients that something is read for at once; the others wait for their turn.
const MAX_FOLLOWERS: usize = 1_024;
const CORS_MAX_AGE: Duration = Duration::from_hours(1);

#[derive(Debug)]
pub struct EventApi {
    gateway: Gateway,
    pool: PgPool,
    tokens: Tokens,
    passwords: Passwords,
    limits: Limits,
    inserter: Inserter,
    sync: Sync,
    /// Clients that something is read for.
    followers: Arc<Semaphore>,
    most_per_user: u32,
}

impl EventApi {
    pub fn start(config: &EventApiConfig, gateway: Gateway, pool: PgPool, context: &Context) -> Arc<Self> {
        let (bus, shutdown) = (gateway.bus.clone(), context.shutdown.clone());
        let (inserter, work) = Inserter::new(pool.clone(), bus, config.max_events_per_user, shutdown);
        context.spawn(work);
        Arc::new(Self {
            gateway,
            tokens: Tokens::new(&config.secrets, Duration::from_secs(config.expiry_s.into())),
            passwords: Passwords::new(),
            limits: Limits::new(config.client_address_header.clone()),
            inserter,
            sync: Sync::new(pool.clone()),
            pool,
            followers: Arc::new(Semaphore::new(MAX_FOLLOWERS)),
            most_per_user: config.max_events_per_user,
        })
    }

    /// Who asks, and which collection is theirs. A token may outlive its user.
    async fn caller(&self, headers: &HeaderMap) -> Result<(UserId, CollectionId), Error> {
        let user = self.tokens.user(headers, clock::now_s())?;
        let collection = users::collection(&mut *self.pool.acquire().await?, user).await?;
        Ok((user, collection.ok_or(Error::Token)?))
    }
}

pub fn router(api: Arc<EventApi>, origin: Option<&HeaderValue>) -> Router {
    let no_head = async || Error::Method("GET follows events");
    Router::new()
        .route("/users", post(accounts::sign_up))
        .route("/login", post(accounts::log_in))
        .route("/insert", post(events::insert))
        .route("/events", get(stream::follow).head(no_head))
        .route("/events/collections/{id}", get(lists::of_collection))
        .route("/events/user", get(lists::of_user))
        .route("/events/{id}/cancel", get(events::cancel_one))
        .method_not_allowed_fallback(async || Error::Method("this path has another method"))
        .layer(cors(origin))
        .with_state(api)
}

/// One origin, whose pages may send what they have of this one.
fn cors(origin: Option<&HeaderValue>) -> CorsLayer {
    let Some(origin) = origin else { return CorsLayer::new() };
    CorsLayer::new()
        .allow_origin([origin.clone()])
        .allow_credentials(true)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([
            header::AUTHORIZATION,
            header::ACCEPT,
            header::CONTENT_TYPE,
            HeaderName::from_static("last-event-id"),
        ])
        .max_age(CORS_MAX_AGE)
}
