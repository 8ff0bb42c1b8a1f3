//! The bus goes away and comes back: viewers stay connected and miss nothing.

use crate::{
    farm::{Farm, Node, PATIENCE},
    proxy::Proxy,
    viewer::Viewer,
    websocket::{Socket, queued},
};
use cratemill_protocol::{JobState, bus::LogBody};
use sqlx::PgPool;
use std::time::{Duration, Instant};

/// Longer than what a client of the bus gives up after, and than heartbeats of a proxy.
const AWAY: Duration = Duration::from_secs(30);

#[sqlx::test(migrations = "../migrations")]
async fn the_bus_is_killed_and_nothing_is_missed(pool: PgPool) {
    let mut farm = Farm::start(pool).await;
    let node = farm.node().await;
    let job = farm.job(1).await;
    let log = format!("job.{job}.log");
    let mut events = Viewer::open(&node, &["queue"]).await;
    let mut logs = Viewer::open(&node, &[&log]).await;
    for round in 0..3 {
        for number in 0..20 {
            farm.queue_event(round * 20 + number).await;
        }
        farm.text(job, 1, usize::try_from(round).unwrap() * 2, "x\n").await;
        farm.nats.kill9().await.unwrap();
        farm.nats.restart().await.unwrap();
    }
    farm.log(job, 1, LogBody::End { state: JobState::Succeeded }).await;
    assert_eq!(events.queue_numbers(60).await, (0..60).collect::<Vec<_>>());
    assert_eq!(logs.log(1, 0).await.0, "x\nx\nx\n");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_node_that_was_cut_off_repairs_what_it_missed_before_it_goes_on(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let url = farm.nats.url("live").unwrap();
    let (user, address) = url.rsplit_once('@').unwrap();
    let proxy = Proxy::to(address.to_owned()).await;
    let node = farm.node_with(&[("NATS_URL", &format!("{user}@127.0.0.1:{}", proxy.port))]).await;
    let mut viewer = Viewer::open(&node, &["queue"]).await;
    farm.queue_event(0).await;
    assert_eq!(viewer.queue_numbers(1).await, [0]);
    proxy.cut();
    for number in 1..=500 {
        farm.queue_event(number).await;
    }
    // One that comes while the bus is away waits for it, and so does its replay.
    let mut resumed = Viewer::resume(&node, &["queue"], "0").await;
    proxy.heal();
    assert_eq!(viewer.queue_numbers(500).await, (1..=500).collect::<Vec<_>>());
    assert_eq!(resumed.queue_numbers(501).await, (0..=500).collect::<Vec<_>>());
    node.metric_reaches("cratemill_live_repairs_total{stream=\"EVENTS\"} ", 1.0).await;
}

/// Every connection that this node has stays; one that has no streams yet sends viewers elsewhere.
#[sqlx::test(migrations = "../migrations")]
async fn the_bus_is_away_for_half_a_minute_and_viewers_wait_for_it(pool: PgPool) {
    let mut farm = Farm::start(pool).await;
    let env = [("VIEWER_HEARTBEAT_S", "1")];
    let node = farm.node_with(&env).await;
    let job = farm.job(1).await;
    let log = format!("job.{job}.log");
    let mut events = Viewer::open(&node, &["queue"]).await;
    let mut logs = Viewer::open(&node, &[&log]).await;
    let mut socket = Socket::open(&node).await;
    socket.subscribe("queue", None).await;
    socket.subscribe(&log, None).await;
    farm.queue_event(0).await;
    farm.text(job, 1, 0, "0\n").await;
    let mut seen = Seen::default();
    assert_eq!(events.queue_numbers(1).await, [0]);
    assert_eq!(logs.expect("log").await["text"], "0\n");
    seen.read(&mut socket, 2).await;

    farm.nats.stop().await.unwrap();
    let away = Instant::now();
    let fresh = farm.starting_node_with(&env).await;
    node.is_unready().await;
    for path in ["/readyz", "/live/events?topic=queue", &format!("/live/events?topic={log}")] {
        let answer = answer_of(&fresh, path).await;
        assert_eq!(answer.status(), 503, "{path}");
        assert_eq!(answer.headers().contains_key("retry-after"), path != "/readyz", "{path}");
    }
    // Where the streams are known, one that comes now, or back, waits for them too.
    let mut late = Viewer::open(&node, &["queue"]).await;
    let mut back = Viewer::resume(&node, &["queue"], "0").await;
    assert_eq!(back.queue_numbers(1).await, [0]);
    while away.elapsed() < AWAY {
        for viewer in [&mut events, &mut logs, &mut late, &mut back] {
            viewer.sign_of_life().await;
        }
        socket.sign_of_life().await;
    }
    assert_eq!(answer_of(&node, "/readyz").await.status(), 503);
    farm.nats.restart().await.unwrap();
    for number in 1..=50 {
        farm.queue_event(number).await;
        let text = format!("{number}\n");
        farm.text(job, 1, seen_text(number).len(), &text).await;
    }
    farm.log(job, 1, LogBody::End { state: JobState::Succeeded }).await;
    for viewer in [&mut events, &mut late, &mut back] {
        assert_eq!(viewer.queue_numbers(50).await, (1..=50).collect::<Vec<_>>());
    }
    assert_eq!(format!("0\n{}", logs.log(1, 2).await.0), seen_text(51));
    seen.read(&mut socket, 101).await;
    assert_eq!((seen.numbers, seen.text), ((0..=50).collect(), seen_text(51)));
    for node in [&node, &fresh] {
        node.is_ready().await;
    }
    assert_eq!(Viewer::resume(&fresh, &["queue"], "1").await.queue_numbers(50).await.len(), 50);
}

/// The log before this number.
fn seen_text(number: u64) -> String {
    (0..number).map(|number| format!("{number}\n")).collect::<Vec<_>>().concat()
}

/// Of the queue and of a log, over one socket.
#[derive(Default)]
struct Seen {
    numbers: Vec<u64>,
    text: String,
}

impl Seen {
    async fn read(&mut self, socket: &mut Socket, count: usize) {
        for _ in 0..count {
            let message = socket.next().await;
            match message["event"].as_str().unwrap() {
                "queue" => self.numbers.push(queued(&message)),
                "log" => {
                    assert_eq!(message["data"]["offset"], self.text.len(), "{message}");
                    self.text.push_str(message["data"]["text"].as_str().unwrap());
                }
                other => assert_eq!(other, "end"),
            }
        }
    }
}

/// Once it listens.
async fn answer_of(node: &Node, path: &str) -> reqwest::Response {
    let answers = async {
        loop {
            match reqwest::get(format!("{}{path}", node.url)).await {
                Ok(answer) => return answer,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, answers).await.expect("an answer")
}
