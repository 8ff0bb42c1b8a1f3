//! What nodes remember of artifacts: never a blocked one two seconds after the block.

use crate::support::{Answer, Node, PATIENCE, Servers, TARGET, block, published};
use cratemill_store::PgPool;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// After the commit, on every node.
const GONE_AFTER: Duration = Duration::from_secs(2);
/// Without it a node that needs no query would leave nobody else his turn.
const ASK_EVERY: Duration = Duration::from_millis(5);

fn path() -> String {
    format!("/api/v1/crates/demo/1.0.0/{TARGET}/tarball")
}

async fn head(node: &Node) -> Answer {
    node.ask("HEAD", &path(), &[], None).await
}

/// Nodes that look for changes, until it ends.
struct Watching {
    nodes: Vec<Node>,
    tasks: TaskTracker,
    finish: CancellationToken,
}

impl Watching {
    fn start(nodes: Vec<Node>) -> Self {
        let (tasks, finish) = (TaskTracker::new(), CancellationToken::new());
        for node in &nodes {
            tasks.spawn(node.app.clone().watch_catalogue(finish.clone()));
        }
        Self { nodes, tasks, finish }
    }

    async fn stop(&self) {
        self.finish.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn run(pool: &PgPool, sql: &'static str) {
    sqlx::raw_sql(sql).execute(pool).await.unwrap();
}

/// Returns once the node answers without a query: while there is no table, it has the answer already.
async fn make_hot(pool: &PgPool, node: &Node) {
    let hot = async {
        loop {
            assert_eq!(head(node).await.status, 200);
            run(pool, "ALTER TABLE artifacts RENAME TO away").await;
            let without = head(node).await.status;
            run(pool, "ALTER TABLE away RENAME TO artifacts").await;
            if without == 200 {
                return;
            }
        }
    };
    timeout(PATIENCE, hot).await.expect("the node remembers what it served");
}

/// What has changed by `changed` is in the answer to whoever asks later than the promise, and may be in earlier ones. It
/// counts when one asks, not when the answer comes: that holds on a machine that stands still for seconds, too.
async fn until(node: &Node, changed: Instant, what: &str, reached: impl Fn(&Answer) -> bool) {
    let reached = async {
        loop {
            let asked = changed.elapsed();
            let answer = head(node).await;
            if reached(&answer) {
                return;
            }
            assert!(asked < GONE_AFTER, "not {what} after {asked:?}: {}", answer.status);
            sleep(ASK_EVERY).await;
        }
    };
    timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("{what} in the end"));
}

#[sqlx::test(migrations = "../migrations")]
async fn a_block_is_known_on_every_node_in_time(pool: PgPool) {
    let servers = Servers::start().await;
    let nodes = vec![servers.node(pool.clone(), &[]).await, servers.node(pool.clone(), &[]).await];
    published(&nodes[0], "demo", "1.0.0", b"bytes").await;
    let watching = Watching::start(nodes);
    for node in &watching.nodes {
        make_hot(&pool, node).await;
    }
    block(&pool, "demo", "1.0.0").await;
    let blocked = Instant::now();
    for node in &watching.nodes {
        until(node, blocked, "gone", |answer| answer.status == 410).await;
    }
    for node in &watching.nodes {
        assert_eq!(head(node).await.status, 410, "and stays gone");
    }

    run(&pool, "UPDATE versions SET blocked = false").await;
    let released = Instant::now();
    for node in &watching.nodes {
        until(node, released, "served again", |answer| answer.status == 200).await;
        make_hot(&pool, node).await;
    }
    run(&pool, "UPDATE versions SET yanked = true").await;
    let yanked = Instant::now();
    for node in &watching.nodes {
        until(node, yanked, "with a warning", |answer| !answer.header("warning").is_empty()).await;
        assert_eq!(head(node).await.status, 200);
    }
    watching.stop().await;
}

/// The trigger is off, so that only the looks, which hang, can keep the promise; and what is remembered lives longer.
#[sqlx::test(migrations = "../migrations")]
async fn a_node_whose_looks_hang_asks_the_database(pool: PgPool) {
    let servers = Servers::start().await;
    let node = servers.node(pool.clone(), &[]).await;
    published(&node, "demo", "1.0.0", b"bytes").await;
    let watching = Watching::start(vec![node]);
    let node = &watching.nodes[0];
    make_hot(&pool, node).await;
    run(&pool, "ALTER TABLE versions DISABLE TRIGGER count_catalogue_change").await;
    let mut lock = pool.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE catalogue IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    block(&pool, "demo", "1.0.0").await;
    until(node, Instant::now(), "gone", |answer| answer.status == 410).await;
    run(&pool, "UPDATE versions SET blocked = false").await;
    assert_eq!(head(node).await.status, 200, "it asks for each");

    lock.rollback().await.unwrap();
    make_hot(&pool, node).await;
    watching.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn without_a_database_nothing_is_served_for_long(pool: PgPool) {
    let servers = Servers::start().await;
    let own = pool.options().clone().connect_with(pool.connect_options().as_ref().clone()).await.unwrap();
    let node = servers.node(own.clone(), &[]).await;
    published(&node, "demo", "1.0.0", b"bytes").await;
    let watching = Watching::start(vec![node]);
    let node = &watching.nodes[0];
    make_hot(&pool, node).await;
    own.close().await;
    watching.stop().await;
    until(node, Instant::now(), "unavailable", |answer| answer.status == 503).await;
    let away = node.get(&path()).await;
    away.problem(503);
    assert_eq!((away.header("cache-control"), away.header("retry-after")), ("no-store", "2"));
}

/// What is not there is not remembered: a build that has just ended is found at once.
#[sqlx::test(migrations = "../migrations")]
async fn what_was_missing_is_found_as_soon_as_it_is_there(pool: PgPool) {
    let servers = Servers::start().await;
    let node = servers.node(pool.clone(), &[]).await;
    published(&node, "demo", "1.0.0", b"bytes").await;
    run(&pool, "UPDATE artifacts SET replaced_at = now()").await;
    let watching = Watching::start(vec![node]);
    let node = &watching.nodes[0];
    let other = published(node, "other", "1.0.0", b"bytes").await;
    let hot = format!("/api/v1/crates/other/1.0.0/{}/tarball", other.target);
    assert_eq!(node.ask("HEAD", &hot, &[], None).await.status, 200);
    let missing = head(node).await;
    assert_eq!((missing.status, missing.header("cache-control")), (404, "public, max-age=10"));
    run(&pool, "UPDATE artifacts SET replaced_at = NULL").await;
    assert_eq!(head(node).await.status, 200);
    watching.stop().await;
}
