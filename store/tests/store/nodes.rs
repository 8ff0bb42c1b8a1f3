//! Runs of nodes: sessions live as long as they do, and they hear of what others change.

use crate::support::{LINUX, builder, connected, node, silence, target};
use cratemill_protocol::BuilderId;
use cratemill_store::{
    PgConnection, PgPool, builders,
    nodes::{self, Run, Session},
    sessions::{self, OpenError},
};
use time::OffsetDateTime;

async fn open(conn: &mut PgConnection, id: BuilderId, connection: &str, run: &Run) {
    sessions::open(conn, id, connection, run, &[target(LINUX)]).await.unwrap();
}

async fn changes(conn: &mut PgConnection, run: &Run) -> Option<i64> {
    nodes::mark(conn, run).await.unwrap()
}

#[sqlx::test(migrations = "../migrations")]
async fn sessions_end_with_their_node(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let first = connected(&mut conn, "first", LINUX).await;
    let second = builder(&mut conn, "second", LINUX).await;
    let alive = node(&mut conn, "node-2").await;
    open(&mut conn, second, "c-2", &alive).await;
    assert!(sessions::expire(&mut conn, 30).await.unwrap().is_empty());
    silence(&mut conn, "node-1").await;
    assert!(sessions::expire(&mut conn, 90).await.unwrap().is_empty());
    assert_eq!(sessions::expire(&mut conn, 30).await.unwrap(), [(first, "first".to_owned())]);
    assert_eq!(sessions::node_of(&mut conn, first).await.unwrap(), None);
    assert_eq!(sessions::node_of(&mut conn, second).await.unwrap().as_deref(), Some("node-2"));

    // The node was only cut off: it finds that it counts as dead, lets nobody in, and starts over.
    let dead = Run { name: "node-1".into(), epoch: 1 };
    assert_eq!(changes(&mut conn, &dead).await, None);
    let refused = sessions::open(&mut conn, first, "c-3", &dead, &[]).await;
    assert!(matches!(refused, Err(OpenError::Node)), "{refused:?}");
    nodes::register(&mut conn, &dead).await.unwrap();
    open(&mut conn, first, "c-3", &dead).await;
    assert_eq!(changes(&mut conn, &dead).await, Some(0));
}

/// A builder logs in on a node that a dispatcher is about to take for dead: neither fails.
#[sqlx::test(migrations = "../migrations")]
async fn a_node_that_lets_a_builder_in_is_not_forgotten_under_it(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let id = builder(&mut conn, "b", LINUX).await;
    let run = node(&mut conn, "node-1").await;
    silence(&mut conn, "node-1").await;
    let mut login = pool.begin().await.unwrap();
    open(&mut login, id, "c-1", &run).await;
    assert!(sessions::expire(&mut conn, 30).await.unwrap().is_empty());
    login.commit().await.unwrap();
    assert_eq!(sessions::expire(&mut conn, 30).await.unwrap().len(), 1);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_restarted_node_has_no_sessions(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let (mine, others) = (connected(&mut conn, "a", LINUX).await, builder(&mut conn, "b", LINUX).await);
    let other = node(&mut conn, "node-2").await;
    open(&mut conn, others, "c-2", &other).await;
    let again = Run { name: "node-1".into(), epoch: 2 };
    let mut tx = pool.begin().await.unwrap();
    nodes::forget_earlier(&mut tx, &again).await.unwrap();
    nodes::register(&mut tx, &again).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(sessions::node_of(&mut conn, mine).await.unwrap(), None);
    assert_eq!(sessions::node_of(&mut conn, others).await.unwrap().as_deref(), Some("node-2"));
    assert_eq!(changes(&mut conn, &Run { epoch: 1, ..again.clone() }).await, None);
    assert_eq!(changes(&mut conn, &again).await, Some(0));
}

#[sqlx::test(migrations = "../migrations")]
async fn a_node_hears_of_what_others_change(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let id = connected(&mut conn, "b", LINUX).await;
    let (run, other) = (node(&mut conn, "node-1").await, node(&mut conn, "node-2").await);
    assert_eq!(changes(&mut conn, &run).await, Some(0), "a login is its own doing");
    let held = async |conn: &mut PgConnection, run: &Run| -> Vec<(String, bool, bool)> {
        let sessions = nodes::sessions(conn, run).await.unwrap();
        let of = |session: Session| (session.connection, session.enabled, session.drain);
        sessions.into_iter().map(of).collect()
    };
    for (count, enabled, drain) in [(1, true, true), (2, true, false), (3, false, false), (4, true, false)] {
        builders::update(&mut conn, id, Some(enabled), Some(drain)).await.unwrap();
        assert_eq!(changes(&mut conn, &run).await, Some(count));
        assert_eq!(held(&mut conn, &run).await, [("c-b".to_owned(), enabled, drain)]);
    }
    open(&mut conn, id, "c-2", &other).await;
    assert_eq!(changes(&mut conn, &run).await, Some(5), "another node has its builder now");
    assert_eq!(held(&mut conn, &run).await, []);
    assert_eq!(changes(&mut conn, &other).await, Some(0));
    sessions::close(&mut conn, "c-2").await.unwrap();
    assert_eq!(changes(&mut conn, &other).await, Some(0));
}

/// What an operator changes between a builder's hello and its session must not be missed by both.
#[sqlx::test(migrations = "../migrations")]
async fn a_login_sees_the_change_or_the_change_sees_the_login(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let id = builder(&mut conn, "b", LINUX).await;
    let run = node(&mut conn, "node-1").await;
    builders::update(&mut conn, id, None, Some(true)).await.unwrap();
    let opened = sessions::open(&mut conn, id, "c-1", &run, &[]).await.unwrap();
    assert_eq!((opened.drain, opened.changes), (true, 0));
    builders::update(&mut conn, id, Some(false), None).await.unwrap();
    let refused = sessions::open(&mut conn, id, "c-2", &run, &[]).await;
    assert!(matches!(refused, Err(OpenError::Disabled)), "{refused:?}");
    assert_eq!(changes(&mut conn, &run).await, Some(1));
}

#[sqlx::test(migrations = "../migrations")]
async fn a_builder_was_seen_when_its_node_last_was(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let id = connected(&mut conn, "b", LINUX).await;
    assert_eq!(changes(&mut conn, &Run { name: "node-1".into(), epoch: 1 }).await, Some(0));
    let past = "UPDATE builders SET last_seen_at = now() - interval '1 hour'";
    sqlx::query(past).execute(&mut *conn).await.unwrap();
    let seen = async |conn: &mut PgConnection| {
        let found = builders::find(conn, id).await.unwrap().unwrap();
        let ago = OffsetDateTime::now_utc() - found.last_seen_at.unwrap();
        (found.connected, ago.whole_minutes())
    };
    assert_eq!(seen(&mut conn).await, (true, 0));
    silence(&mut conn, "node-1").await;
    assert_eq!(seen(&mut conn).await, (true, 1));
    sessions::close(&mut conn, "c-b").await.unwrap();
    assert_eq!(seen(&mut conn).await, (false, 0), "when it left");
}
