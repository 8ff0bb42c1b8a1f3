//! NATS with JetStream, on the repository's own `nats.conf`: one server, or a cluster of three.

mod server;
mod state;

pub use server::Server;

use crate::{
    data_dir::DataDir,
    ports::Port,
    process::{Command, Process},
    programs,
    secrets::Secrets,
};
use anyhow::{Context, Result, bail};
use futures_util::future::try_join_all;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Compiled in, so that a test runs the configuration that is shipped, wherever it runs.
const CONFIG: &str = include_str!("../../../nats.conf");
const CLUSTER_CONFIG: &str = include_str!("../../../nats-cluster.conf");
/// The users of `nats.conf`, each with the variable that holds its password.
const USERS: &[(&str, &str)] = &[
    ("api", "NATS_API_PASSWORD"),
    ("live", "NATS_LIVE_PASSWORD"),
    ("dispatcher", "NATS_DISPATCHER_PASSWORD"),
    ("counter", "NATS_COUNTER_PASSWORD"),
    ("admin", "NATS_ADMIN_PASSWORD"),
];
/// One, or the fewest that agree without one of them.
const COUNTS: [usize; 2] = [1, 3];

#[derive(Debug)]
pub struct Nats {
    pub servers: Vec<Server>,
    passwords: Vec<(&'static str, String)>,
}

impl Nats {
    /// One server.
    pub async fn start(data_dir: &DataDir, secrets: &mut Secrets) -> Result<Self> {
        Self::start_servers(data_dir, secrets, 1).await
    }

    /// One, or a cluster of three that has chosen who leads it.
    pub async fn start_servers(data_dir: &DataDir, secrets: &mut Secrets, count: usize) -> Result<Self> {
        if !COUNTS.contains(&count) {
            bail!("NATS runs with one server or with three, not with {count}");
        }
        let mut passwords = Vec::new();
        for (user, _) in USERS {
            passwords.push((*user, secrets.get(&format!("nats_{user}"))?));
        }
        let config = write_config(data_dir.path(), count)?;
        warn_of_other_stores(data_dir.path(), count);
        let mut servers = Vec::new();
        for number in 1..=count {
            servers.push(server(data_dir, &config, &passwords, (count > 1).then_some(number))?);
        }
        if count > 1 {
            connect(&mut servers, &secrets.get("nats_route")?);
        }
        let mut this = Self { servers, passwords };
        this.run().await?;
        Ok(this)
    }

    /// Every server, with the name and password of one of the users in `nats.conf`.
    pub fn url(&self, user: &str) -> Result<String> {
        let (user, password) =
            self.passwords.iter().find(|(name, _)| *name == user).context("nats.conf has no such user")?;
        let urls = self.servers.iter().map(|server| format!("nats://{user}:{password}@{}", server.address()));
        Ok(urls.collect::<Vec<_>>().join(","))
    }

    /// All servers.
    pub async fn stop(&mut self) -> Result<()> {
        try_join_all(self.servers.iter_mut().map(Server::stop)).await.map(drop)
    }

    pub async fn kill9(&mut self) -> Result<()> {
        try_join_all(self.servers.iter_mut().map(Server::kill9)).await.map(drop)
    }

    /// Stops what still runs and starts all servers again, on the same ports and data.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await?;
        self.run().await
    }

    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        self.servers.iter().filter_map(Server::process)
    }

    async fn run(&mut self) -> Result<()> {
        try_join_all(self.servers.iter_mut().map(Server::run)).await?;
        if self.servers.len() > 1 { self.wait_for_metadata_leader().await } else { Ok(()) }
    }
}

/// Tells which file a server is started with.
fn write_config(folder: &Path, count: usize) -> Result<PathBuf> {
    let (alone, clustered) = (folder.join("nats.conf"), folder.join("nats-cluster.conf"));
    fs::write(&alone, CONFIG)?;
    fs::write(&clustered, CLUSTER_CONFIG)?;
    Ok(if count > 1 { clustered } else { alone })
}

/// The stores of another number of servers are left as they are: what was under way on them is done again from what the
/// database says, and downloads that were not counted yet are counted when that number of servers runs again.
fn warn_of_other_stores(folder: &Path, count: usize) {
    for other in COUNTS.into_iter().filter(|other| *other != count) {
        let store = folder.join(store_name((other > 1).then_some(1)));
        if store.exists() {
            tracing::warn!(store = %store.display(), "{count} NATS servers do not see what {other} left here");
        }
    }
}

fn store_name(number: Option<usize>) -> String {
    number.map_or_else(|| "nats".to_owned(), |number| format!("nats-{number}"))
}

/// With a store of its own; a `number` makes it one of a cluster.
///
/// Servers of a cluster cannot read the store of one alone, nor it theirs: each keeps its own, and finds it again.
fn server(
    data_dir: &DataDir,
    config: &Path,
    passwords: &[(&str, String)],
    number: Option<usize>,
) -> Result<Server> {
    let name = store_name(number);
    let (client, routes) = (Port::reserve()?, number.map(|_| Port::reserve()).transpose()?);
    let mut command = Command::new(&name, programs::NATS_SERVER.find()?, &data_dir.log())
        .args(["-c"])
        .args([config])
        .args(["-a", "127.0.0.1", "-p", &client.number().to_string()])
        // The server reads a variable as it reads its configuration: quotes keep a path with spaces whole.
        .env("NATS_STORE_DIR", format!("\"{}\"", data_dir.path().join(&name).display()));
    for ((_, variable), (_, password)) in USERS.iter().zip(passwords) {
        command = command.env(variable, password);
    }
    if let Some(routes) = &routes {
        command = command.env("NATS_SERVER_NAME", &name);
        command = command.env("NATS_CLUSTER_LISTEN", format!("\"{}\"", routes.address()));
    }
    Ok(Server::new(command, client, routes))
}

/// Tells each server where all of them are.
fn connect(servers: &mut [Server], password: &str) {
    let routes = servers.iter().filter_map(Server::route);
    let routes: Vec<_> = routes.map(|address| format!("\"nats://route:{password}@{address}\"")).collect();
    let routes = format!("[{}]", routes.join(", "));
    for server in servers {
        server.set_env("NATS_ROUTES", routes.clone());
        server.set_env("NATS_ROUTE_PASSWORD", password.to_owned());
    }
}
