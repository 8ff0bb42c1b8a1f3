//! Migrations, locks, notifications and the outbox.

use crate::support::{krate, version};
use cratemill_protocol::{
    BuilderId, VersionId,
    bus::{BuilderState, VersionChange, VersionChanged},
};
use cratemill_store::{
    PgPool, crates,
    database::{self, Alone, Channel, DatabaseUrl},
    outbox,
};
use sqlx::ConnectOptions as _;

#[sqlx::test(migrations = false)]
async fn processes_migrate_at_once(pool: PgPool) {
    let results = tokio::join!(database::migrate(&pool), database::migrate(&pool), database::migrate(&pool));
    assert!(results.0.is_ok() && results.1.is_ok() && results.2.is_ok(), "{results:?}");
    database::check(&pool).await.unwrap();
    version(&mut pool.acquire().await.unwrap(), "a").await;
}

#[sqlx::test(migrations = "../migrations")]
async fn old_code_starts_on_a_newer_schema(pool: PgPool) {
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'from the future', true, '', 0)",
    )
    .execute(&pool)
    .await
    .unwrap();
    database::migrate(&pool).await.unwrap();
}

/// A migration may take longer than any statement of a service.
#[sqlx::test(migrations = false)]
async fn migrations_take_their_time(pool: PgPool) {
    let hasty = pool.connect_options().as_ref().clone().options([("statement_timeout", "1ms")]);
    database::migrate(&PgPool::connect_lazy_with(hasty)).await.unwrap();
}

async fn setting(pool: &PgPool, name: &str) -> String {
    sqlx::query_scalar("SELECT current_setting($1)").bind(name).fetch_one(pool).await.unwrap()
}

/// A process that is gone without a word holds its locks for seconds, not for hours.
#[sqlx::test(migrations = false)]
async fn the_server_notices_clients_that_are_gone(pool: PgPool) {
    let mut url: DatabaseUrl = pool.connect_options().to_url_lossy().as_str().parse().unwrap();
    let service = cratemill_store::connect(&url, "service");
    for pool in [&service, &database::for_queue(&service)] {
        for (name, expected) in [
            ("tcp_keepalives_idle", "5"),
            ("tcp_keepalives_interval", "5"),
            ("tcp_keepalives_count", "3"),
            ("tcp_user_timeout", "15000"),
            ("idle_in_transaction_session_timeout", "30s"),
            ("statement_timeout", "30s"),
        ] {
            assert_eq!(setting(pool, name).await, expected, "{name}");
        }
    }
    url.allow_long_statements();
    let patient = cratemill_store::connect(&url, "patient");
    assert_eq!(setting(&patient, "statement_timeout").await, "0");
    assert_eq!(setting(&patient, "idle_in_transaction_session_timeout").await, "30s");
}

#[sqlx::test(migrations = "../migrations")]
async fn queries_of_a_snapshot_see_one_moment(pool: PgPool) {
    let mut snapshot = database::snapshot(&pool).await.unwrap();
    assert!(crates::page(&mut snapshot, "", None, 10).await.unwrap().is_empty());
    version(&mut pool.acquire().await.unwrap(), "a").await;
    assert!(crates::page(&mut snapshot, "", None, 10).await.unwrap().is_empty());
    drop(snapshot);
    let mut later = database::snapshot(&pool).await.unwrap();
    assert_eq!(crates::page(&mut later, "", None, 10).await.unwrap().len(), 1);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_lock_ends_with_its_transaction(pool: PgPool) {
    let (mut one, mut two) = (pool.begin().await.unwrap(), pool.begin().await.unwrap());
    assert!(database::try_lock(&mut one, Alone::Outbox).await.unwrap());
    assert!(!database::try_lock(&mut two, Alone::Outbox).await.unwrap());
    assert!(database::try_lock(&mut two, Alone::RegistryWatch).await.unwrap(), "another work");
    database::ping(&mut one).await.unwrap();
    one.rollback().await.unwrap();
    assert!(database::try_lock(&mut two, Alone::Outbox).await.unwrap());
}

#[sqlx::test(migrations = "../migrations")]
async fn a_commit_wakes_listeners(pool: PgPool) {
    let mut listener = database::listen(&pool, &[Channel::Jobs, Channel::Outbox]).await.unwrap();
    let mut tx = pool.begin().await.unwrap();
    database::notify(&mut tx, Channel::Jobs).await.unwrap();
    database::notify(&mut tx, Channel::Jobs).await.unwrap();
    outbox::queue_changed(&mut tx, 1, 2).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(listener.recv().await.unwrap().channel(), Channel::Jobs.name());
    assert_eq!(listener.recv().await.unwrap().channel(), Channel::Outbox.name(), "the two above are one");
}

#[sqlx::test(migrations = "../migrations")]
async fn the_outbox_keeps_the_order(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let changed = VersionChanged {
        krate: krate("a"),
        version: "1.0.0".into(),
        id: VersionId(7),
        change: VersionChange::Yanked,
    };
    outbox::version_changed(&mut tx, changed).await.unwrap();
    outbox::builder_changed(&mut tx, BuilderId(3), "b", BuilderState::Connected).await.unwrap();
    outbox::queue_changed(&mut tx, 1, 2).await.unwrap();
    let entries = outbox::oldest(&mut tx, 2).await.unwrap();
    assert_eq!(
        entries.iter().map(|entry| entry.subjects.clone()).collect::<Vec<_>>(),
        [["event.version.a.7"], ["event.builder.3"]]
    );
    outbox::delete(&mut tx, &[entries[0].id, entries[1].id]).await.unwrap();
    let left = outbox::oldest(&mut tx, 10).await.unwrap();
    assert_eq!((left.len(), left[0].subjects[0].as_str()), (1, "event.queue"));
}

#[sqlx::test(migrations = "../migrations")]
async fn errors_of_data_are_told_from_errors_of_the_moment(pool: PgPool) {
    for (sql, permanent) in [
        ("SELECT 1 / 0", true),
        ("INSERT INTO crates (name, canonical) VALUES (NULL, NULL)", true),
        ("SELECT pg_terminate_backend(pg_backend_pid())", false),
    ] {
        let error = sqlx::query(sql).execute(&pool).await.unwrap_err();
        assert_eq!(database::is_permanent(&error), permanent, "{error}");
    }
}
