//! The pool, the migrations, locks for work that one process does alone, and notifications.

use sqlx::{
    ConnectOptions, Connection, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};
use std::time::Duration;

/// Connections per process, beside a few of [`for_queue`]: enough for a busy node. A default server has a hundred, which is
/// six processes at their busiest; idle connections are closed.
const MAX_CONNECTIONS: u32 = 10;
/// Assignment, requests and outcomes of a dispatcher, the acceptances of a node, or the jobs that are queued there.
const MAX_QUEUE_CONNECTIONS: u32 = 3;
/// A request that gets no connection by then is answered with 503.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection that worked is taken to work still.
const TRUSTED: Duration = Duration::from_secs(1);
/// What the server does by itself when a client is gone without a word, so that its locks do not outlive it: without these
/// it waits for as long as the kernel's defaults say, which is two hours.
const GUARDS: [(&str, &str); 5] = [
    // No answer for fifteen seconds: its machine or the network between is gone.
    ("tcp_keepalives_idle", "5"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "15000"),
    // Its machine answers and it does not: it hangs, or is stopped. Whoever holds a transaction open for longer pings.
    ("idle_in_transaction_session_timeout", "30s"),
];
const STATEMENT_TIMEOUT: &str = "statement_timeout";
/// Of services, whose statements take milliseconds. One that takes so long waits for a lock, or reads what it should not.
const LONGEST_STATEMENT: &str = "30s";

#[derive(Debug, Clone, clap::Args)]
pub struct Database {
    /// Postgres: `postgres://user:password@host/database`.
    #[arg(long, alias = "database", env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: DatabaseUrl,
}

/// A URL that sqlx accepts; its password shows nowhere.
#[derive(Clone)]
pub struct DatabaseUrl(PgConnectOptions);

impl DatabaseUrl {
    pub(crate) fn options(&self) -> &PgConnectOptions {
        &self.0
    }

    /// For a person's command that reads whole tables, whatever their size.
    pub fn allow_long_statements(&mut self) {
        self.0 = without_statement_timeout(self.0.clone());
    }
}

impl std::fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DatabaseUrl({}:{})", self.0.get_host(), self.0.get_port())
    }
}

impl std::str::FromStr for DatabaseUrl {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let options: PgConnectOptions =
            text.parse().map_err(|error: sqlx::Error| format!("not a Postgres URL: {error}"))?;
        Ok(Self(options.options(GUARDS).options([(STATEMENT_TIMEOUT, LONGEST_STATEMENT)])))
    }
}

/// Of several settings of one thing the last counts.
fn without_statement_timeout(options: PgConnectOptions) -> PgConnectOptions {
    options.options([(STATEMENT_TIMEOUT, "0")])
}

/// A pool that connects when first used: a database that is away is not an error here.
pub fn connect(url: &DatabaseUrl, name: &str) -> PgPool {
    options(MAX_CONNECTIONS).connect_lazy_with(url.0.clone().application_name(name))
}

/// Connections to the same database for statements that run all the time on the tables of the queue: see [`by_index`].
pub fn for_queue(pool: &PgPool) -> PgPool {
    options(MAX_QUEUE_CONNECTIONS)
        .after_connect(|conn, _| Box::pin(by_index(conn)))
        .connect_lazy_with(pool.connect_options().as_ref().clone())
}

/// What this connection asks is answered by way of indexes, from what is given to single rows.
///
/// Some tables grow and shrink by the second, so that what is known of their sizes is always wrong, and a plan that reads
/// all of one is chosen while it is small and kept when it is not.
pub async fn by_index(conn: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::raw_sql(
        "SET random_page_cost = 1.1; SET enable_seqscan = off; SET enable_hashjoin = off;
         SET enable_mergejoin = off; SET jit = off; SET plan_cache_mode = force_generic_plan",
    )
    .execute(conn)
    .await
    .map(drop)
}

/// A connection beside the pool, for what must not wait until somebody gives one back. Its statements end after `longest`,
/// at the server too.
pub async fn dedicated(pool: &PgPool, longest: Duration) -> sqlx::Result<PgConnection> {
    let options = pool.connect_options().as_ref().clone();
    options.options([(STATEMENT_TIMEOUT, format!("{}ms", longest.as_millis()))]).connect().await
}

/// Connections are looked at before they are used again, but not those that worked a moment ago: that would be one more way
/// to the server and back for every few statements.
fn options(max_connections: u32) -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        .before_acquire(|conn, meta| {
            Box::pin(async move {
                if meta.idle_for > TRUSTED {
                    conn.ping().await?;
                }
                Ok(true)
            })
        })
}

/// Brings the schema up to date; safe when several processes do it at once.
pub async fn migrate(pool: &PgPool) -> Result<(), sqlx::migrate::MigrateError> {
    let mut migrator = sqlx::migrate!("../migrations");
    // During a rolling upgrade the schema may be newer than this program: expand, migrate, contract makes that safe.
    migrator.set_ignore_missing(true);
    // On a connection of its own, which takes its time: it may change large tables, or wait for another process that does.
    let patient = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_lazy_with(without_statement_timeout(pool.connect_options().as_ref().clone()));
    let migrated = migrator.run(&patient).await;
    patient.close().await;
    migrated
}

const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// For answers of several queries: all of them see the same moment. It is read only, and ends when it is dropped.
pub async fn snapshot(pool: &PgPool) -> sqlx::Result<sqlx::Transaction<'static, sqlx::Postgres>> {
    pool.begin_with(SNAPSHOT).await
}

/// The same on a connection that one has.
pub async fn snapshot_on(conn: &mut PgConnection) -> sqlx::Result<sqlx::Transaction<'_, sqlx::Postgres>> {
    conn.begin_with(SNAPSHOT).await
}

/// For `/readyz`.
pub async fn check(pool: &PgPool) -> Result<(), String> {
    match sqlx::query("SELECT 1").execute(pool).await {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether this very connection, and what its transaction holds, is still there.
pub async fn ping(conn: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("SELECT 1").execute(conn).await.map(drop)
}

/// Whether the same statement would fail again: the data is at fault, not the connection or another transaction.
pub fn is_permanent(error: &sqlx::Error) -> bool {
    match error {
        // Data exceptions and violated constraints.
        sqlx::Error::Database(error) => {
            error.code().is_some_and(|code| code.starts_with("22") || code.starts_with("23"))
        }
        sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } | sqlx::Error::Encode(_) => true,
        _ => false,
    }
}

/// Work that at most one process does at a time. The numbers are part of the schema: never reuse one.
#[derive(Debug, Clone, Copy)]
pub enum Alone {
    Outbox = 1,
    RegistryWatch = 2,
    Compaction = 3,
    Schedule = 4,
}

/// "CRML": keeps our advisory locks apart from others' in the same database.
const LOCK_CLASS: i32 = 0x4352_4d4c;

/// Takes the lock until the transaction of `conn` ends; false if another process has it.
pub async fn try_lock(conn: &mut PgConnection, work: Alone) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1, $2)")
        .bind(LOCK_CLASS)
        .bind(work as i32)
        .fetch_one(conn)
        .await
}

/// What a [`listen`]er can wait for. A notification is a hint: whoever waits looks again from time to time anyway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// A job can be assigned, or a builder waits.
    Jobs,
    /// The outbox has something.
    Outbox,
}

impl Channel {
    /// As a notification names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Jobs => "cratemill_jobs",
            Self::Outbox => "cratemill_outbox",
        }
    }
}

pub async fn listen(pool: &PgPool, channels: &[Channel]) -> sqlx::Result<PgListener> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen_all(channels.iter().map(|channel| channel.name())).await?;
    Ok(listener)
}

/// Sent when the transaction commits; several in one transaction arrive as one.
pub async fn notify(conn: &mut PgConnection, channel: Channel) -> sqlx::Result<()> {
    sqlx::query("SELECT pg_notify($1, '')").bind(channel.name()).execute(conn).await?;
    Ok(())
}
