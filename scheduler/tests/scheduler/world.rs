//! A user, a stream, and schedulers that can be killed.

use cratemill_protocol::{CollectionId, EventId, UserId, bus, bus::TimelineEvent, subjects};
use cratemill_scheduler::Scheduler;
use cratemill_service::{bus::Bus, clock, streams};
use cratemill_stack::{data_dir::DataDir, nats::Nats, secrets::Secrets};
use cratemill_store::{
    PgPool,
    events::insert::{Inserted, NewEvent, insert},
    users::{self, User},
};
use futures_util::StreamExt as _;
use std::time::Duration;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Long against anything that is waited for here.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const QUOTA: i64 = 1_000_000;

pub(crate) struct World {
    pub(crate) pool: PgPool,
    pub(crate) nats: Nats,
    pub(crate) admin: Bus,
    pub(crate) user: UserId,
    own: Bus,
    _data: DataDir,
}

impl World {
    pub(crate) async fn start(pool: PgPool) -> Self {
        let data = DataDir::temporary().unwrap();
        let mut secrets = Secrets::open(data.path()).unwrap();
        let nats = Nats::start(&data, &mut secrets).await.unwrap();
        let connect =
            async |user: &str| Bus::connect(&nats.url(user).unwrap().parse().unwrap(), user).await.unwrap();
        let (own, admin) = (connect("dispatcher").await, connect("admin").await);
        streams::ensure(&own, 1, &CancellationToken::new()).await.unwrap();
        let user = User {
            id: UserId(Uuid::new_v4()),
            password_hash: String::new(),
            collection_id: CollectionId(Uuid::new_v4()),
        };
        assert!(users::add(&mut pool.acquire().await.unwrap(), "somebody", &user).await.unwrap());
        Self { pool, nats, admin, user: user.id, own, _data: data }
    }

    /// As a dispatcher has one. Aborting it is its death.
    pub(crate) fn scheduler(&self) -> JoinHandle<anyhow::Result<()>> {
        let scheduler = Scheduler { pool: self.pool.clone(), bus: self.own.clone(), jobs: None };
        tokio::spawn(cratemill_scheduler::run(scheduler, CancellationToken::new()))
    }

    pub(crate) fn new_event(&self, name: &str, timestamp: i64) -> NewEvent {
        NewEvent {
            id: EventId(Uuid::new_v4()),
            user_id: self.user,
            collection_id: CollectionId(Uuid::nil()),
            event: name.into(),
            timestamp,
            data: format!("{{\"due\":{timestamp}}}"),
        }
    }

    pub(crate) async fn insert_all(&self, events: &[NewEvent]) {
        let inserted = insert(&mut self.pool.acquire().await.unwrap(), events, QUOTA).await.unwrap();
        assert!(inserted.iter().all(|inserted| *inserted == Inserted::Done));
        let earliest = events.iter().map(|event| event.timestamp).min().unwrap();
        self.admin.hint_of(subjects::SCHEDULE, earliest.to_string()).await;
    }

    /// So many seconds from now.
    pub(crate) async fn insert(&self, name: &str, in_s: i64) -> EventId {
        let event = self.new_event(name, clock::now_s() + in_s);
        self.insert_all(std::slice::from_ref(&event)).await;
        event.id
    }

    /// The next events of the stream from its beginning on, when as many are there, and when each was stored.
    pub(crate) async fn published(&self, count: usize) -> Vec<(TimelineEvent, i64)> {
        let stream = self.admin.jetstream.get_stream(subjects::TIMELINE_STREAM).await.unwrap();
        let config = async_nats::jetstream::consumer::pull::OrderedConfig::default();
        let mut messages = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
        let mut events = Vec::new();
        while events.len() < count {
            let message = timeout(PATIENCE, messages.next()).await;
            let message = message.unwrap_or_else(|_| panic!("{} of {count} came", events.len()));
            let message = message.unwrap().unwrap();
            let at_ms = message.info().unwrap().published.unix_timestamp_nanos() / 1_000_000;
            events.push((bus::decode(&message.payload).unwrap(), i64::try_from(at_ms).unwrap()));
        }
        events
    }

    pub(crate) async fn published_ids(&self, count: usize) -> Vec<EventId> {
        self.published(count).await.into_iter().map(|(event, _)| event.id).collect()
    }

    pub(crate) async fn stored(&self) -> u64 {
        let stream = self.admin.jetstream.get_stream(subjects::TIMELINE_STREAM).await.unwrap();
        stream.cached_info().state.messages
    }

    /// Waits until nothing is due or on its way.
    pub(crate) async fn is_done(&self) {
        let left = "SELECT (SELECT count(*) FROM due_events) + (SELECT count(*) FROM firing_events)";
        let done = async {
            while sqlx::query_scalar::<_, i64>(left).fetch_one(&self.pool).await.unwrap() > 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, done).await.expect("events are left");
    }

    /// The latest of each name, in the order of the stream, with its place.
    pub(crate) async fn latest(&self) -> Vec<(String, i64)> {
        let rows =
            "SELECT e.event, l.sequence FROM latest_events l JOIN events e ON e.id = l.event_id ORDER BY 2";
        sqlx::query_as(rows).fetch_all(&self.pool).await.unwrap()
    }
}
