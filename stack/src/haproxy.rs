//! The load balancer, on a configuration made from `deploy/haproxy.cfg`: its addresses and nodes become this stack's.

use crate::{
    data_dir::DataDir,
    ports::Port,
    process::{Command, Process, Signal},
    programs,
};
use anyhow::{Context, Result, bail};
use std::{
    fmt::Write,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const TEMPLATE: &str = include_str!("../../deploy/haproxy.cfg");
const START_TIMEOUT: Duration = Duration::from_secs(10);
const STOP_GRACE: Duration = Duration::from_secs(5);
/// As much as the state of a few thousand nodes.
const MAX_STATE_BYTES: u64 = 1 << 20;

#[derive(Debug)]
pub struct Haproxy {
    process: Option<Process>,
    command: Command,
    scheme: &'static str,
    address: Ipv4Addr,
    port: Port,
    stats: Port,
}

/// The nodes behind it, as `host:port`.
#[derive(Debug, Clone, Default)]
pub struct Nodes {
    pub api: Vec<SocketAddr>,
    pub live: Vec<SocketAddr>,
}

impl Haproxy {
    /// Listens on `address`, for its clients.
    pub async fn start(data_dir: &DataDir, address: Ipv4Addr, nodes: &Nodes) -> Result<Self> {
        Self::start_as(data_dir, address, nodes, None).await
    }

    /// The same, with TLS and HTTP/2; `certificate` is a PEM file with its key.
    pub async fn start_with_tls(
        data_dir: &DataDir,
        address: Ipv4Addr,
        nodes: &Nodes,
        certificate: &Path,
    ) -> Result<Self> {
        Self::start_as(data_dir, address, nodes, Some(certificate)).await
    }

    async fn start_as(
        data_dir: &DataDir,
        address: Ipv4Addr,
        nodes: &Nodes,
        certificate: Option<&Path>,
    ) -> Result<Self> {
        let (port, stats) = (Port::reserve()?, Port::reserve()?);
        let config = data_dir.path().join("haproxy.cfg");
        let mut bind = SocketAddr::from((address, port.number())).to_string();
        if let Some(certificate) = certificate {
            write!(bind, " ssl crt {} alpn h2,http/1.1", certificate.display())?;
        }
        fs::write(&config, render(TEMPLATE, &bind, stats.address(), nodes))?;
        let scheme = if certificate.is_some() { "https" } else { "http" };
        let command = Command::new("haproxy", programs::HAPROXY.find()?, &data_dir.log());
        let command = command.args(["-db", "-f"]).args([&config]);
        let mut this = Self { process: None, command, scheme, address, port, stats };
        this.run().await?;
        Ok(this)
    }

    pub fn url(&self) -> String {
        format!("{}://{}:{}", self.scheme, self.address, self.port.number())
    }

    pub async fn stop(&mut self) -> Result<()> {
        if let Some(process) = self.process.take() {
            // Its graceful stop waits for every stream; whoever stops it here has stopped what is behind it.
            process.stop(Signal::SIGTERM, STOP_GRACE).await?;
        }
        Ok(())
    }

    pub async fn kill9(&mut self) -> Result<()> {
        match self.process.take() {
            Some(process) => process.kill().await.map(drop),
            None => Ok(()),
        }
    }

    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await?;
        self.run().await
    }

    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// Waits until it has checked every node and found it well.
    pub async fn wait_for_nodes(&self, limit: Duration) -> Result<()> {
        let process = self.process.as_ref().context("the load balancer does not run")?;
        let probe = async || match nodes_that_are_not_up(&self.state().await?) {
            down if down.is_empty() => Ok(()),
            down => bail!("not up: {}", down.join(", ")),
        };
        process.ready(limit, probe).await
    }

    async fn run(&mut self) -> Result<()> {
        let process = self.command.spawn().await?;
        process.ready(START_TIMEOUT, async || self.state().await.map(drop)).await?;
        self.process = Some(process);
        Ok(())
    }

    /// The answer to `show stat`: CSV, one line a node.
    async fn state(&self) -> Result<String> {
        let mut stream = TcpStream::connect(self.stats.address()).await?;
        stream.write_all(b"show stat\n").await?;
        let mut text = String::new();
        stream.take(MAX_STATE_BYTES).read_to_string(&mut text).await?;
        Ok(text)
    }
}

/// Replaces what the template says about addresses: its `bind`, its `stats socket`, and the servers of each backend.
///
/// A backend's servers are those of the first word of its server's name, `api` or `live`; their options are kept.
fn render(template: &str, bind: &str, stats: SocketAddr, nodes: &Nodes) -> String {
    let mut output = String::new();
    let mut in_servers = false;
    for line in template.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let is_server = words.first() == Some(&"server");
        match words.as_slice() {
            ["bind", ..] => _ = writeln!(output, "    bind {bind}"),
            ["stats", "socket", ..] => _ = writeln!(output, "    stats socket ipv4@{stats} level user"),
            // The first stands for all of its backend.
            ["server", ..] if in_servers => {}
            ["server", name, _address, options @ ..] => {
                let (role, nodes) =
                    if name.starts_with("live") { ("live", &nodes.live) } else { ("api", &nodes.api) };
                for (number, node) in (1..).zip(nodes) {
                    let _ = writeln!(output, "    server {role}-{number} {node} {}", options.join(" "));
                }
            }
            _ => _ = writeln!(output, "{line}"),
        }
        in_servers = is_server;
    }
    output
}

/// `backend/node` of every node that is not known to be up.
fn nodes_that_are_not_up(state: &str) -> Vec<String> {
    let mut lines = state.trim_start_matches("# ").lines();
    let header: Vec<_> = lines.next().unwrap_or_default().split(',').collect();
    let column = |name| header.iter().position(|column| *column == name);
    let (Some(status), Some(check)) = (column("status"), column("check_status")) else {
        return vec!["unknown".into()];
    };
    let rows = lines.map(|line| line.split(',').collect::<Vec<_>>());
    // A node counts as up before its first check, so that check is asked for too.
    rows.filter(|row| row.len() > check && !matches!(row[1], "FRONTEND" | "BACKEND"))
        .filter(|row| row[status] != "UP" || !row[check].starts_with("L7OK"))
        .map(|row| format!("{}/{} ({} {})", row[0], row[1], row[status], row[check]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_configuration_gets_this_stacks_addresses() {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let nodes = Nodes { api: vec![address(1), address(2)], live: vec![address(3)] };
        let config = render(TEMPLATE, "127.0.0.1:4", address(5), &nodes);
        assert_eq!(config.matches("bind 127.0.0.1:4").count(), 1);
        assert_eq!(config.matches("stats socket ipv4@127.0.0.1:5").count(), 1);
        // Two backends lead to the API: requests, and builders' connections.
        assert_eq!(config.matches("server api-2 127.0.0.1:2 ").count(), 2);
        assert_eq!(config.matches("server live-1 127.0.0.1:3 ").count(), 1);
        let servers = config.lines().filter(|line| line.trim_start().starts_with("server ")).count();
        assert_eq!(servers, 5, "none of the template's own is left");
    }

    #[test]
    fn a_node_is_up_only_after_its_check() {
        let state = "# pxname,svname,status,check_status\n\
            f,FRONTEND,OPEN,\nb,api-1,UP,L7OK\nb,api-2,UP,INI\nb,api-3,DOWN,L4CON\nb,BACKEND,UP,\n\n";
        assert_eq!(nodes_that_are_not_up(state), ["b/api-2 (UP INI)", "b/api-3 (DOWN L4CON)"]);
        assert!(!nodes_that_are_not_up("").is_empty());
    }
}
