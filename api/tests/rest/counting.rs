//! Downloads on their way to the bus, and where they wait while it is away.

use crate::support::{Node, PATIENCE, Servers, TARGET, downloads, published};
use axum::http::HeaderMap;
use cratemill_api::{Asker, Waiting};
use cratemill_protocol::{ArtifactId, bus::ClientClass};
use cratemill_service::http::PeerAddr;
use cratemill_store::PgPool;
use std::{fs, path::Path};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const PATH: &str = "/api/v1/crates/demo/1.0.0/TARGET/tarball";

fn path() -> String {
    PATH.replace("TARGET", TARGET)
}

/// Counts in a folder until it is told to end.
struct Counting {
    finish: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Counting {
    fn start(node: &Node, folder: Option<&Path>, max_bytes: u64) -> Self {
        let (finish, waiting) =
            (CancellationToken::new(), Waiting { folder: folder.map(Into::into), max_bytes });
        let counts = node.app.counts.clone().run(node.app.bus.clone(), waiting, finish.clone()).unwrap();
        Self { finish, task: tokio::spawn(counts) }
    }

    async fn end(self) {
        self.finish.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// As a process does that is killed: nothing is flushed, the files stay.
    async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }
}

async fn download(node: &Node, agent: &str) {
    let answer = node.ask("GET", &path(), &[("user-agent", agent)], None).await;
    assert_eq!(answer.status, 302, "{}", answer.text());
}

/// In memory where there is a file system of it: a disk that is slow is given up, which is another matter.
fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn files(folder: &Path) -> usize {
    fs::read_dir(folder).unwrap().count()
}

/// The bus is away, downloads go on, the node is killed; another one starts in its folder and the bus is back: each counts.
#[sqlx::test(migrations = "../migrations")]
async fn what_a_killed_node_wrote_down_is_counted_by_the_next(pool: PgPool) {
    let mut servers = Servers::start().await;
    let folder = folder();
    let node = servers.idle_node(pool.clone(), &["--downloads=redirect"]).await;
    published(&node, "demo", "1.0.0", b"bytes").await;
    let counting = Counting::start(&node, Some(folder.path()), 1 << 20);
    download(&node, "curl/8").await;
    servers.nats.kill9().await.unwrap();
    for agent in ["curl/8", "cargo/1.95.0", "cargo-binstall/1.17.4", "curl/8"] {
        download(&node, agent).await;
    }
    counting.kill().await;
    assert_eq!(files(folder.path()), 1);

    servers.nats.restart().await.unwrap();
    let next = servers.idle_node(pool.clone(), &["--downloads=redirect"]).await;
    let counting = Counting::start(&next, Some(folder.path()), 1 << 20);
    servers.wait_for_batches(|batches| downloads(batches) == 5).await;
    counting.end().await;
    let batches = servers.batches().await;
    assert!(batches.iter().all(|batch| (&batch.node, batch.epoch) == (&batches[0].node, batches[0].epoch)));
    let installs: Vec<_> = batches.iter().flat_map(|batch| &batch.installs).collect();
    assert_eq!((installs.len(), installs[0].client), (1, ClientClass::Binstall));
    assert_eq!(files(folder.path()), 0, "what the bus has is in no file");
}

/// Nothing is lost either when the bus stays away during the drain.
#[sqlx::test(migrations = "../migrations")]
async fn what_is_beyond_the_bound_is_answered_and_not_counted(pool: PgPool) {
    let mut servers = Servers::start().await;
    let folder = folder();
    let node = servers.idle_node(pool.clone(), &["--downloads=redirect"]).await;
    published(&node, "demo", "1.0.0", b"bytes").await;
    // Room for a few batches of one count each.
    let counting = Counting::start(&node, Some(folder.path()), 200);
    servers.nats.kill9().await.unwrap();
    for _ in 0..20 {
        download(&node, "curl/8").await;
    }
    servers.nats.restart().await.unwrap();
    // A drain waits for the bus, but not as long as a machine may take that is busy.
    servers.wait_for_batches(|batches| downloads(batches) > 0).await;
    counting.end().await;
    let counted = downloads(&servers.batches().await);
    assert!((1..20).contains(&counted), "{counted}");
}

/// Those who come together share a message, and each is answered.
#[sqlx::test(migrations = "../migrations")]
async fn a_crowd_shares_a_message(pool: PgPool) {
    let servers = Servers::start().await;
    let node = servers.idle_node(pool.clone(), &[]).await;
    let asker = Asker::of(&HeaderMap::new(), PeerAddr("192.0.2.1:1".parse().unwrap()), &node.app.signer);
    // Before anything is stored, so that it does not depend on the machine who comes together.
    let crowd: Vec<_> = (1..=100).map(|id| node.app.counts.count(ArtifactId(id % 10), asker)).collect();
    let counting = Counting::start(&node, None, 1 << 20);
    tokio::time::timeout(PATIENCE, futures_util::future::join_all(crowd)).await.expect("all are answered");
    counting.end().await;
    let batches = servers.batches().await;
    assert_eq!((batches.len(), batches[0].batch, batches[0].counts.len()), (1, 1, 10));
    assert_eq!(downloads(&batches), 100);
}

/// Two nodes see one request each of an install, and name its client alike.
#[sqlx::test(migrations = "../migrations")]
async fn an_install_is_recognised_on_any_node(pool: PgPool) {
    let servers = Servers::start().await;
    let flags = ["--downloads=redirect"];
    let nodes =
        [servers.idle_node(pool.clone(), &flags).await, servers.idle_node(pool.clone(), &flags).await];
    published(&nodes[0], "demo", "1.0.0", b"bytes").await;
    for node in &nodes {
        let counting = Counting::start(node, None, 1 << 20);
        for address in ["192.0.2.1", "192.0.2.2"] {
            let headers = [("user-agent", "cargo-binstall/1.17.4"), ("x-forwarded-for", address)];
            assert_eq!(node.ask("GET", &path(), &headers, None).await.status, 302);
        }
        counting.end().await;
    }
    let batches = servers.batches().await;
    let who: Vec<i64> = batches.iter().flat_map(|batch| &batch.installs).map(|install| install.who).collect();
    assert_eq!(who.len(), 4);
    assert!(who[0] == who[2] && who[1] == who[3] && who[0] != who[1], "{who:?}");
    assert_eq!(batches.iter().map(|batch| batch.counts.len()).sum::<usize>(), 0);
}

/// When the bus is back nothing waits any more, also while downloads never pause.
#[sqlx::test(migrations = "../migrations")]
async fn load_that_never_pauses_goes_back_to_the_bus(pool: PgPool) {
    let mut servers = Servers::start().await;
    let folder = folder();
    let node = servers.idle_node(pool.clone(), &["--downloads=redirect"]).await;
    published(&node, "demo", "1.0.0", b"bytes").await;
    let counting = Counting::start(&node, Some(folder.path()), 1 << 20);
    let stop = CancellationToken::new();
    let load = async {
        let mut answered = 0;
        while !stop.is_cancelled() {
            futures_util::future::join_all((0..8).map(|_| download(&node, "curl/8"))).await;
            answered += 8;
        }
        answered
    };
    // While it is written anew there are two.
    let journal = || -> u64 {
        let files = fs::read_dir(folder.path()).unwrap().flatten();
        files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
    };
    let outage = async {
        servers.nats.kill9().await.unwrap();
        // Something is written down, and then nothing is: the bus has it all.
        for emptied in [false, true] {
            if emptied {
                servers.nats.restart().await.unwrap();
            }
            let change = async {
                while (journal() == 0) != emptied {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(PATIENCE, change).await.expect("the journal fills, and empties under load");
        }
        stop.cancel();
    };
    let (answered, ()) = tokio::join!(load, outage);
    counting.end().await;
    assert_eq!(downloads(&servers.batches().await), answered);
}
