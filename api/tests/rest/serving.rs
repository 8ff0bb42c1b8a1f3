//! How artifacts are served: what HTTP promises to clients and caches.

use crate::support::{Answer, Node, Servers, TARGET, block, published};
use cratemill_protocol::Sha256Hex;
use cratemill_store::PgPool;

const PINNED: &str = "public, max-age=31536000, immutable";
const YANKED: &str = "299 - \"this version is yanked\"";
const SIZE: usize = 1_000;

fn path(version: &str, file: &str) -> String {
    format!("/api/v1/crates/demo/{version}/{TARGET}/{file}")
}

fn bytes() -> Vec<u8> {
    (0..SIZE).map(|n| n.to_le_bytes()[0]).collect()
}

async fn get(node: &Node, version: &str, headers: &[(&str, &str)]) -> Answer {
    let answer = node.ask("GET", &path(version, "tarball"), headers, None).await;
    // Whatever is asked, and however it is answered.
    assert_eq!((answer.header("vary"), answer.header("content-encoding")), ("", ""), "{headers:?}");
    answer
}

/// What a client asks with, the status, and the part of the file that it gets.
#[sqlx::test(migrations = "../migrations")]
async fn conditions_and_ranges(pool: PgPool) {
    let servers = Servers::start().await;
    let node = servers.node(pool.clone(), &[]).await;
    published(&node, "demo", "1.0.0", &bytes()).await;
    let tag = format!("\"{}\"", Sha256Hex::of(&bytes()));
    let (weak, list) = (format!("W/{tag}"), format!("\"x\", W/{tag}"));
    let whole = (200, 0..SIZE);
    let had = (304, 0..0);
    for (headers, (status, part)) in [
        (vec![], whole.clone()),
        (vec![("accept-encoding", "zstd,gzip,deflate,br")], whole.clone()),
        (vec![("if-none-match", tag.as_str())], had.clone()),
        (vec![("if-none-match", &weak)], had.clone()),
        (vec![("if-none-match", &list)], had.clone()),
        (vec![("if-none-match", "*")], had.clone()),
        (vec![("if-none-match", "\"x\""), ("if-none-match", &tag)], had.clone()),
        (vec![("if-none-match", &tag), ("range", "bytes=0-1")], had),
        (vec![("if-none-match", "\"x\"")], whole.clone()),
        (vec![("if-none-match", "\"x\""), ("range", "bytes=0-1")], (206, 0..2)),
        (vec![("range", "bytes=10-19")], (206, 10..20)),
        (vec![("range", "bytes=990-")], (206, 990..SIZE)),
        (vec![("range", "bytes=990-99999999999999999999")], (206, 990..SIZE)),
        (vec![("range", "bytes=-5")], (206, 995..SIZE)),
        (vec![("range", "bytes=-99999999999999999999")], (206, 0..SIZE)),
        (vec![("range", "bytes=0-")], (206, 0..SIZE)),
        (vec![("range", "bytes=0-1,5-6")], whole.clone()),
        (vec![("range", "bytes=0-1"), ("range", "bytes=5-6")], whole.clone()),
        (vec![("range", "bytes=5-4")], whole.clone()),
        (vec![("range", "bytes=--5")], whole.clone()),
        (vec![("range", "rows=1-2")], whole.clone()),
        (vec![("range", "bytes=0-1"), ("if-range", &tag)], (206, 0..2)),
        (vec![("range", "bytes=0-1"), ("if-range", &weak)], whole.clone()),
        (vec![("range", "bytes=0-1"), ("if-range", "\"x\"")], whole.clone()),
        (vec![("range", "bytes=0-1"), ("if-range", "Wed, 21 Oct 2015 07:28:00 GMT")], whole),
    ] {
        let answer = get(&node, "1.0.0", &headers).await;
        assert_eq!(answer.status, status, "{headers:?}: {}", answer.text());
        assert!(answer.body == bytes()[part.clone()], "{headers:?}");
        assert_eq!((answer.header("etag"), answer.header("cache-control")), (tag.as_str(), PINNED));
        let range = format!("bytes {}-{}/{SIZE}", part.start, part.end.wrapping_sub(1));
        assert_eq!(answer.header("content-range"), if status == 206 { &range } else { "" }, "{headers:?}");
        // Of what the client has, where it has it.
        let length = if status == 304 { SIZE } else { part.len() };
        assert_eq!(answer.header("content-length"), length.to_string(), "{headers:?}");
    }
    for outside in ["bytes=1000-", "bytes=-0", "bytes=99999999999999999999-"] {
        let answer = get(&node, "1.0.0", &[("range", outside)]).await;
        answer.problem(416);
        assert_eq!(
            (answer.header("content-range"), answer.header("cache-control")),
            ("bytes */1000", "no-store")
        );
    }
}

/// However the file is asked for, an answer says as much of it as the others.
#[sqlx::test(migrations = "../migrations")]
async fn heads_say_the_same(pool: PgPool) {
    let servers = Servers::start().await;
    let stream = servers.node(pool.clone(), &[]).await;
    let redirect = servers.node(pool.clone(), &["--downloads=redirect"]).await;
    published(&stream, "demo", "1.0.0", &bytes()).await;
    let tag = format!("\"{}\"", Sha256Hex::of(&bytes()));
    for yanked in [false, true] {
        let (warning, versions) =
            if yanked { (YANKED, &["1.0.0"][..]) } else { ("", &["1.0.0", "latest"][..]) };
        for version in versions {
            let cache = if *version == "latest" { "public, max-age=60" } else { PINNED };
            for node in [&stream, &redirect] {
                let head = node.ask("HEAD", &path(version, "tarball"), &[], None).await;
                assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, "1000", 0));
                let same = get(node, version, &[("if-none-match", &tag)]).await;
                assert_eq!((same.status, same.body.len()), (304, 0));
                let known = [("if-none-match", &*tag)];
                let same_head = node.ask("HEAD", &path(version, "tarball"), &known, None).await;
                assert_eq!((same_head.status, same_head.header("content-length")), (304, "1000"));
                for answer in [head, same, same_head] {
                    assert_eq!((answer.header("etag"), answer.header("cache-control")), (&*tag, cache));
                    assert_eq!(answer.header("warning"), warning);
                }
            }
            assert_eq!(get(&stream, version, &[]).await.header("warning"), warning);
            let sent = get(&redirect, version, &[]).await;
            let place = sent.header("location");
            assert!(sent.status == 302 && place.contains("X-Amz-Expires=300"), "{} {place}", sent.status);
            assert_eq!(sent.header("cache-control"), "private, max-age=60");
            assert_eq!((sent.header("warning"), sent.header("etag")), (warning, ""));
        }
        sqlx::query("UPDATE versions SET yanked = true").execute(&pool).await.unwrap();
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn refusals_are_kept_for_as_long_as_they_hold(pool: PgPool) {
    let servers = Servers::start().await;
    let node = servers.node(pool.clone(), &[]).await;
    published(&node, "demo", "1.0.0", &bytes()).await;
    let refused = async |path: String, status: u16, cache: &str| {
        for method in ["GET", "HEAD"] {
            let answer = node.ask(method, &path, &[], None).await;
            assert_eq!((answer.status, answer.header("cache-control")), (status, cache), "{path}");
        }
        node.get(&path).await.problem(status);
    };
    let seconds = "public, max-age=10";
    for missing in [
        path("1.0.0", "debian"),
        path("1.0.0", "tarball?features=no-default"),
        path("1.0.0", "sandwich"),
        path("9.9.9", "tarball"),
        path("9.9.9", "tarball.sig"),
        path("not-a-version", "tarball"),
        "/api/v1/crates/demo/1.0.0/aarch64-unknown-linux-gnu/tarball".into(),
        "/api/v1/crates/nope/latest/any/metadata".into(),
        "/api/v1/crates/no%20name/latest/any/metadata".into(),
    ] {
        refused(missing, 404, seconds).await;
    }
    refused(path("1.0.0", "tarball?features=x"), 400, "no-store").await;
    block(&pool, "demo", "1.0.0").await;
    refused(path("1.0.0", "tarball"), 410, "public, max-age=60").await;
    refused(path("1.0.0", "tarball.sig"), 410, "public, max-age=60").await;
    refused(path("latest", "tarball"), 404, seconds).await;
    // On other routes nothing of this is kept.
    let elsewhere = node.get("/api/v1/crates/nope").await;
    assert_eq!((elsewhere.status, elsewhere.header("cache-control")), (404, "no-store"));
}
