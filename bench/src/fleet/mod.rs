//! Simulated builders: real WebSockets, real logins, and jobs that end the moment they begin.
//!
//! Each is one task of this process and connects to an API node directly. It accepts every job, fails it at once as the
//! crate's fault, which needs no upload and is final, and asks for more. What it costs is taken from the services beside
//! it on the same machine, so it is lean: no task per job, one write for all that is due.

mod accepts;
mod builder;
mod demand;
mod identity;
mod wire;

pub(crate) use accepts::{Accepts, now_us};
pub(crate) use identity::{Identity, register};

use anyhow::{Context, Result, bail, ensure};
use builder::{Builder, Events};
use cratemill_protocol::Target;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

/// Builders that log in at once: below what a node lets in, and enough to keep it busy.
const CONCURRENT_LOGINS: usize = 128;
/// A node may have no room for a login just now.
const LOGIN_TRIES: u32 = 20;
const LOGIN_PAUSE: Duration = Duration::from_millis(100);
/// Of one try, on a machine that is busy with all the others.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(30);

/// What all builders of a fleet have in common.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// The API nodes, `http://host:port`: builder after builder goes to the next.
    pub(crate) nodes: Vec<String>,
    pub(crate) targets: Vec<Target>,
    pub(crate) slots: u16,
}

/// Builders that are logged in and wait. Dropped, all of them leave.
pub(crate) struct Fleet {
    pub(crate) accepts: Arc<Accepts>,
    /// How long it took until the last was logged in.
    pub(crate) login: Duration,
    ended: Arc<Mutex<Option<String>>>,
    _builders: JoinSet<()>,
}

impl Fleet {
    /// Returns once every one has been welcomed and has said how many jobs it waits for.
    pub(crate) async fn start(identities: Vec<Identity>, options: &Options) -> Result<Self> {
        ensure!(!options.nodes.is_empty(), "a fleet needs a node to connect to");
        let started = Instant::now();
        let accepts = Arc::new(Accepts::default());
        let ended = Arc::new(Mutex::new(None));
        let logins = Arc::new(Semaphore::new(CONCURRENT_LOGINS));
        let mut entering = JoinSet::new();
        for (number, identity) in identities.into_iter().enumerate() {
            let (options, logins) = (options.clone(), logins.clone());
            let events = Events { accepts: accepts.clone(), shard: number, ended: ended.clone() };
            entering.spawn(async move {
                let _permit = logins.acquire_owned().await.context("the fleet is gone")?;
                let node = &options.nodes[number % options.nodes.len()];
                log_in(&identity, node, &options, events).await
            });
        }
        let mut builders = JoinSet::new();
        while let Some(entered) = entering.join_next().await {
            builders.spawn(entered??.serve());
        }
        Ok(Self { accepts, login: started.elapsed(), ended, _builders: builders })
    }

    /// An error if any of them has lost its connection since.
    pub(crate) fn check(&self) -> Result<()> {
        match &*self.ended.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(why) => bail!("a simulated builder ended: {why}"),
        }
    }
}

async fn log_in(identity: &Identity, node: &str, options: &Options, events: Events) -> Result<Builder> {
    let mut tries = 1;
    loop {
        let login = Builder::log_in(identity, node, options, events.clone());
        let error = match timeout(LOGIN_TIMEOUT, login).await {
            Ok(Ok(builder)) => return Ok(builder),
            Ok(Err(error)) => error,
            Err(_) => anyhow::anyhow!("no answer within {LOGIN_TIMEOUT:?}"),
        };
        if tries == LOGIN_TRIES {
            return Err(error.context(format!("a simulated builder cannot log in at {node}")));
        }
        tries += 1;
        sleep(LOGIN_PAUSE).await;
    }
}
