//! One nats-server: its process, and its port and data over restarts.

use crate::{
    ports::Port,
    process::{Command, Process, Signal},
};
use anyhow::{Result, bail};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
};

/// It is there in 0.1 s, unless it has a large store to read.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_GRACE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Server {
    // Before its ports are given back the server has ended.
    process: Option<Process>,
    command: Command,
    client: Port,
    /// Of the other servers' connections; a server alone has none.
    routes: Option<Port>,
}

impl Server {
    /// It is not started yet.
    pub(super) fn new(command: Command, client: Port, routes: Option<Port>) -> Self {
        Self { process: None, command, client, routes }
    }

    /// As the cluster knows it.
    pub fn name(&self) -> &str {
        &self.command.name
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.client.address()
    }

    pub(super) fn route(&self) -> Option<SocketAddr> {
        self.routes.as_ref().map(Port::address)
    }

    pub(super) fn set_env(&mut self, key: &str, value: String) {
        self.command.env.insert(key.to_owned(), value.into());
    }

    pub async fn stop(&mut self) -> Result<()> {
        if let Some(process) = self.process.take() {
            process.stop(Signal::SIGTERM, STOP_GRACE).await?;
        }
        Ok(())
    }

    pub async fn kill9(&mut self) -> Result<()> {
        if let Some(process) = self.process.take() {
            process.kill().await?;
        }
        Ok(())
    }

    /// Starts it again, on the same ports and data.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await?;
        self.run().await
    }

    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    pub(super) async fn run(&mut self) -> Result<()> {
        let process = self.command.spawn().await?;
        process.ready(START_TIMEOUT, async || self.greets().await).await?;
        self.process = Some(process);
        Ok(())
    }

    /// A server introduces itself, and says there whether JetStream is on.
    async fn greets(&self) -> Result<()> {
        let stream = TcpStream::connect(self.address()).await?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).await?;
        if line.contains("\"jetstream\":true") { Ok(()) } else { bail!("it does not announce JetStream") }
    }
}
