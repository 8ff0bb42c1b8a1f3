//! Every user of the shipped `nats.conf`, against a real server: what it needs works, and what it must not do is refused.

#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

use async_nats::{
    Client, ConnectOptions, Event, ServerAddr,
    jetstream::{self, consumer::pull, stream},
};
use cratemill_protocol::{Attempt, JobId, subjects};
use cratemill_stack::{data_dir::DataDir, nats::Nats, secrets::Secrets};
use futures_util::StreamExt;
use std::time::Duration;
use tokio::{sync::mpsc, time::timeout};

/// A wrong permission shows as silence; a right one takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// An election takes half a second to ten; on a busy machine candidates miss each other again and again.
const ELECTION: Duration = Duration::from_mins(2);

struct User {
    client: Client,
    jetstream: jetstream::Context,
    errors: mpsc::UnboundedReceiver<String>,
}

impl User {
    async fn connect(nats: &Nats, name: &str) -> Self {
        let (sender, errors) = mpsc::unbounded_channel();
        let url = nats.url(name).unwrap();
        let servers: Vec<ServerAddr> = url.split(',').map(|url| url.parse().unwrap()).collect();
        let password = servers[0].password().unwrap().to_owned();
        // The client does not take them from the URL by itself.
        let client = ConnectOptions::with_user_and_password(name.into(), password)
            .custom_inbox_prefix(format!("_INBOX.{name}"))
            .event_callback(move |event| {
                let sender = sender.clone();
                async move {
                    if let Event::ServerError(error) = event {
                        let _ = sender.send(error.to_string());
                    }
                }
            })
            .connect(servers)
            .await
            .unwrap();
        Self { jetstream: jetstream::new(client.clone()), client, errors }
    }

    async fn cannot_publish(&mut self, subject: &str) {
        self.client.publish(subject.to_owned(), "x".into()).await.unwrap();
        self.is_refused(subject).await;
    }

    async fn cannot_subscribe(&mut self, subject: &str) {
        let _subscriber = self.client.subscribe(subject.to_owned()).await.unwrap();
        self.is_refused(subject).await;
    }

    async fn is_refused(&mut self, subject: &str) {
        let error = timeout(PATIENCE, self.errors.recv()).await;
        let error = error.unwrap_or_else(|_| panic!("{subject} is allowed")).unwrap();
        let error = error.to_lowercase();
        assert!(
            error.contains("permissions violation") && error.contains(&subject.to_lowercase()),
            "{error}"
        );
    }

    /// An answer on its connection: the server has its subscriptions. A flush only empties the client's own buffer.
    async fn settles(&self) {
        timeout(PATIENCE, self.jetstream.get_stream(subjects::LOGS_STREAM)).await.unwrap().unwrap();
    }

    async fn stores(&self, subject: String) {
        let ack = self.jetstream.publish(subject.clone(), "payload".into()).await.unwrap();
        timeout(PATIENCE, ack).await.unwrap_or_else(|_| panic!("{subject} is not allowed")).unwrap();
    }

    async fn consumer(&self, stream: &str, durable: Option<&str>) -> jetstream::consumer::PullConsumer {
        let config = pull::Config { durable_name: durable.map(str::to_owned), ..Default::default() };
        let stream = timeout(PATIENCE, self.jetstream.get_stream(stream)).await.unwrap().unwrap();
        match durable {
            Some(name) => stream.get_or_create_consumer(name, config).await.unwrap(),
            None => stream.create_consumer(config).await.unwrap(),
        }
    }
}

async fn takes_one(consumer: &jetstream::consumer::PullConsumer) -> String {
    let mut messages = consumer.messages().await.unwrap();
    let message = timeout(PATIENCE, messages.next()).await.expect("a message").unwrap().unwrap();
    message.double_ack().await.unwrap();
    message.subject.to_string()
}

#[tokio::test]
async fn each_service_can_do_its_work_and_nothing_else() {
    let data_dir = DataDir::temporary().unwrap();
    let nats = Nats::start(&data_dir, &mut Secrets::open(data_dir.path()).unwrap()).await.unwrap();
    let mut dispatcher = User::connect(&nats, "dispatcher").await;
    make_streams(&dispatcher).await;
    let mut live = User::connect(&nats, "live").await;
    let mut viewers = live.client.subscribe(subjects::LIVE_ALL).await.unwrap();
    live.settles().await;
    let mut api = User::connect(&nats, "api").await;
    let mut counter = User::connect(&nats, "counter").await;

    // The API: requests, outcomes, logs, downloads; it reads back a log.
    let request = subjects::build_request("api-1");
    api.stores(request.clone()).await;
    api.stores(subjects::build_outcome("api-1")).await;
    let log = subjects::log(JobId(1), Attempt(1));
    api.stores(log.clone()).await;
    api.stores(subjects::download("api-1")).await;
    assert_eq!(takes_one(&api.consumer(subjects::LOGS_STREAM, None).await).await, log);
    let logs = api.jetstream.get_stream(subjects::LOGS_STREAM).await.unwrap();
    assert_eq!(logs.direct_get(1).await.unwrap().subject.as_str(), log);
    api.cannot_publish("topic.a").await;
    api.cannot_publish("$JS.API.STREAM.DELETE.BUILD").await;
    api.cannot_publish("$JS.API.CONSUMER.MSG.NEXT.BUILD.dispatcher-requests").await;
    api.cannot_subscribe("live.>").await;
    api.cannot_subscribe("_INBOX.dispatcher.>").await;

    // The dispatcher: takes them; events and messages to nodes; answers the API.
    let consumer = dispatcher.consumer(subjects::BUILD_STREAM, Some(subjects::REQUESTS_CONSUMER)).await;
    assert_eq!(takes_one(&consumer).await, request);
    dispatcher.stores(subjects::QUEUE_EVENT.into()).await;
    reaches_its_node(&api, &dispatcher).await;
    answers(&api, &dispatcher).await;
    hints(&api, &dispatcher).await;
    dispatcher.jetstream.get_stream(subjects::LOGS_STREAM).await.unwrap().delete_message(1).await.unwrap();
    dispatcher.cannot_publish(&request).await;
    dispatcher.cannot_publish("topic.a").await;
    dispatcher.cannot_publish("$JS.API.STREAM.PURGE.LOGS").await;
    dispatcher.cannot_publish("$JS.API.STREAM.DELETE.BUILD").await;
    dispatcher.cannot_subscribe("log.>").await;

    // Live nodes: what streams send again, replays, and what people publish.
    let first = timeout(PATIENCE, viewers.next()).await.expect("republished").unwrap();
    assert_eq!(first.subject.as_str(), format!("{}{log}", subjects::LIVE_PREFIX));
    let events = live.consumer(subjects::EVENTS_STREAM, None).await;
    assert_eq!(takes_one(&events).await, subjects::QUEUE_EVENT);
    live.stores("topic.private.a".into()).await;
    let topics = live.consumer(subjects::TOPICS_STREAM, None).await;
    assert_eq!(takes_one(&topics).await, "topic.private.a");
    let topics = live.jetstream.get_stream(subjects::TOPICS_STREAM).await.unwrap();
    assert_eq!(topics.direct_get(1).await.unwrap().subject.as_str(), "topic.private.a");
    schedules(&dispatcher, &live).await;
    publishes_and_subscribes(&nats, &live).await;
    live.cannot_publish(subjects::TIMELINE_EVENT).await;
    live.cannot_publish(&log).await;
    live.cannot_publish(subjects::QUEUE_EVENT).await;
    live.cannot_publish("$JS.API.STREAM.PURGE.LOGS").await;
    live.cannot_publish("$JS.API.STREAM.PURGE.TOPICS").await;
    live.cannot_subscribe("build.>").await;

    // The counter: downloads, in and out.
    let downloads = counter.consumer(subjects::DOWNLOADS_STREAM, Some(subjects::DOWNLOADS_CONSUMER)).await;
    assert_eq!(takes_one(&downloads).await, subjects::download("api-1"));
    counter.cannot_publish("download.api-1").await;
    counter.cannot_publish("topic.a").await;
    counter.cannot_publish("$JS.API.STREAM.INFO.BUILD").await;
    counter.cannot_subscribe(">").await;
}

async fn make_streams(dispatcher: &User) {
    for (name, subject, republished) in [
        (subjects::BUILD_STREAM, subjects::BUILD_ALL, false),
        (subjects::DOWNLOADS_STREAM, subjects::DOWNLOADS_ALL, false),
        (subjects::LOGS_STREAM, subjects::LOGS_ALL, true),
        (subjects::EVENTS_STREAM, subjects::EVENTS_ALL, true),
        (subjects::TOPICS_STREAM, subjects::TOPICS_ALL, true),
        (subjects::TIMELINE_STREAM, subjects::TIMELINE_ALL, true),
        (subjects::PUBSUB_STREAM, subjects::PUBSUB_ALL, true),
    ] {
        let republish = stream::Republish {
            source: subject.into(),
            destination: format!("{}{subject}", subjects::LIVE_PREFIX),
            headers_only: false,
        };
        let config = stream::Config {
            name: name.into(),
            subjects: vec![subject.into()],
            allow_direct: true,
            republish: republished.then_some(republish),
            ..Default::default()
        };
        let made = timeout(PATIENCE, dispatcher.jetstream.create_or_update_stream(config)).await;
        made.unwrap_or_else(|_| panic!("{name} cannot be made")).unwrap();
    }
}

async fn reaches_its_node(api: &User, dispatcher: &User) {
    let mut node = api.client.subscribe(subjects::node("api-1")).await.unwrap();
    api.settles().await;
    dispatcher.client.publish(subjects::node("api-1"), "assign".into()).await.unwrap();
    timeout(PATIENCE, node.next()).await.expect("a message to the node").unwrap();
}

async fn hints(api: &User, dispatcher: &User) {
    let mut hints = dispatcher.client.subscribe(subjects::OUTBOX).await.unwrap();
    dispatcher.settles().await;
    api.client.publish(subjects::OUTBOX, "".into()).await.unwrap();
    timeout(PATIENCE, hints.next()).await.expect("a hint").unwrap();
}

/// Events of the event API: a live node says that one is due, a dispatcher publishes it and looks at what is there.
async fn schedules(dispatcher: &User, live: &User) {
    let mut hints = dispatcher.client.subscribe(subjects::SCHEDULE).await.unwrap();
    dispatcher.settles().await;
    live.client.publish(subjects::SCHEDULE, "0".into()).await.unwrap();
    timeout(PATIENCE, hints.next()).await.expect("a hint").unwrap();
    dispatcher.stores(subjects::TIMELINE_EVENT.into()).await;
    let timeline = dispatcher.jetstream.get_stream(subjects::TIMELINE_STREAM).await.unwrap();
    assert_eq!(timeline.get_raw_message(1).await.unwrap().subject.as_str(), subjects::TIMELINE_EVENT);
    let timeline = live.consumer(subjects::TIMELINE_STREAM, None).await;
    assert_eq!(takes_one(&timeline).await, subjects::TIMELINE_EVENT);
}

/// Publications over CBOR, groups, which are durable consumers, and sessions that go from one live node to another.
async fn publishes_and_subscribes(nats: &Nats, live: &User) {
    let subject = "pubsub.6d1f8a3e-7f0f-4b5a-9a3a-0d2f8c5b1e77";
    live.stores(subject.into()).await;
    let mut group = live.consumer(subjects::PUBSUB_STREAM, Some("queue-a")).await;
    assert_eq!(takes_one(&group).await, subject);
    timeout(PATIENCE, group.info()).await.expect("what the group has").unwrap();
    let ack = live.client.request("$JS.ACK.PUBSUB.queue-a.1.1.0.0.0", "+ACK".into());
    timeout(PATIENCE, ack).await.expect("the bus takes an acknowledgement").unwrap();
    let pubsub = live.jetstream.get_stream(subjects::PUBSUB_STREAM).await.unwrap();
    assert_eq!(pubsub.get_raw_message(1).await.unwrap().subject.as_str(), subject);
    timeout(PATIENCE, pubsub.delete_consumer("queue-a")).await.expect("a group ends").unwrap();
    let other = User::connect(nats, "live").await;
    let mut asked = other.client.subscribe(subjects::SESSION).await.unwrap();
    other.settles().await;
    let ask = live.client.request(subjects::SESSION, "a session".into());
    let answer = async {
        let question = asked.next().await.unwrap();
        other.client.publish(question.reply.unwrap(), "".into()).await.unwrap();
    };
    let (answered, ()) = timeout(PATIENCE, async { tokio::join!(ask, answer) }).await.expect("an answer");
    answered.unwrap();
}

async fn answers(api: &User, dispatcher: &User) {
    let group = subjects::DISPATCHERS_GROUP.to_owned();
    let mut questions = dispatcher.client.queue_subscribe(subjects::REGISTRY_REFRESH, group).await.unwrap();
    dispatcher.settles().await;
    let ask = api.client.request(subjects::REGISTRY_REFRESH, "hexyl".into());
    let answer = async {
        let question = questions.next().await.unwrap();
        dispatcher.client.publish(question.reply.unwrap(), "fresh".into()).await.unwrap();
    };
    let (reply, ()) = timeout(PATIENCE, async { tokio::join!(ask, answer) }).await.expect("an answer");
    assert_eq!(reply.unwrap().payload, "fresh");
}

#[tokio::test]
async fn what_is_stored_outlives_a_kill() {
    let data_dir = DataDir::temporary().unwrap();
    let mut nats = Nats::start(&data_dir, &mut Secrets::open(data_dir.path()).unwrap()).await.unwrap();
    let dispatcher = User::connect(&nats, "dispatcher").await;
    make_streams(&dispatcher).await;
    let api = User::connect(&nats, "api").await;
    api.stores(subjects::build_outcome("api-1")).await;
    nats.kill9().await.unwrap();
    nats.restart().await.unwrap();
    let dispatcher = User::connect(&nats, "dispatcher").await;
    let stream = dispatcher.jetstream.get_stream(subjects::BUILD_STREAM).await.unwrap();
    assert_eq!(stream.cached_info().state.messages, 1);
}

/// Any one of three may die: what is stored is there, and more can be stored.
#[tokio::test]
async fn a_cluster_outlives_whichever_server_leads() {
    let data_dir = DataDir::temporary().unwrap();
    let mut secrets = Secrets::open(data_dir.path()).unwrap();
    let mut nats = Nats::start_servers(&data_dir, &mut secrets, 3).await.unwrap();
    let jetstream = jetstream::new(nats.client().await.unwrap());
    let config = stream::Config { name: "S".into(), num_replicas: 3, ..Default::default() };
    // The leader may not have heard of the others yet.
    within(ELECTION, async || jetstream.create_stream(&config).await.ok().map(drop)).await;
    nats.wait_for_replicas(ELECTION).await.unwrap();
    within(ELECTION, async || publish_one(&jetstream).await.ok()).await;

    let first = nats.leader("S").await.unwrap();
    nats.servers[first].kill9().await.unwrap();
    let second = other_leader(&nats, first).await;
    nats.servers[first].restart().await.unwrap();
    nats.wait_for_replicas(ELECTION).await.unwrap();
    nats.servers[second].stop().await.unwrap();
    other_leader(&nats, second).await;
    assert_eq!(messages(&nats).await, 1);

    // All of them, and in the same folder again.
    nats.kill9().await.unwrap();
    nats.restart().await.unwrap();
    nats.wait_for_replicas(ELECTION).await.unwrap();
    drop(nats);
    let nats = Nats::start_servers(&data_dir, &mut secrets, 3).await.unwrap();
    nats.wait_for_replicas(ELECTION).await.unwrap();
    assert_eq!(messages(&nats).await, 1);
    drop(nats);

    // Another number of servers has a store of its own.
    let nats = Nats::start(&data_dir, &mut secrets).await.unwrap();
    let jetstream = jetstream::new(nats.client().await.unwrap());
    assert!(jetstream.get_stream("S").await.is_err());
    assert!(Nats::start_servers(&data_dir, &mut secrets, 2).await.is_err());
}

/// One, however often it is tried.
async fn publish_one(jetstream: &jetstream::Context) -> Result<(), async_nats::Error> {
    let message = jetstream::message::PublishMessage::build().message_id("one").payload("one".into());
    jetstream.send_publish("S", message).await?.await?;
    Ok(())
}

/// In the stream, once somebody leads it.
async fn messages(nats: &Nats) -> u64 {
    within(ELECTION, async || {
        let stream = jetstream::new(nats.client().await.ok()?).get_stream("S").await.ok()?;
        Some(stream.cached_info().state.messages)
    })
    .await
}

/// Waits until somebody else leads.
async fn other_leader(nats: &Nats, dead: usize) -> usize {
    within(ELECTION, async || nats.leader("S").await.ok().filter(|leader| *leader != dead)).await
}

async fn within<T>(limit: Duration, found: impl AsyncFn() -> Option<T>) -> T {
    let search = async {
        loop {
            if let Some(found) = found().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(limit, search).await.expect("it comes in time")
}
