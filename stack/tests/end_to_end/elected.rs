//! Work that one dispatcher does for all: when that one is killed, another goes on.

use super::{
    events::Viewer,
    scene::{START, Scene, until},
};
use cratemill_stack::{
    cluster::Options,
    fixtures::crates,
    services::{Role, Service},
};
use sqlx::PgPool;
use std::{fs, time::Duration};
use tokio::time::{sleep, timeout};

/// Elections are asked for every few seconds, and a bus that was away takes a moment: ten seconds in all, and more on a
/// machine that is busy compiling.
const SOON: Duration = Duration::from_mins(2);
/// Before a viewer asks for another node.
const PAUSE: Duration = Duration::from_millis(100);
/// As the database numbers the work.
const OUTBOX: i32 = 1;
const REGISTRY_WATCH: i32 = 2;

#[tokio::test(flavor = "multi_thread")]
async fn what_one_dispatcher_does_another_takes_over() {
    let packages = [crates::hello_bin("1.0.0").unwrap(), crates::lib_only("1.0.0").unwrap()];
    let options = Options { dispatcher: 2, builder: 0, ..Options::default() };
    let options = options.with_env(Role::Dispatcher, "WATCH_CRATES", "hello-bin,lib-only");
    let mut scene = Scene::start(&packages, options).await;
    let pool = PgPool::connect(&scene.cluster.postgres.url()).await.unwrap();

    // The one that watches the registry: the next version is seen by the other.
    let watcher =
        until("one watches", async || holder(&pool, &scene.cluster.dispatchers, REGISTRY_WATCH).await).await;
    scene.cluster.dispatchers[watcher].kill9().await.unwrap();
    scene.registry.publish(&crates::hello_bin("1.1.0").unwrap()).unwrap();
    let mut viewer = scene.viewer(&["builds"]).await;
    timeout(SOON, viewer.wait_for(|frame| frame.data["version"] == "1.1.0"))
        .await
        .expect("seen by the other");
    scene.cluster.dispatchers[watcher].restart().await.unwrap();

    // The one that publishes the outbox, caught while the bus is away: the other publishes what it had in hand.
    scene.cluster.nats.kill9().await.unwrap();
    scene.registry.publish(&crates::lib_only("1.1.0").unwrap()).unwrap();
    let relay = until("one relays", async || holder(&pool, &scene.cluster.dispatchers, OUTBOX).await).await;
    scene.cluster.dispatchers[relay].kill9().await.unwrap();
    scene.cluster.nats.restart().await.unwrap();
    drop(viewer);
    timeout(SOON, sees(&scene.cluster.lb_url(), "lib-only", "1.1.0")).await.expect("published by the other");
    let left = async || {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox").fetch_one(&pool).await.unwrap();
        (count == 0).then_some(())
    };
    timeout(SOON, until("an empty outbox", left)).await.expect("all of it");
    pool.close().await;
    scene.cluster.stop().await.unwrap();
}

/// Returns once the version is in what viewers are told, looked at from its beginning. A server that is killed may forget
/// what it has not written yet: viewers are sent away then, and come again.
async fn sees(server: &str, krate: &str, version: &str) {
    loop {
        let Some(mut viewer) = Viewer::try_open(server, &["builds"], Some(START)).await else {
            sleep(PAUSE).await;
            continue;
        };
        while let Some(frame) = viewer.try_next().await {
            if frame.data["crate"] == krate && frame.data["version"] == version {
                return;
            }
        }
    }
}

/// The position of the dispatcher whose connection holds the lock of this work.
async fn holder(pool: &PgPool, dispatchers: &[Service], work: i32) -> Option<usize> {
    let port: i32 = sqlx::query_scalar(
        "SELECT client_port FROM pg_locks JOIN pg_stat_activity USING (pid)
         WHERE locktype = 'advisory' AND objid = $1 AND objsubid = 2 AND granted",
    )
    .bind(sqlx::postgres::types::Oid(work.cast_unsigned()))
    .fetch_optional(pool)
    .await
    .unwrap()?;
    let inode = inode_of_port(port)?;
    dispatchers
        .iter()
        .position(|dispatcher| dispatcher.process().is_some_and(|process| has(process.pid(), &inode)))
}

/// The kernel's number of the socket that is bound to this port and connected.
fn inode_of_port(port: i32) -> Option<String> {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!(":{port:04X}");
    table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find_map(|columns| {
        columns.get(1)?.ends_with(&local).then(|| columns.get(9).map(|inode| format!("socket:[{inode}]")))?
    })
}

fn has(pid: u32, socket: &str) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    files.into_iter().any(|file| fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == socket))
}
