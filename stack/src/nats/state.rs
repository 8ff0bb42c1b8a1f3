//! Who leads a cluster and its streams, and whether every server has what the others have.

use super::Nats;
use crate::process::Process;
use anyhow::{Context as _, Result, bail};
use async_nats::{
    ConnectOptions, ServerAddr,
    jetstream::{self, stream::Info},
};
use futures_util::TryStreamExt;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// One question, to a cluster that may just have lost its leader.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// A cluster elects a leader in half a second to ten; this is for a machine that is busy compiling.
const ELECTION_TIMEOUT: Duration = Duration::from_mins(2);
/// How often a state is asked for again.
const POLL: Duration = Duration::from_millis(100);

impl Nats {
    /// As the admin.
    pub async fn client(&self) -> Result<async_nats::Client> {
        let urls = self.url("admin")?;
        let servers = urls.split(',').map(str::parse).collect::<Result<Vec<ServerAddr>, _>>()?;
        let first = servers.first().context("there is no server")?;
        let (user, password) = (first.username().unwrap_or_default(), first.password().unwrap_or_default());
        let options = ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned());
        let options = options.connection_timeout(ANSWER_TIMEOUT).request_timeout(Some(ANSWER_TIMEOUT));
        // Asked of the servers in a random order: one that is dead is passed over.
        Ok(options.connect(servers).await?)
    }

    async fn jetstream(&self) -> Result<jetstream::Context> {
        let client = self.client().await?;
        Ok(jetstream::ContextBuilder::new().timeout(ANSWER_TIMEOUT).build(client))
    }

    /// The position of the server that leads a stream, once one does.
    pub async fn leader(&self, stream: &str) -> Result<usize> {
        self.wait_for("nobody leads the stream", ELECTION_TIMEOUT, async || self.leader_now(stream).await)
            .await
    }

    async fn leader_now(&self, stream: &str) -> Result<usize> {
        let jetstream = self.jetstream().await?;
        let stream = jetstream.get_stream(stream).await?;
        // A server alone has no name that we know.
        if self.servers.len() == 1 {
            return Ok(0);
        }
        let cluster = stream.cached_info().cluster.as_ref();
        let name = cluster.and_then(|cluster| cluster.leader.as_deref()).context("nobody leads it")?;
        self.servers
            .iter()
            .position(|server| server.name() == name)
            .with_context(|| format!("who is {name}?"))
    }

    /// Waits until every stream is led and every server has all of it: then any one of them may go.
    pub async fn wait_for_replicas(&self, limit: Duration) -> Result<()> {
        self.wait_for("the servers do not agree", limit, async || {
            let jetstream = self.jetstream().await?;
            let streams: Vec<Info> = jetstream.streams().try_collect().await?;
            match streams.iter().find(|stream| !self.is_whole(stream)) {
                Some(stream) => bail!("{} is not whole: {:?}", stream.config.name, stream.cluster),
                None => Ok(()),
            }
        })
        .await
    }

    pub(super) async fn wait_for_metadata_leader(&self) -> Result<()> {
        self.wait_for("the NATS servers elect no leader", ELECTION_TIMEOUT, async || {
            // Only the leader answers.
            self.jetstream().await?.stream_names().try_next().await?;
            Ok(())
        })
        .await
    }

    fn is_whole(&self, stream: &Info) -> bool {
        let Some(cluster) = &stream.cluster else { return true };
        let others = stream.config.num_replicas.saturating_sub(1);
        self.servers.len() == 1
            || cluster.leader.is_some()
                && cluster.replicas.iter().filter(|peer| peer.current && !peer.offline).count() == others
    }

    async fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        state: impl AsyncFn() -> Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            let error = match timeout(2 * ANSWER_TIMEOUT, state()).await {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => "no answer".into(),
            };
            if Instant::now() >= deadline {
                let logs: Vec<_> = self.processes().map(Process::log_tail).collect();
                bail!("{what} within {limit:?}: {error}{}", logs.concat());
            }
            sleep(POLL).await;
        }
    }
}
