//! Mastodon's Redis: one subscription for each channel that somebody on this node listens to, and the keys by which Mastodon
//! knows that somebody does.
//!
//! ```text
//! connect -> subscribe to all that reactors name -> set all keys -> [up] -> what is wanted, in its order
//!    ^---------------------- with backoff -- away or silent <-------------------'
//! ```
//! What is wanted while Redis is away is forgotten: the reactors know what they need, and name it when it is back.

use super::{tokens::Tokens, viewers::Viewers};
use crate::{
    dialects::mastodon::{
        channel::Channel,
        post::{Error, FILTERS_CHANGED, Post},
    },
    metrics,
    reactor::{Answer, Mail, Reactors, Want, Who},
};
use anyhow::{Context as _, bail};
use cratemill_service::backoff::Backoff;
use futures_util::{StreamExt as _, future::try_join_all};
use redis::{
    Client,
    aio::{MultiplexedConnection, PubSubSink, PubSubStream},
    sentinel::SentinelClient,
};
use std::{collections::HashSet, fmt, sync::Arc, time::Duration};
use tokio::{
    sync::{Mutex, mpsc::UnboundedReceiver, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// The key says for so many seconds that somebody listens,
const KEY_S: u64 = 1_080;
/// and is set again so often.
const AGAIN: Duration = Duration::from_mins(6);
/// How often it is asked whether tokens are good still: what says so may get lost.
const TOKENS_AGAIN: Duration = Duration::from_mins(1);
/// Redis that does not answer for so long is away.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is asked whether it is there.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// Commands under way at once.
const AT_ONCE: usize = 1_024;
/// A request that comes while Redis is away waits so long for it to be back.
const SOON: Duration = Duration::from_secs(2);
/// Nobody publishes to it.
const PROBE: &str = "cratemill:probe";

/// Where Redis is.
#[derive(Clone)]
pub enum Source {
    Server(Box<Client>),
    Sentinels(Arc<Mutex<SentinelClient>>),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server(_) => "Server",
            Self::Sentinels(_) => "Sentinels",
        })
    }
}

impl Source {
    pub(super) fn sentinels(client: SentinelClient) -> Self {
        Self::Sentinels(Arc::new(Mutex::new(client)))
    }

    async fn client(&self) -> anyhow::Result<Client> {
        match self {
            Self::Server(client) => Ok(Client::clone(client)),
            Self::Sentinels(client) => {
                client.lock().await.async_get_client().await.context("the sentinels name no server")
            }
        }
    }
}

/// Whether Redis is there, and everything that is listened to is subscribed.
#[derive(Debug)]
pub(super) struct State(watch::Sender<bool>);

impl Default for State {
    fn default() -> Self {
        Self(watch::channel(false).0)
    }
}

impl State {
    pub(super) fn is_up(&self) -> bool {
        *self.0.borrow()
    }

    /// False if it is away for longer than somebody waits.
    pub(super) async fn is_up_soon(&self) -> bool {
        let mut up = self.0.subscribe();
        matches!(timeout(SOON, up.wait_for(|up| *up)).await, Ok(Ok(_)))
    }

    fn set(&self, up: bool) {
        self.0.send_replace(up);
    }
}

pub(super) struct Redis {
    pub(super) source: Source,
    /// Before the names of channels and keys.
    pub(super) prefix: String,
    pub(super) state: Arc<State>,
    pub(super) reactors: Arc<Reactors>,
    pub(super) viewers: Arc<Viewers>,
    pub(super) tokens: Tokens,
}

/// One connection for messages, one for keys.
struct Connections {
    sink: PubSubSink,
    keys: MultiplexedConnection,
}

impl Redis {
    pub(super) async fn run(
        self,
        mut wants: UnboundedReceiver<Want>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        let mut standing = Vec::new();
        loop {
            let was_up = tokio::select! {
                error = self.session(&mut wants, &mut standing) => {
                    let was_up = self.state.is_up();
                    tracing::warn!(error = format!("{error:#}"), "Redis is away");
                    was_up
                }
                () = shutdown.cancelled() => return Ok(()),
            };
            self.state.set(false);
            if was_up {
                backoff.reset();
            }
            let pause = sleep(backoff.next_wait());
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    want = wants.recv() => match want {
                        Some(want) => standing.extend(want.standing()),
                        None => return Ok(()),
                    },
                    () = shutdown.cancelled() => return Ok(()),
                }
            }
        }
    }

    /// For as long as Redis is there. `standing` wait until all is subscribed.
    async fn session(&self, wants: &mut UnboundedReceiver<Want>, standing: &mut Vec<Who>) -> anyhow::Error {
        let connected = timeout(PATIENCE, async {
            let client = self.source.client().await?;
            let (sink, messages) = client.get_async_pubsub().await?.split();
            let keys = client.get_multiplexed_async_connection().await?;
            anyhow::Ok((Connections { sink, keys }, messages))
        });
        let (mut connections, messages) = match connected.await {
            Ok(Ok(connected)) => connected,
            Ok(Err(error)) => return error.context("cannot connect"),
            Err(_) => return anyhow::anyhow!("it does not answer"),
        };
        let work = async {
            let Err(error) = self.serve(&mut connections, wants, standing).await;
            error
        };
        tokio::select! {
            error = work => error,
            () = self.receive(messages) => anyhow::anyhow!("the connection ended"),
        }
    }

    async fn serve(
        &self,
        connections: &mut Connections,
        wants: &mut UnboundedReceiver<Want>,
        standing: &mut Vec<Who>,
    ) -> anyhow::Result<std::convert::Infallible> {
        // What was wanted before the reactors name what they need is among that, or is not needed.
        while let Ok(want) = wants.try_recv() {
            standing.extend(want.standing());
        }
        let all = self.named().await;
        self.subscribe(connections, &all).await?;
        self.state.set(true);
        // Of tokens that were taken back meanwhile, and of filters that are others now, nobody here has heard.
        self.tokens.check(&all);
        self.viewers.nudge_all();
        tracing::info!(channels = all.len(), "Redis is there");
        drop(all);
        self.say_that_all_stand(standing);
        let mut again = tokio::time::interval_at(tokio::time::Instant::now() + AGAIN, AGAIN);
        let mut tokens = tokio::time::interval_at(tokio::time::Instant::now() + TOKENS_AGAIN, TOKENS_AGAIN);
        let mut probe = tokio::time::interval(PROBE_EVERY);
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                count = wants.recv_many(&mut batch, AT_ONCE) => {
                    if count == 0 {
                        bail!("the reactors have ended");
                    }
                    // Those who stand wait on if Redis goes now.
                    standing.extend(batch.iter().filter_map(Want::standing));
                    self.change(connections, std::mem::take(&mut batch)).await?;
                    self.say_that_all_stand(standing);
                }
                _ = again.tick() => {
                    let all = self.named().await;
                    self.set_keys(connections, &all).await?;
                }
                _ = tokens.tick() => self.tokens.check(&self.named().await),
                _ = probe.tick() => connections.probe().await?,
            }
        }
    }

    /// What the reactors need, each channel once.
    async fn named(&self) -> Vec<Channel> {
        let named: HashSet<Channel> = self.reactors.channels().await.into_iter().collect();
        named.into_iter().collect()
    }

    /// In the order in which it is wanted.
    async fn change(&self, connections: &mut Connections, batch: Vec<Want>) -> anyhow::Result<()> {
        let sink = &connections.sink;
        let (mut new, mut changes) = (Vec::new(), Vec::new());
        for want in batch {
            match want {
                Want::Subscribe(channel) => {
                    changes.push(self.change_one(sink.clone(), true, &channel));
                    new.push(channel);
                }
                Want::Unsubscribe(channel) => changes.push(self.change_one(sink.clone(), false, &channel)),
                Want::Standing(_) => {}
            }
        }
        timeout(PATIENCE, try_join_all(changes)).await.context("it does not answer")??;
        self.set_keys(connections, &new).await
    }

    /// To those who asked before all that is done.
    fn say_that_all_stand(&self, standing: &mut Vec<Who>) {
        for who in standing.drain(..) {
            self.reactors.answer(who, Answer::Stands);
        }
    }

    fn change_one(
        &self,
        mut sink: PubSubSink,
        subscribe: bool,
        channel: &Channel,
    ) -> impl Future<Output = redis::RedisResult<()>> + use<> {
        let name = format!("{}{channel}", self.prefix);
        async move { if subscribe { sink.subscribe(name).await } else { sink.unsubscribe(name).await } }
    }

    async fn subscribe(&self, connections: &mut Connections, channels: &[Channel]) -> anyhow::Result<()> {
        for part in channels.chunks(AT_ONCE) {
            let changes = part.iter().map(|channel| self.change_one(connections.sink.clone(), true, channel));
            timeout(PATIENCE, try_join_all(changes)).await.context("it does not answer")??;
            self.set_keys(connections, part).await?;
        }
        Ok(())
    }

    async fn set_keys(&self, connections: &mut Connections, channels: &[Channel]) -> anyhow::Result<()> {
        let with_keys: Vec<&Channel> = channels.iter().filter(|channel| channel.has_key()).collect();
        for part in with_keys.chunks(AT_ONCE) {
            let mut pipe = redis::pipe();
            for channel in part {
                let key = format!("{}subscribed:{channel}", self.prefix);
                pipe.cmd("SET").arg(key).arg(1).arg("EX").arg(KEY_S).ignore();
            }
            let set = pipe.query_async::<()>(&mut connections.keys);
            timeout(PATIENCE, set).await.context("it does not answer")??;
        }
        Ok(())
    }

    /// Until the connection ends. It waits for nobody.
    async fn receive(&self, mut messages: PubSubStream) {
        while let Some(message) = messages.next().await {
            metrics::redis_message();
            let Some(name) = message.get_channel_name().strip_prefix(&*self.prefix) else { continue };
            if let Some(channel) = Channel::parse(name) {
                self.take(channel, message.get_payload_bytes());
            }
        }
    }

    fn take(&self, channel: Channel, message: &[u8]) {
        if !channel.has_key() {
            return self.take_order(channel, message);
        }
        match Post::parse(message, channel.is_filtered()) {
            Ok(post) => self.reactors.mail(Mail::Post(channel, Arc::new(post))),
            Err(error @ Error::NoPayload) => tracing::debug!(%channel, %error, "skipped a message"),
            Err(error) => {
                metrics::mastodon_malformed();
                tracing::warn!(%channel, %error, "skipped a message");
            }
        }
    }

    /// What Mastodon says to us.
    fn take_order(&self, channel: Channel, message: &[u8]) {
        #[derive(serde::Deserialize)]
        struct Order {
            event: String,
        }
        let Ok(Order { event }) = serde_json::from_slice(message) else {
            metrics::mastodon_malformed();
            return;
        };
        match (&*event, &channel) {
            ("kill", _) => self.reactors.mail(Mail::Kill(channel)),
            (FILTERS_CHANGED, Channel::System(account)) => self.viewers.nudge(*account),
            _ => tracing::debug!(%channel, event, "an order that is not known"),
        }
    }
}

impl Connections {
    /// Whether both ends are there.
    async fn probe(&mut self) -> anyhow::Result<()> {
        let probe = async {
            self.sink.unsubscribe(PROBE).await?;
            redis::cmd("PING").query_async::<()>(&mut self.keys).await
        };
        timeout(PATIENCE, probe).await.context("it does not answer")?.context("it does not work")
    }
}
