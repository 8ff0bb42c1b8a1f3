//! Every answered download is counted exactly once, whatever process is killed at whatever moment.

use super::scene::{Scene, until};
use cratemill_protocol::subjects;
use cratemill_stack::{audit, cluster::Options, services::Role};
use reqwest::{Method, redirect::Policy};
use sqlx::PgPool;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// What leads to an artifact is tested elsewhere; where downloads are redirected nobody needs its bytes here.
const ARTIFACTS: &str = "
    WITH c AS (INSERT INTO crates (name, canonical) SELECT 'demo-' || n, 'demo_' || n FROM generate_series(1, 3) n
               RETURNING id),
         v AS (INSERT INTO versions (crate_id, version, sha256) SELECT id, '1.0.0', repeat('0', 64) FROM c RETURNING id),
         b AS (INSERT INTO builders (name) VALUES ('b') RETURNING id),
         k AS (INSERT INTO builder_keys (builder_id, fingerprint, public_key) SELECT id, 'f', 'k' FROM b RETURNING id),
         j AS (INSERT INTO jobs (version_id, kind, target) SELECT id, 'tarball', 't' FROM v RETURNING id, version_id)
    INSERT INTO artifacts (version_id, kind, target, features, job_id, attempt, position, name, size, sha256, object,
                           manifest, signature, builder_key_id)
    SELECT version_id, 'tarball', 't', 'default', j.id, 1, 0, 'n', 9, repeat('0', 64), 'o', '', '', k.id FROM j, k";

const AGENTS: [(&str, &str); 4] =
    [("curl/8", "curl"), ("cargo/1.95.0", "cargo"), ("Debian APT-HTTP/1.3", "apt"), ("robot", "other")];

/// What was answered, by crate and class of client.
type Tally = BTreeMap<(String, String), i64>;

struct Clients {
    http: reqwest::Client,
    tally: Tally,
}

impl Clients {
    /// A round of downloads through one node, some at once; each is answered.
    async fn download(&mut self, node: &str) {
        let asked = (1..=3).flat_map(|krate| AGENTS.map(|agent| (format!("demo-{krate}"), agent)));
        let downloads = asked.map(async |(krate, (agent, class))| {
            let url = format!("{node}/api/v1/crates/{krate}/1.0.0/t/tarball");
            let answer = self.http.get(url).header("user-agent", agent).send().await.unwrap();
            assert_eq!(answer.status(), 302);
            (krate, class.to_owned())
        });
        for key in futures_util::future::join_all(downloads).await {
            *self.tally.entry(key).or_default() += 1;
        }
    }

    /// One install: two requests, through two nodes.
    async fn install(&mut self, nodes: [&str; 2]) {
        for node in nodes {
            let url = format!("{node}/api/v1/crates/demo-1/1.0.0/t/tarball");
            let answer =
                self.http.get(url).header("user-agent", "cargo-binstall/1.17.4").send().await.unwrap();
            assert_eq!(answer.status(), 302);
        }
        *self.tally.entry(("demo-1".into(), "binstall".into())).or_default() += 1;
    }
}

async fn counted(pool: &PgPool) -> Option<Tally> {
    let rows: Result<Vec<(String, String, i64)>, _> = sqlx::query_as(
        "SELECT c.name, d.client, sum(d.count)::bigint FROM downloads_daily d JOIN artifacts a ON a.id = d.artifact_id
         JOIN versions v ON v.id = a.version_id JOIN crates c ON c.id = v.crate_id GROUP BY 1, 2",
    )
    .fetch_all(pool)
    .await;
    Some(rows.ok()?.into_iter().map(|(krate, client, count)| ((krate, client), count)).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn answered_is_counted_once_whatever_is_killed() {
    let options = Options { api: 2, counter: 2, live: 0, builder: 0, ..Options::default() };
    let mut scene = Scene::start(&[], options.with_env(Role::Api, "DOWNLOADS", "redirect")).await;
    let pool = PgPool::connect(&scene.cluster.postgres.url()).await.unwrap();
    sqlx::query(ARTIFACTS).execute(&pool).await.unwrap();
    let nodes: Vec<String> = scene.cluster.api.iter().map(|node| node.url().unwrap()).collect();
    let http = reqwest::Client::builder().redirect(Policy::none()).build().unwrap();
    let mut clients = Clients { http, tally: Tally::new() };

    // A node right after it has answered, and a counter that may have anything in hand.
    clients.download(&nodes[0]).await;
    clients.install([&nodes[0], &nodes[1]]).await;
    scene.cluster.api[0].kill9().await.unwrap();
    scene.cluster.counters[0].kill9().await.unwrap();
    clients.download(&nodes[1]).await;

    // The bus; then the node that has answered without it.
    scene.cluster.nats.kill9().await.unwrap();
    clients.download(&nodes[1]).await;
    until("the node says that the bus is away", async || {
        let probe = clients.http.get(format!("{}/readyz?with=nats", nodes[1])).send().await.unwrap();
        (probe.status() == 503).then_some(())
    })
    .await;
    // Through the load balancer, which knows that the other node is dead.
    clients.download(&scene.cluster.lb_url()).await;
    scene.cluster.api[1].kill9().await.unwrap();
    scene.cluster.nats.restart().await.unwrap();
    scene.cluster.api[1].restart().await.unwrap();
    clients.download(&nodes[1]).await;

    // The database, with counts on the bus, and the other counter.
    scene.cluster.postgres.kill9().await.unwrap();
    scene.cluster.counters[1].kill9().await.unwrap();
    scene.cluster.postgres.restart().await.unwrap();
    for counter in &mut scene.cluster.counters {
        counter.restart().await.unwrap();
    }
    scene.cluster.api[0].restart().await.unwrap();
    clients.download(&nodes[0]).await;

    no_downloads(&clients.http, &nodes[0]).await;

    // What killed counters had in hand comes again, before which nobody can say that it counts once.
    let client = scene.cluster.nats.client().await.unwrap();
    let jetstream = async_nats::jetstream::new(client);
    until("the end of what is on the bus", async || {
        // In the order in which they go: what has left the nodes is on the bus by then.
        if held(&clients.http, &nodes).await > 0 {
            return None;
        }
        let stream = jetstream.get_stream(subjects::DOWNLOADS_STREAM).await.ok()?;
        let consumer = stream.consumer_info(subjects::DOWNLOADS_CONSUMER).await.ok()?;
        (consumer.num_pending == 0 && consumer.num_ack_pending == 0).then_some(())
    })
    .await;
    assert_eq!(counted(&pool).await, Some(clients.tally.clone()));
    blocked_is_gone(&pool, &clients.http, &nodes).await;
    pool.close().await;
    let found = audit::findings(&audit::audit(&scene.cluster, &[]).await.unwrap());
    let of_counts: Vec<_> = found.iter().filter(|finding| finding.contains("download")).collect();
    assert!(of_counts.is_empty(), "{of_counts:?}");
    assert_eq!(
        std::fs::read_dir(scene.cluster.data_dir().join("journals")).unwrap().count(),
        2,
        "of two runs"
    );
}

/// Of a path that the node has just redirected: what asks for more than that is answered as ever, and counts nowhere.
async fn no_downloads(http: &reqwest::Client, node: &str) {
    let url = format!("{node}/api/v1/crates/demo-1/1.0.0/t/tarball");
    for (method, header, value, expected) in [
        (Method::GET, "range", "bytes=1-2", 302),
        (Method::GET, "range", "bytes=9-", 416),
        (Method::GET, "if-none-match", "*", 304),
        (Method::HEAD, "accept", "*/*", 200),
        (Method::POST, "accept", "*/*", 405),
    ] {
        let answer = http.request(method.clone(), &url).header(header, value).send().await.unwrap();
        assert_eq!(answer.status(), expected, "{method} {header}: {value}");
    }
}

/// Downloads that wait in the nodes, or in what dead ones left.
async fn held(http: &reqwest::Client, nodes: &[String]) -> u64 {
    let mut sum = 0;
    for node in nodes {
        let metrics = http.get(format!("{node}/metrics")).send().await.unwrap().text().await.unwrap();
        let line = metrics.lines().find_map(|line| line.strip_prefix("cratemill_downloads_held "));
        sum += line.map_or(1, |number| number.parse().unwrap());
    }
    sum
}

/// Two seconds after the block no node redirects to it any more, though all have just done so.
async fn blocked_is_gone(pool: &PgPool, http: &reqwest::Client, nodes: &[String]) {
    let ask = async |node: &String| {
        let url = format!("{node}/api/v1/crates/demo-3/1.0.0/t/tarball");
        http.get(url).send().await.unwrap().status().as_u16()
    };
    for node in nodes {
        assert_eq!((ask(node).await, ask(node).await), (302, 302));
    }
    let block =
        "UPDATE versions SET blocked = true FROM crates c WHERE c.id = crate_id AND c.name = 'demo-3'";
    sqlx::query(block).execute(pool).await.unwrap();
    let blocked = Instant::now();
    for node in nodes {
        loop {
            let asked = Instant::now();
            match ask(node).await {
                410 => break,
                302 => assert!(asked < blocked + Duration::from_secs(2), "still served"),
                other => panic!("{other}"),
            }
        }
    }
}
