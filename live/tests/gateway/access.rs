//! Who may publish, who may follow a private topic, and what is refused.

use crate::{
    farm::Farm,
    publisher::{self, post, publish, published, refused, send, token},
    viewer::{Viewer, request},
};
use cratemill_service::clock;
use reqwest::Method;
use sqlx::PgPool;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

#[sqlx::test(migrations = "../migrations")]
async fn every_publish_that_is_no_good_is_refused_with_the_reason(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = publisher::node(&farm).await;
    let may = token(&["topic.team.>"], &["topic.>"]);
    let with = |token: &str, topic: &str, body: &str| post(&node, topic, body.to_owned()).bearer_auth(token);

    let topic = "topic.team.a";
    refused(post(&node, topic, "1"), 401, "takes a token").await;
    refused(post(&node, topic, "1").basic_auth("a", Some("b")), 401, "takes a token").await;
    for bad in ["x", "a.b.c", &may[..may.len() - 1], &format!("{may}x")] {
        refused(with(bad, topic, "1"), 401, "not a token").await;
    }
    let expired = publisher::token_until(clock::now_s() - 31, &["topic.>"], &[]);
    refused(with(&expired, topic, "1"), 401, "expired").await;
    refused(with(&"x".repeat(5_000), topic, "1"), 401, "longer than").await;
    refused(with(&may, "topic.other", "1"), 403, "publish to topic.other").await;
    refused(with(&token(&[], &["topic.>"]), topic, "1"), 403, "publish to").await;

    for bad in ["queue", "topic", "topic.", "topic.a%20b", "topic.%3E", "topic.%ff"] {
        let answer = send(with(&may, bad, "1")).await;
        assert_eq!(answer.status(), 400, "{bad}");
    }
    refused(with(&may, "topic.*", "1"), 400, "a user topic is").await;
    for bad in ["", " ", "{", "[1,]", "nope", "\u{feff}1"] {
        refused(with(&may, topic, bad), 400, if bad.is_empty() { "empty" } else { "not JSON" }).await;
    }
    refused(with(&may, topic, &"[".repeat(1_000)), 400, "not JSON").await;
    refused(with(&may, topic, &("[".repeat(1_000) + &"]".repeat(1_000))), 400, "deep").await;
    refused(with(&may, topic, &"1".repeat(256 * 1024 + 1)), 413, "longer than 262144").await;
    for bad in ["", "ä", &"x".repeat(65), "a\tb"] {
        refused(with(&may, topic, "1").header("message-id", bad), 400, "message-id").await;
    }
    // None of them got to the bus.
    let first = published(with(&may, topic, "1").header("message-id", "x".repeat(64))).await;
    assert_eq!(first["sequence"], 1);
    assert_eq!(
        send(reqwest::Client::new().get(format!("{}/live/topics/{topic}", node.url))).await.status(),
        405
    );
}

#[sqlx::test(migrations = "../migrations")]
async fn a_private_topic_takes_a_token_and_all_topics_are_followed_or_none(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = publisher::node(&farm).await;
    let may = token(&[], &["topic.private.team.>"]);
    let topics = ["topic.private.team.a", "topic.public"];
    refused(request(&node, &topics), 401, "takes a token").await;
    refused(request(&node, &topics).query(&[("token", "x")]), 401, "not a token").await;
    let expired = publisher::token_until(clock::now_s() - 31, &[], &["topic.>"]);
    refused(request(&node, &topics).bearer_auth(&expired), 401, "expired").await;
    refused(request(&node, &topics).bearer_auth(token(&["topic.>"], &[])), 403, "follow topic.private").await;
    let more = ["topic.private.team.a", "topic.private.other"];
    refused(request(&node, &more).bearer_auth(&may), 403, "topic.private.other").await;
    // The header wins.
    refused(request(&node, &topics).query(&[("token", &may)]).bearer_auth("x"), 401, "not a token").await;

    let by_header = Viewer::answer(request(&node, &topics).bearer_auth(&may), String::new()).await;
    let by_query = Viewer::answer(request(&node, &topics).query(&[("token", &may)]), String::new()).await;
    for topic in topics {
        published(publish(&node, topic, "1", "1")).await;
    }
    for mut viewer in [by_header, by_query] {
        for topic in topics {
            assert_eq!(viewer.expect("message").await["topic"], topic);
        }
    }
    // Who follows only what is public shows nobody anything.
    assert_eq!(send(request(&node, &["topic.public", "queue"]).bearer_auth("x")).await.status(), 200);
    assert!(!node.process.log_tail().contains(&may));
}

#[sqlx::test(migrations = "../migrations")]
async fn without_a_secret_there_is_nothing_to_publish_with(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node().await;
    refused(publish(&node, "topic.a", "1", "1"), 403, "publishing is not configured").await;
    let private = request(&node, &["topic.private.a"]).bearer_auth(token(&[], &["topic.>"]));
    refused(private, 403, "publishing is not configured").await;
    Viewer::open(&node, &["topic.a"]).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn the_program_makes_tokens(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = publisher::node(&farm).await;
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_cratemill-live"))
        .args(["token", "--publish", "topic.a", "--publish", "topic.team.>", "--expires-in-s", "60"])
        .env("LIVE_TOKEN_SECRET", publisher::SECRET)
        .output()
        .await
        .unwrap();
    let token = String::from_utf8(output.stdout).unwrap();
    published(post(&node, "topic.team.b", "1").bearer_auth(token.trim_end())).await;
    refused(post(&node, "topic.b", "1").bearer_auth(token.trim_end()), 403, "publish to topic.b").await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_page_of_a_known_origin_may_publish(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node_with(&[("CORS_ORIGIN", "https://a.example")]).await;
    let url = format!("{}/live/topics/topic.a", node.url);
    let preflight = reqwest::Client::new()
        .request(Method::OPTIONS, url)
        .header("origin", "https://a.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,content-type,message-id");
    let answer = send(preflight).await;
    assert_eq!(answer.status(), 200);
    let allowed = |name: &str| answer.headers()[name].to_str().unwrap().to_lowercase();
    assert_eq!(allowed("access-control-allow-origin"), "https://a.example");
    assert!(allowed("access-control-allow-methods").contains("post"));
    for header in ["authorization", "content-type", "message-id", "last-event-id"] {
        assert!(allowed("access-control-allow-headers").contains(header), "{header}");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_node_publishes_so_many_at_once(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = publisher::node(&farm).await;
    let token = token(&["topic.a"], &[]);
    let head = format!(
        "POST /live/topics/topic.a HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: 1\r\n\
         expect: 100-continue\r\n\r\n"
    );
    // All at once: each has so long to send its body.
    let open = (0..256).map(|_| async {
        let mut socket = TcpStream::connect(("127.0.0.1", node.port)).await.unwrap();
        socket.write_all(head.as_bytes()).await.unwrap();
        // It asks for the body once it has let the request in.
        let mut line = [0; 25];
        socket.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"HTTP/1.1 100 Continue\r\n\r\n");
        socket
    });
    let mut waiting = futures_util::future::join_all(open).await;
    refused(publish(&node, "topic.a", "1", "1"), 503, "as much as it can").await;
    let mut last = waiting.pop().unwrap();
    last.write_all(b"1").await.unwrap();
    let mut status = [0; 12];
    last.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 201");
    published(publish(&node, "topic.a", "1", "1")).await;
    node.metric_reaches("cratemill_live_publishes_refused_total{reason=\"full\"} ", 1.0).await;
}
