//! All of a Cratemill at once.

use crate::{
    builders::{self, Key},
    client::Client,
    data_dir::DataDir,
    haproxy::{Haproxy, Nodes},
    nats::Nats,
    network::Network,
    postgres::Postgres,
    process::Process,
    redis::Redis,
    s3::{self, S3},
    secrets::Secrets,
    services::{self, Role, Service},
};
use anyhow::{Context, Result};
use futures_util::future::{join_all, try_join_all};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

pub use crate::options::Options;

/// Nodes are checked every second; this is for a machine that is busy compiling.
const NODES_TIMEOUT: Duration = Duration::from_secs(30);
/// Where a page may stand that uses the event API.
pub const EVENTS_ORIGIN: &str = "http://page.example";

/// A running cluster. Dropping it ends every process at once; [`Cluster::stop`] lets them drain.
// The order of the fields is the order of their end: who depends on a thing goes before it.
#[derive(Debug)]
pub struct Cluster {
    pub builders: Vec<Service>,
    pub api: Vec<Service>,
    pub live: Vec<Service>,
    pub dispatchers: Vec<Service>,
    pub counters: Vec<Service>,
    pub haproxy: Haproxy,
    pub redis: Option<Redis>,
    pub nats: Nats,
    pub postgres: Postgres,
    pub s3: S3,
    keys: Vec<Key>,
    admin_token: String,
    live_token_secret: String,
    events_secret: String,
    targets: Vec<String>,
    bin_dir: PathBuf,
    options: Options,
    data_dir: DataDir,
}

impl Cluster {
    pub async fn start(options: Options) -> Result<Self> {
        let data_dir = match &options.data_dir {
            Some(path) => DataDir::open(path)?,
            None => DataDir::temporary()?,
        };
        Self::start_in(data_dir, options).await
    }

    /// Starts in a folder that the caller has locked already.
    pub async fn start_in(data_dir: DataDir, options: Options) -> Result<Self> {
        let mut secrets = Secrets::open(data_dir.path())?;
        let (admin_token, token_secret) = (secrets.get("admin_token")?, secrets.get("token_secret")?);
        let live_token_secret = secrets.get("live_token_secret")?;
        let events_secret = secrets.get("events_secret")?;
        let s3 = S3::start(&data_dir, &mut secrets).await?;
        let postgres = Postgres::start(&data_dir, &mut secrets, options.durable).await?;
        let nats = Nats::start_servers(&data_dir, &mut secrets, options.nats).await?;
        let redis = if options.redis { Some(Redis::start(&data_dir).await?) } else { None };

        let bin_dir = services::bin_dir(options.bin_dir.as_deref())?;
        let of = |role, count| -> Result<Vec<Service>> {
            (1..=count).map(|number| Service::new(role, number, &bin_dir, &data_dir.log())).collect()
        };
        let api = of(Role::Api, options.api)?;
        let live = of(Role::Live, options.live)?;
        let dispatchers = of(Role::Dispatcher, options.dispatcher)?;
        let counters = of(Role::Counter, options.counter)?;
        let nodes = Nodes { api: addresses(&api), live: addresses(&live) };
        let haproxy = Haproxy::start(&data_dir, options.address, &nodes).await?;
        let targets = match options.targets.as_slice() {
            [] => vec![host_target()?],
            targets => targets.to_vec(),
        };
        let builders = Vec::new();
        let keys = Vec::new();
        let mut this = Self {
            builders,
            api,
            live,
            dispatchers,
            counters,
            haproxy,
            redis,
            nats,
            postgres,
            s3,
            keys,
            admin_token,
            live_token_secret,
            events_secret,
            targets,
            bin_dir,
            options,
            data_dir,
        };
        this.configure(&token_secret)?;
        this.run().await?;
        for _ in 0..this.options.builder {
            this.add_builder(None).await?;
        }
        Ok(this)
    }

    /// The address of everything: the load balancer.
    pub fn lb_url(&self) -> String {
        self.haproxy.url()
    }

    pub fn admin_token(&self) -> &str {
        &self.admin_token
    }

    pub fn targets(&self) -> &[String] {
        &self.targets
    }

    pub fn data_dir(&self) -> &Path {
        self.data_dir.path()
    }

    pub fn client(&self) -> Client {
        Client::new(&self.lb_url(), &self.admin_token)
    }

    /// The key of builder `number`, from 1.
    pub fn builder_key(&self, number: usize) -> Option<&Key> {
        self.keys.get(number.checked_sub(1)?)
    }

    /// What somebody needs to use it, as `KEY=value` pairs.
    pub fn env(&self) -> Result<Vec<(&'static str, String)>> {
        let mut pairs = vec![
            ("API_URL", self.lb_url()),
            ("LIVE_URL", self.lb_url()),
            ("DATABASE_URL", self.postgres.url()),
            ("NATS_URL", self.nats.url("admin")?),
            ("S3_ENDPOINT", self.s3.endpoint()),
            ("S3_BUCKET", s3::BUCKET.to_owned()),
            ("S3_ACCESS_KEY", self.s3.access_key().to_owned()),
            ("S3_SECRET_KEY", self.s3.secret_key().to_owned()),
            ("ADMIN_TOKEN", self.admin_token.clone()),
            ("LIVE_TOKEN_SECRET", self.live_token_secret.clone()),
        ];
        pairs.extend(self.redis.as_ref().map(|redis| ("REDIS_URL", redis.url())));
        Ok(pairs)
    }

    pub fn services(&self) -> impl Iterator<Item = &Service> {
        [&self.builders, &self.api, &self.live, &self.dispatchers, &self.counters].into_iter().flatten()
    }

    /// Every child that was started and not ended on purpose.
    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        let infrastructure =
            [self.haproxy.process(), self.redis.as_ref().and_then(Redis::process), self.postgres.process()];
        let infrastructure = infrastructure.into_iter().flatten().chain(self.nats.processes());
        self.services().filter_map(Service::process).chain(infrastructure)
    }

    /// Waits until every service can serve, and the load balancer knows it.
    pub async fn ready(&self) -> Result<()> {
        try_join_all(self.services().map(Service::ready)).await?;
        self.haproxy.wait_for_nodes(NODES_TIMEOUT).await.context("the load balancer does not see its nodes")
    }

    /// Lets everything drain and stop, in the order in which nothing is missed.
    pub async fn stop(mut self) -> Result<()> {
        let mut results = join_all(self.builders.iter_mut().map(Service::stop)).await;
        let services = [&mut self.api, &mut self.live, &mut self.dispatchers, &mut self.counters];
        results.extend(join_all(services.into_iter().flatten().map(Service::stop)).await);
        results.push(self.haproxy.stop().await);
        if let Some(mut redis) = self.redis.take() {
            results.push(redis.stop().await);
        }
        results.push(self.nats.stop().await);
        results.push(self.postgres.stop().await);
        results.into_iter().collect()
    }

    async fn run(&mut self) -> Result<()> {
        for service in self.services_mut() {
            service.spawn().await?;
        }
        self.ready().await
    }

    fn services_mut(&mut self) -> impl Iterator<Item = &mut Service> {
        [&mut self.dispatchers, &mut self.api, &mut self.live, &mut self.counters].into_iter().flatten()
    }

    fn configure(&mut self, token_secret: &str) -> Result<()> {
        let options = self.options.clone();
        let (lb_url, database_url) = (self.lb_url(), self.postgres.url());
        let objects = [
            ("S3_ENDPOINT", self.s3.endpoint()),
            ("S3_BUCKET", s3::BUCKET.to_owned()),
            ("S3_REGION", s3::REGION.to_owned()),
            ("S3_ACCESS_KEY", self.s3.access_key().to_owned()),
            ("S3_SECRET_KEY", self.s3.secret_key().to_owned()),
        ];
        let (live_token_secret, events_secret) = (self.live_token_secret.clone(), self.events_secret.clone());
        let (admin_token, targets) = (self.admin_token.clone(), self.targets.join(","));
        let replicas = self.nats.servers.len().to_string();
        let journals = self.data_dir().join("journals").display().to_string();
        let urls: Vec<_> = ["api", "live", "dispatcher", "counter"]
            .into_iter()
            .map(|user| Ok((user, self.nats.url(user)?)))
            .collect::<Result<_>>()?;
        for service in self.services_mut() {
            let role = service.role();
            let url = urls.iter().find(|(user, _)| *user == role.as_str()).map(|(_, url)| url.clone());
            let mut set = vec![("DATABASE_URL", database_url.clone())];
            set.extend(url.map(|url| ("NATS_URL", url)));
            set.extend(objects.clone());
            match role {
                Role::Api => set.extend([
                    ("PUBLIC_URL", lb_url.clone()),
                    ("NODE_NAME", service.name().to_owned()),
                    ("ADMIN_TOKEN", admin_token.clone()),
                    ("TOKEN_SECRET", token_secret.to_owned()),
                    // One folder for all of them: who starts takes over what a dead one left.
                    ("JOURNAL_DIR", journals.clone()),
                ]),
                Role::Dispatcher => {
                    set.extend([
                        ("REGISTRY_INDEX", options.index.clone()),
                        ("TARGETS", targets.clone()),
                        ("NATS_REPLICAS", replicas.clone()),
                    ]);
                }
                Role::Live => set.extend([
                    ("DIALECTS", "native,events,cbor".to_owned()),
                    ("LIVE_TOKEN_SECRET", live_token_secret.clone()),
                    ("EVENTS_SECRET", events_secret.clone()),
                    // Of pages that people try it with.
                    ("EVENTS_ORIGIN", EVENTS_ORIGIN.to_owned()),
                    ("CLIENT_ADDRESS_HEADER", "x-forwarded-for".to_owned()),
                ]),
                Role::Counter | Role::Builder => {}
            }
            service.set_env(set);
            service.set_env(extra(&options, role));
        }
        Ok(())
    }

    /// Makes, registers and starts one more builder, in a network of its own if one is given, and waits until it has
    /// logged in.
    pub async fn add_builder(&mut self, network: Option<&Network>) -> Result<()> {
        let number = self.builders.len() + 1;
        let client = self.client();
        let key = Key::open(builders::key_path(self.data_dir(), number))?;
        builders::register(&client, &format!("local-{number}"), &key, &self.targets).await?;
        let work_dir = self.data_dir().join(format!("builder-{number}"));
        let mut service = Service::new(Role::Builder, number, &self.bin_dir, &self.data_dir.log())?
            .env("SERVER", self.lb_url())
            .env("KEY_FILE", &key.path)
            .args(["--slots", &self.options.slots.to_string(), "--work-dir"])
            .args([work_dir]);
        service.set_env(extra(&self.options, Role::Builder));
        if let Some(network) = network {
            service.enter(network)?;
        }
        service.spawn().await?;
        if let Some(process) = service.process() {
            builders::connected(&client, process, &key).await?;
        }
        self.builders.push(service);
        self.keys.push(key);
        Ok(())
    }
}

fn addresses(services: &[Service]) -> Vec<std::net::SocketAddr> {
    services.iter().filter_map(|service| Some(service.port()?.address())).collect()
}

fn extra(options: &Options, role: Role) -> Vec<(&str, String)> {
    let of_role = options.env.iter().filter(|(of, ..)| *of == role);
    of_role.map(|(_, key, value)| (key.as_str(), value.clone())).collect()
}

/// The target triple of this machine's toolchain.
pub fn host_target() -> Result<String> {
    let output = std::process::Command::new("rustc").arg("-vV").output().context("cannot run rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}
