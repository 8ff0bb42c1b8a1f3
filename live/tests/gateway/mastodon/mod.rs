//! Mastodon's streaming API: a Redis and a database as a Mastodon has them, nodes that need nothing else, and clients.

mod drain;
mod elsewhere;
mod held;
mod limits;
mod outage;
mod people;
mod resume;

use crate::farm::{Node, PATIENCE};
use cratemill_stack::{data_dir::DataDir, fixtures::mastodon, ports::Port, process::Command, redis::Redis};
use redis::{AsyncTypedCommands as _, aio::MultiplexedConnection};
use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, PgPool, postgres::PgConnectOptions};
use tokio::time::timeout;

/// Of which there is one account each, with a token.
pub(crate) const ACCOUNTS: i64 = 20;

pub(crate) struct Scene {
    pub(crate) database: String,
    pub(crate) redis: Redis,
    pub(crate) data_dir: DataDir,
}

impl Scene {
    /// In an empty database.
    pub(crate) async fn start(pool: &PgPool) -> Self {
        fill(pool).await;
        Self::at(url(&pool.connect_options())).await
    }

    pub(crate) async fn at(database: String) -> Self {
        let data_dir = DataDir::temporary().unwrap();
        let redis = Redis::start(&data_dir).await.unwrap();
        Self { database, redis, data_dir }
    }

    pub(crate) async fn node(&self) -> Node {
        self.node_with(&[]).await
    }

    /// `env` comes over what Mastodon's server would be given.
    pub(crate) async fn node_with(&self, env: &[(&str, &str)]) -> Node {
        let port = Port::reserve().unwrap();
        let name = format!("live-{}", port.number());
        let mut command = Command::new(name, env!("CARGO_BIN_EXE_cratemill-live"), &self.data_dir.log());
        for (key, value) in [
            ("DIALECTS", "mastodon"),
            ("BIND", "127.0.0.1"),
            ("PORT", &port.number().to_string()),
            ("DATABASE_URL", &self.database),
            ("REDIS_URL", &self.redis.url()),
            // Of a Mastodon's, and nothing to us.
            ("S3_BUCKET", "files"),
            ("S3_ENDPOINT", "https://s3.example"),
            ("REDIS_PASSWORD", ""),
            ("LOG_FORMAT", "text"),
            ("RUST_LOG", "info,cratemill_live=debug"),
        ] {
            command = command.env(key, value);
        }
        for (key, value) in env {
            command = command.env(key, *value);
        }
        let process = command.spawn().await.unwrap();
        let node = Node::new(process, port);
        node.is_ready().await;
        node
    }

    pub(crate) async fn publisher(&self) -> Publisher {
        Publisher::connect(&self.redis).await
    }
}

/// As Mastodon's configuration would have it.
pub(crate) fn url(options: &PgConnectOptions) -> String {
    let mut url = options.to_url_lossy();
    url.set_query(None);
    url.to_string()
}

/// The tables, and accounts from 1 on with the tokens `token-1` and so on.
pub(crate) async fn fill(pool: &PgPool) {
    sqlx::raw_sql(mastodon::SCHEMA).execute(pool).await.unwrap();
    for sql in [
        "INSERT INTO accounts (id, username) SELECT n, 'u' || n FROM generate_series(1, $1) n",
        "INSERT INTO users (id, account_id) SELECT n, n FROM generate_series(1, $1) n",
        "INSERT INTO oauth_access_tokens (id, token, resource_owner_id, scopes)
         SELECT n, 'token-' || n, n, 'read' FROM generate_series(1, $1) n",
    ] {
        sqlx::query(sql).bind(ACCOUNTS).execute(pool).await.unwrap();
    }
}

/// Mastodon, as far as Redis hears of it.
pub(crate) struct Publisher(MultiplexedConnection);

impl Publisher {
    pub(crate) async fn connect(redis: &Redis) -> Self {
        let client = redis::Client::open(redis.url()).unwrap();
        Self(client.get_multiplexed_async_connection().await.unwrap())
    }

    /// Of Redis, as one would type it.
    pub(crate) async fn command(&mut self, text: &str) {
        let mut words = text.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        command.arg(words.collect::<Vec<_>>());
        command.exec_async(&mut self.0).await.unwrap();
    }

    /// Returns how many nodes have been told.
    pub(crate) async fn publish(&mut self, channel: &str, event: &str, payload: Value) -> usize {
        let message = json!({ "event": event, "payload": payload }).to_string();
        self.0.publish(channel, message).await.unwrap()
    }

    /// A status by a local author, with a number.
    pub(crate) async fn status(&mut self, channel: &str, author: i64, number: u64) -> usize {
        let account = json!({ "id": author.to_string(), "username": "ann", "acct": "ann" });
        let status = json!({ "id": number.to_string(), "account": account, "content": "<p>text</p>" });
        self.publish(channel, "update", status).await
    }

    /// Once so many nodes have subscribed.
    pub(crate) async fn is_subscribed(&mut self, channel: &str, nodes: usize) {
        let subscribed = async {
            loop {
                let count: (String, usize) =
                    redis::cmd("PUBSUB").arg("NUMSUB").arg(channel).query_async(&mut self.0).await.unwrap();
                if count.1 == nodes {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, subscribed)
            .await
            .unwrap_or_else(|_| panic!("{channel} has not {nodes} subscribers"));
    }

    /// Once its key is set.
    pub(crate) async fn is_announced(&mut self, key: &str) {
        let announced = async {
            while self.0.get(key).await.unwrap().as_deref() != Some("1") {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, announced).await.unwrap_or_else(|_| panic!("{key} is not set"));
        let left = self.0.ttl(key).await.unwrap();
        assert!(format!("{left:?}").contains("10"), "{left:?}");
    }
}
