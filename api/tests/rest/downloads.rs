use crate::support::{Answer, Node, Servers, TARGET, block, downloads, published, tarball_name, unix_day};
use cratemill_api::Waiting;
use cratemill_protocol::{ArtifactId, Sha256Hex, bus::ClientClass};
use cratemill_store::PgPool;
use http_body_util::BodyExt;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

fn path(version: &str, file: &str) -> String {
    format!("/api/v1/crates/demo/{version}/{TARGET}/{file}")
}

fn bytes() -> Vec<u8> {
    (0..300_000_u32).map(|n| n.to_le_bytes()[1]).collect()
}

async fn get_with(node: &Node, path: &str, headers: &[(&str, &str)]) -> Answer {
    node.ask("GET", path, headers, None).await
}

/// Counts until the token is cancelled, and then what is left.
fn counting(node: &Node) -> (CancellationToken, tokio::task::JoinHandle<anyhow::Result<()>>) {
    let (finish, waiting) = (CancellationToken::new(), Waiting { folder: None, max_bytes: 1 << 20 });
    (
        finish.clone(),
        tokio::spawn(node.app.counts.clone().run(node.app.bus.clone(), waiting, finish).unwrap()),
    )
}

#[sqlx::test(migrations = "../migrations")]
async fn a_file_arrives_whole_with_all_that_proves_it(pool: PgPool) {
    let servers = Servers::start().await;
    let node = servers.idle_node(pool.clone(), &[]).await;
    let (finish, counted) = counting(&node);
    published(&node, "demo", "1.0.0", &bytes()).await;
    let sha256 = Sha256Hex::of(&bytes()).to_string();
    let tag = format!("\"{sha256}\"");

    let whole = get_with(&node, &path("1.0.0", "tarball"), &[("user-agent", "curl/8")]).await;
    assert_eq!(whole.status, 200, "{}", whole.text());
    assert!(whole.body == bytes());
    let name = format!("attachment; filename=\"{}\"", tarball_name("demo", "1.0.0"));
    for (header, value) in [
        ("etag", tag.as_str()),
        ("content-length", "300000"),
        ("content-type", "application/gzip"),
        ("accept-ranges", "bytes"),
        ("cache-control", "public, max-age=31536000, immutable"),
        ("content-disposition", &name),
        ("content-encoding", ""),
        ("warning", ""),
    ] {
        assert_eq!(whole.header(header), value, "{header}");
    }
    let latest = get_with(&node, &path("latest", "tarball"), &[("accept-encoding", "gzip, zstd")]).await;
    assert_eq!(
        (latest.header("cache-control"), latest.header("content-encoding")),
        ("public, max-age=60", "")
    );

    let sum = node.get(&path("1.0.0", "tarball.sha256")).await;
    assert_eq!(sum.text(), format!("{sha256}  {}\n", tarball_name("demo", "1.0.0")));
    let manifest = node.get(&path("latest", "tarball.manifest")).await;
    assert_eq!(manifest.json()["artifacts"][0]["sha256"], sha256.as_str());
    assert_eq!(node.get(&path("1.0.0", "tarball.sig")).await.text(), "-----BEGIN SSH SIGNATURE-----\n");
    let same = [("if-none-match", manifest.header("etag"))];
    assert_eq!(get_with(&node, &path("1.0.0", "tarball.manifest"), &same).await.status, 304);

    finish.cancel();
    counted.await.unwrap().unwrap();
    let batches = servers.batches().await;
    assert_eq!(batches.iter().map(|batch| batch.batch).collect::<Vec<_>>(), [1, 2]);
    let count = &batches[0].counts[0];
    assert_eq!((count.artifact, count.client, count.count), (ArtifactId(1), ClientClass::Curl, 1));
    assert!((unix_day() - 1..=unix_day()).contains(&count.day));
    let listed = node.get("/api/v1/crates/demo/1.0.0").await.json();
    let url = listed["artifacts"][0]["url"].as_str().unwrap();
    assert_eq!(url, format!("http://cratemill.test{}", path("1.0.0", "tarball")));
}

#[sqlx::test(migrations = "../migrations")]
async fn parts_and_what_the_client_has_are_not_counted(pool: PgPool) {
    let servers = Servers::start().await;
    let node = servers.idle_node(pool.clone(), &[]).await;
    let (finish, counted) = counting(&node);
    published(&node, "demo", "1.0.0", &bytes()).await;
    let (path, tag) = (path("1.0.0", "tarball"), format!("\"{}\"", Sha256Hex::of(&bytes())));

    let head = node.ask("HEAD", &path, &[], None).await;
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, "300000", 0));
    let same = get_with(&node, &path, &[("if-none-match", &tag)]).await;
    assert_eq!((same.status, same.body.len(), same.header("etag")), (304, 0, tag.as_str()));
    for (headers, status, range, body) in [
        (vec![("range", "bytes=10-19")], 206, "bytes 10-19/300000", &bytes()[10..20]),
        (vec![("range", "bytes=-5")], 206, "bytes 299995-299999/300000", &bytes()[299_995..]),
        (
            vec![("range", "bytes=0-299998"), ("if-range", &tag)],
            206,
            "bytes 0-299998/300000",
            &bytes()[..299_999],
        ),
    ] {
        let part = get_with(&node, &path, &headers).await;
        assert_eq!((part.status, part.header("content-range")), (status, range));
        assert!(part.body == body, "{range}");
    }
    let outside = get_with(&node, &path, &[("range", "bytes=300000-")]).await;
    outside.problem(416);
    assert_eq!(outside.header("content-range"), "bytes */300000");
    // A client that goes away before the end has no file.
    let request = axum::http::Request::get(&path).body(axum::body::Body::empty()).unwrap();
    let mut broken = node.router().oneshot(request).await.unwrap().into_body();
    assert!(broken.frame().await.unwrap().is_ok());
    drop(broken);
    finish.cancel();
    counted.await.unwrap().unwrap();
    assert_eq!(servers.batches().await, []);

    // A range that is the whole file, the part that finishes one, and one of a file that is no longer this one, are
    // downloads.
    let (finish, counted) = counting(&node);
    assert_eq!(get_with(&node, &path, &[("range", "bytes=100000-")]).await.status, 206);
    assert_eq!(get_with(&node, &path, &[("range", "bytes=0-")]).await.status, 206);
    let other = get_with(&node, &path, &[("range", "bytes=0-1"), ("if-range", "\"other\"")]).await;
    assert_eq!((other.status, other.body.len()), (200, 300_000));
    finish.cancel();
    counted.await.unwrap().unwrap();
    assert_eq!(downloads(&servers.batches().await), 3);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_redirect_is_counted_before_it_is_sent(pool: PgPool) {
    let servers = Servers::start().await;
    let node = servers.idle_node(pool.clone(), &["--downloads=redirect"]).await;
    let (finish, counted) = counting(&node);
    published(&node, "demo", "1.0.0", &bytes()).await;
    let redirect = node.get(&path("1.0.0", "tarball")).await;
    assert_eq!((redirect.status, redirect.header("cache-control")), (302, "private, max-age=60"));
    assert_eq!(servers.batches().await.len(), 1);
    let location = redirect.header("location");
    assert!(
        location.starts_with(&servers.s3.endpoint()) && location.contains("X-Amz-Signature="),
        "{location}"
    );
    let part = get_with(&node, &path("1.0.0", "tarball"), &[("range", "bytes=1-2")]).await;
    assert_eq!(part.status, 302);
    assert_eq!(node.ask("HEAD", &path("1.0.0", "tarball"), &[], None).await.status, 200);
    finish.cancel();
    counted.await.unwrap().unwrap();
    assert_eq!(servers.batches().await.len(), 1);
}

#[sqlx::test(migrations = "../migrations")]
async fn downloads_go_on_while_the_bus_is_away(pool: PgPool) {
    let mut servers = Servers::start().await;
    let node = servers.idle_node(pool.clone(), &[]).await;
    published(&node, "demo", "1.0.0", &bytes()).await;
    let (finish, counted) = counting(&node);
    servers.nats.kill9().await.unwrap();
    for _ in 0..3 {
        assert_eq!(node.get(&path("1.0.0", "tarball")).await.body.len(), 300_000);
    }
    servers.nats.restart().await.unwrap();
    // A drain waits for the bus, but not as long as a machine may take that is busy.
    servers.wait_for_batches(|batches| downloads(batches) == 3).await;
    finish.cancel();
    counted.await.unwrap().unwrap();
    let batches = servers.batches().await;
    assert_eq!(downloads(&batches), 3, "{batches:?}");
    // Those that waited are told at once, in any order.
    let mut numbers: Vec<u64> = batches.iter().map(|batch| batch.batch).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
}

#[sqlx::test(migrations = "../migrations")]
async fn what_cannot_be_had_says_why(pool: PgPool) {
    let servers = Servers::start().await;
    let node = servers.idle_node(pool.clone(), &[]).await;
    let held = published(&node, "demo", "1.0.0", b"bytes").await;
    for (path, status) in [
        (path("1.0.0", "sandwich"), 404),
        (path("1.0.0", "tarball.tar.gz"), 404),
        (path("1.0.0", "tarball%2f.."), 404),
        (path("1.0.0", "debian"), 404),
        (path("1.0.0", "tarball?features=no-default"), 404),
        (path("1.0.0", "tarball?features=x"), 400),
        (path("9.9.9", "tarball"), 404),
        ("/api/v1/crates/demo/1.0.0/any/tarball".into(), 404),
        ("/api/v1/crates/demo/1.0.0/..%2f../tarball".into(), 404),
        ("/api/v1/crates/nope/latest/any/metadata".into(), 404),
    ] {
        let answer = node.get(&path).await;
        answer.problem(status);
        assert_eq!(answer.header("cache-control") == "no-store", status == 400, "{path}");
    }
    // An object that is lost is a fault of ours, and no download.
    let object = format!("artifacts/{}/{}/{}", held.id, held.attempt, tarball_name("demo", "1.0.0"));
    node.app.objects.delete(&object).await.unwrap();
    node.get(&path("1.0.0", "tarball")).await.problem(500);

    sqlx::query("UPDATE versions SET yanked = true").execute(&pool).await.unwrap();
    let yanked = node.ask("HEAD", &path("1.0.0", "tarball"), &[], None).await;
    assert_eq!((yanked.status, yanked.header("warning")), (200, "299 - \"this version is yanked\""));
    node.get(&path("latest", "tarball")).await.problem(404);
    block(&pool, "demo", "1.0.0").await;
    for file in ["tarball", "tarball.sig", "tarball.manifest"] {
        node.get(&path("1.0.0", file)).await.problem(410);
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn an_object_store_that_is_away_is_503(pool: PgPool) {
    let servers = Servers::start().await;
    published(&servers.idle_node(pool.clone(), &[]).await, "demo", "1.0.0", b"bytes").await;
    let node = Node::alone(pool).await;
    let answer = node.get(&path("1.0.0", "tarball")).await;
    answer.problem(503);
    assert_eq!(answer.header("retry-after"), "2");
    // What proves the file is in the database.
    assert_eq!(node.get(&path("1.0.0", "tarball.sig")).await.status, 200);
}
