use crate::support::{Node, Servers, add_builder, add_crate, finish, running_job};
use axum::{body::Body, http::Request};
use bytes::Bytes;
use cratemill_protocol::{
    Attempt, JobId, Sha256Hex,
    token::{Claims, Purpose},
};
use cratemill_service::clock;
use cratemill_store::{PgPool, queue::End, uploads};
use futures_util::stream;
use std::io;

const PATH: &str = "/api/v1/jobs/1/artifacts/demo.tar.gz";

async fn running(pool: &PgPool) -> cratemill_store::queue::Held {
    add_crate(pool, "demo", &[("1.0.0", false)]).await;
    let (builder, _) = add_builder(pool, "ada").await;
    running_job(pool, "demo", "1.0.0", builder).await
}

/// A body of many chunks.
fn chunks(bytes: &[u8]) -> Body {
    let chunks: Vec<io::Result<Bytes>> =
        bytes.chunks(10_000).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
    Body::from_stream(stream::iter(chunks))
}

fn put(path: &str, token: &str, sha256: &str, length: &str, body: Body) -> Request<Body> {
    let mut request = Request::put(path).header("authorization", token);
    for (name, value) in [("x-sha256", sha256), ("content-length", length)] {
        if !value.is_empty() {
            request = request.header(name, value);
        }
    }
    request.body(body).unwrap()
}

async fn recorded(pool: &PgPool) -> Vec<uploads::Upload> {
    uploads::of_attempt(&mut pool.acquire().await.unwrap(), JobId(1), Attempt(1)).await.unwrap()
}

#[sqlx::test(migrations = "../migrations")]
async fn a_file_is_stored_and_recorded(pool: PgPool) {
    let servers = Servers::start().await;
    let node = servers.node(pool.clone(), &[]).await;
    let held = running(&pool).await;
    let bytes: Vec<u8> = (0..500_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let (sha256, length) = (Sha256Hex::of(&bytes).to_string(), bytes.len().to_string());
    let token = node.token(JobId(1), Attempt(1));
    let answer = node.send(put(PATH, &token, &sha256, &length, chunks(&bytes))).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    insta::assert_json_snapshot!(answer.json());
    let first = recorded(&pool).await;
    assert_eq!((first.len(), first[0].sha256.to_string()), (1, sha256.clone()));
    assert!(node.app.objects.get_bytes(&first[0].object, 1_000_000).await.unwrap() == bytes);

    // The answer was lost: the same again changes nothing.
    assert_eq!(node.send(put(PATH, &token, &sha256, &length, chunks(&bytes))).await.status, 201);
    assert_eq!(recorded(&pool).await[0].object, first[0].object);
    // Another file under the same name takes its place.
    let other = Sha256Hex::of(b"other").to_string();
    assert_eq!(node.send(put(PATH, &token, &other, "5", Body::from("other"))).await.status, 201);
    assert_eq!(recorded(&pool).await[0].sha256.to_string(), other);
    assert!(
        node.app.objects.get_bytes(&first[0].object, 1_000_000).await.is_err(),
        "what was replaced is gone"
    );
    // An empty file is a file.
    let empty = Sha256Hex::of(b"").to_string();
    let path = "/api/v1/jobs/1/artifacts/empty+1.txt";
    assert_eq!(node.send(put(path, &token, &empty, "0", Body::empty())).await.status, 201);

    finish(&pool, &held, End::Succeeded).await;
    node.send(put(PATH, &token, &other, "5", Body::from("other"))).await.problem(409);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_body_that_is_wrong_leaves_nothing(pool: PgPool) {
    let servers = Servers::start().await;
    let node = servers.node(pool.clone(), &[]).await;
    running(&pool).await;
    let token = node.token(JobId(1), Attempt(1));
    let bytes = vec![7; 100_000];
    let right = Sha256Hex::of(&bytes).to_string();
    let wrong = Sha256Hex::of(b"wrong").to_string();
    let broken =
        Body::from_stream(stream::iter([Ok(Bytes::from(bytes.clone())), Err(io::Error::other("gone"))]));
    for (sha256, length, body, status) in [
        (&wrong, "100000", chunks(&bytes), 422),
        (&right, "100001", chunks(&bytes), 400),
        (&right, "99999", chunks(&bytes), 400),
        (&right, "200000", broken, 400),
    ] {
        node.send(put(PATH, &token, sha256, length, body)).await.problem(status);
        assert!(recorded(&pool).await.is_empty(), "{length}");
    }
    let objects = servers.objects();
    assert!(objects.is_empty(), "{objects:?}");
}

#[sqlx::test(migrations = "../migrations")]
async fn headers_and_tokens_are_checked_first(pool: PgPool) {
    let node = Node::alone(pool.clone()).await;
    running(&pool).await;
    let good = node.token(JobId(1), Attempt(1));
    let sha256 = Sha256Hex::of(b"x").to_string();
    let claims =
        Claims { job: JobId(1), attempt: Attempt(1), purpose: Purpose::Build, expires: clock::now_s() };
    let expired = format!("Bearer {}", node.app.signer.sign(&claims).secret());
    let dotted = "/api/v1/jobs/1/artifacts/..%2f..%2fx";
    let long = format!("/api/v1/jobs/1/artifacts/{}", "x".repeat(161));
    for (path, token, sha256, length, status) in [
        (PATH, "", sha256.as_str(), "1", 401),
        (PATH, "Bearer nonsense", &sha256, "1", 401),
        (PATH, &expired, &sha256, "1", 401),
        (PATH, &node.token(JobId(2), Attempt(1)), &sha256, "1", 403),
        (PATH, &node.token(JobId(1), Attempt(2)), &sha256, "1", 409),
        (PATH, &good, "", "1", 400),
        (PATH, &good, "abc", "1", 400),
        (PATH, &good, &sha256, "", 411),
        (PATH, &good, &sha256, "-1", 400),
        (PATH, &good, &sha256, "1000001", 413),
        (PATH, &good, &sha256, "99999999999999999999", 400),
        (dotted, &good, &sha256, "1", 400),
        ("/api/v1/jobs/1/artifacts/.hidden", &good, &sha256, "1", 400),
        (&long, &good, &sha256, "1", 400),
        ("/api/v1/jobs/x/artifacts/a", &good, &sha256, "1", 404),
    ] {
        let answer = node.send(put(path, token, sha256, length, Body::from("x"))).await;
        answer.problem(status);
        assert_eq!(answer.header("www-authenticate").is_empty(), status != 401, "{path}");
    }
    // All is good but the object store, which is away.
    let answer = node.send(put(PATH, &good, &sha256, "1", Body::from("x"))).await;
    answer.problem(503);
    assert_eq!(answer.header("retry-after"), "2");
    assert!(recorded(&pool).await.is_empty());
}
