//! Random schedules: whatever viewers and publishers do, each viewer sees each event of its topics once and in order.

use crate::{
    farm::{Farm, Node},
    publisher,
    viewer::Viewer,
};
use cratemill_protocol::JobId;
use rand::{Rng, SeedableRng, rngs::StdRng};
use sqlx::PgPool;

const STEPS: usize = 150;
const VIEWERS: usize = 6;
const TOPICS: [&str; 5] = ["queue", "builds", "job.1", "crate.bat", "topic.a"];

/// What a viewer follows, what it must have seen, and what it has.
struct Follower {
    topics: Vec<String>,
    follows_log: bool,
    expected: Vec<String>,
    seen: Vec<String>,
    last_id: String,
    connected: Option<Viewer>,
}

impl Follower {
    fn follows(&self, topic: &str) -> bool {
        self.topics.iter().any(|t| t == topic)
    }

    async fn connect(&mut self, node: &Node) {
        let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        self.connected = Some(Viewer::resume(node, &topics, &self.last_id).await);
    }

    /// Reads until it has seen so many events in all.
    async fn read_to(&mut self, count: usize) {
        let Some(viewer) = &mut self.connected else { return };
        while self.seen.len() < count {
            let event = viewer.next().await.expect("an event");
            self.seen.push(match &*event.name {
                "queue" => event.data["queued"].to_string(),
                "job" => event.data["message"].as_str().unwrap().to_owned(),
                "message" => format!("user {}", event.data["data"]),
                "log" => event.data["text"].as_str().unwrap().to_owned(),
                other => panic!("unexpected {other}: {}", event.data),
            });
            self.last_id.clone_from(&viewer.last_id);
        }
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn every_schedule_shows_each_event_once_and_in_order(pool: PgPool) {
    let seed = std::env::var("SCHEDULE_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("SCHEDULE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut farm = Farm::start(pool).await;
    let nodes = [publisher::node(&farm).await, publisher::node(&farm).await];
    let log = farm.job(1).await;
    let mut offset = 0;
    let mut followers: Vec<Follower> = (0..VIEWERS).map(|_| follower(&mut random, log)).collect();
    for step in 0..STEPS {
        let number = step.to_string();
        match random.random_range(0..100) {
            0..10 => publish_as_user(&nodes, &mut random, &mut followers, &number).await,
            10..25 => publish(&farm, &mut followers, "queue", &number).await,
            25..40 => publish(&farm, &mut followers, "job.1", &number).await,
            40..55 => publish(&farm, &mut followers, "crate.bat", &number).await,
            55..70 => {
                let number = format!("log {step};");
                farm.text(log, 1, offset, &number).await;
                offset += number.len();
                for follower in followers.iter_mut().filter(|follower| follower.follows_log) {
                    follower.expected.push(number.clone());
                }
            }
            70..98 => {
                let follower = &mut followers[random.random_range(0..VIEWERS)];
                if follower.connected.is_none() {
                    follower.connect(&nodes[random.random_range(0..nodes.len())]).await;
                } else {
                    let count = random.random_range(follower.seen.len()..=follower.expected.len());
                    follower.read_to(count).await;
                    if random.random_bool(0.7) {
                        follower.connected = None;
                    }
                }
            }
            _ => {
                farm.nats.kill9().await.unwrap();
                farm.nats.restart().await.unwrap();
            }
        }
    }
    for (number, follower) in followers.iter_mut().enumerate() {
        if follower.connected.is_none() {
            follower.connect(&nodes[number % nodes.len()]).await;
        }
        follower.read_to(follower.expected.len()).await;
        // Events, logs and user topics are three streams: each is in order, and between them there is none.
        for stream in ["log", "user", "event"] {
            let of = |all: &[String]| -> Vec<String> {
                all.iter().filter(|text| stream_of(text) == stream).cloned().collect()
            };
            let topics = &follower.topics;
            assert_eq!(of(&follower.seen), of(&follower.expected), "viewer {number}, {stream}, {topics:?}");
        }
    }
}

fn stream_of(text: &str) -> &'static str {
    ["log", "user"].into_iter().find(|start| text.starts_with(start)).unwrap_or("event")
}

fn follower(random: &mut StdRng, log: JobId) -> Follower {
    let mut topics: Vec<String> =
        TOPICS.iter().filter(|_| random.random_bool(0.5)).map(|topic| (*topic).to_owned()).collect();
    let follows_log = topics.is_empty() || random.random_bool(0.3);
    if follows_log {
        topics.push(format!("job.{log}.log"));
    }
    // From the start of the streams: what is published before it connects is its own too.
    let last_id = "0.0".to_owned();
    Follower { topics, follows_log, expected: Vec::new(), seen: Vec::new(), last_id, connected: None }
}

/// At any node, again until it is answered, and now and then once more.
async fn publish_as_user(nodes: &[Node], random: &mut StdRng, followers: &mut [Follower], number: &str) {
    for _ in 0..=u8::from(random.random_bool(0.3)) {
        let node = &nodes[random.random_range(0..nodes.len())];
        publisher::taken(|| publisher::publish(node, "topic.a", number, number.to_owned())).await;
    }
    for follower in followers.iter_mut().filter(|follower| follower.follows("topic.a")) {
        follower.expected.push(format!("user {number}"));
    }
}

async fn publish(farm: &Farm, followers: &mut [Follower], topic: &str, number: &str) {
    let value = number.parse().unwrap();
    match topic {
        "queue" => farm.queue_event(value).await,
        "job.1" => farm.job_event("hexyl", 1, value).await,
        _ => farm.job_event("bat", 2, value).await,
    };
    for follower in followers {
        let of_builds = topic != "queue" && follower.follows("builds");
        if follower.follows(topic) || of_builds {
            follower.expected.push(number.to_owned());
        }
    }
}
