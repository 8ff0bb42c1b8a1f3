use crate::support::{Answer, Node};
use axum::{
    Router,
    body::Body,
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
    routing::get,
};
use cratemill_protocol::{Attempt, JobId};
use cratemill_store::PgPool;

const BASE: &str = "/api/v1/jobs/1";

/// A private registry: it gives one file to who has its token. Ends with the test's runtime.
async fn registry() -> String {
    let file = async |headers: HeaderMap| match headers
        .get("authorization")
        .map(axum::http::HeaderValue::as_bytes)
    {
        Some(b"registry-secret") => "a crate".into_response(),
        _ => StatusCode::UNAUTHORIZED.into_response(),
    };
    let endless = async || {
        let chunk = bytes::Bytes::from(vec![0; 1 << 20]);
        Body::from_stream(futures_util::stream::repeat(Ok::<_, std::convert::Infallible>(chunk)))
    };
    let router = Router::new()
        .route("/demo.crate", get(file))
        .route("/endless", get(endless))
        .route("/broken", get(async || StatusCode::BAD_GATEWAY));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(cratemill_service::http::serve(
        listener,
        router,
        tokio_util::sync::CancellationToken::new(),
    ));
    format!("http://{address}")
}

async fn fetch(node: &Node, link: &str) -> Answer {
    let token = node.token(JobId(1), Attempt(1));
    node.ask("GET", link, &[("authorization", &token)], None).await
}

#[sqlx::test(migrations = "../migrations")]
async fn a_private_source_comes_through_the_node(pool: PgPool) {
    let registry = registry().await;
    let node = Node::alone_with(pool.clone(), &["--registry-token=registry-secret"]).await;
    let link = |job: i64, path: &str| node.app.sources.link(BASE, JobId(job), &format!("{registry}{path}"));
    let good = link(1, "/demo.crate");
    let answer = fetch(&node, &good).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "a crate"));
    assert_eq!(answer.header("content-length"), "7");

    node.get(&good).await.problem(401);
    let other = node.token(JobId(2), Attempt(1));
    node.ask("GET", &good, &[("authorization", &other)], None).await.problem(403);
    for (link, status) in [
        (link(2, "/demo.crate"), 403),
        (format!("{good}x"), 403),
        (good.replace("url=", "url=a"), 403),
        (format!("{BASE}/source"), 400),
        (format!("{BASE}/source?url=&seal="), 403),
        (link(1, "/nothing"), 502),
        (link(1, "/broken"), 503),
        (node.app.sources.link(BASE, JobId(1), "http://127.0.0.1:9/"), 503),
        (node.app.sources.link(BASE, JobId(1), "no url"), 503),
    ] {
        let answer = fetch(&node, &link).await;
        answer.problem(status);
        assert!(!answer.text().contains("127.0.0.1"), "{}", answer.text());
    }
    let request = axum::http::Request::get(link(1, "/endless"))
        .header("authorization", node.token(JobId(1), Attempt(1)));
    let response =
        tower::ServiceExt::oneshot(node.router(), request.body(Body::empty()).unwrap()).await.unwrap();
    let most = usize::try_from(cratemill_protocol::Limits::default().source_bytes).unwrap();
    assert!(axum::body::to_bytes(response.into_body(), 2 * most).await.is_err());

    // With another token the registry refuses, without one there is nothing private here.
    let wrong = Node::alone_with(pool.clone(), &["--registry-token=wrong"]).await;
    fetch(&wrong, &good).await.problem(502);
    fetch(&Node::alone(pool).await, &good).await.problem(404);
}
