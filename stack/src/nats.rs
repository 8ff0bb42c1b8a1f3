//! A nats-server with JetStream, on the repository's own `nats.conf`.

use crate::{
    data_dir::DataDir,
    ports::Port,
    process::{Command, Process, Signal},
    programs,
    secrets::Secrets,
};
use anyhow::{Context, Result, bail};
use std::{fs, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
};

/// Compiled in, so that a test runs the configuration that is shipped, wherever it runs.
const CONFIG: &str = include_str!("../../nats.conf");
/// The users of `nats.conf`, each with the variable that holds its password.
const USERS: &[(&str, &str)] = &[
    ("api", "NATS_API_PASSWORD"),
    ("live", "NATS_LIVE_PASSWORD"),
    ("dispatcher", "NATS_DISPATCHER_PASSWORD"),
    ("counter", "NATS_COUNTER_PASSWORD"),
    ("admin", "NATS_ADMIN_PASSWORD"),
];
/// It is there in 0.1 s, unless it has a large store to read.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_GRACE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Nats {
    process: Option<Process>,
    command: Command,
    port: Port,
    passwords: Vec<(&'static str, String)>,
}

impl Nats {
    pub async fn start(data_dir: &DataDir, secrets: &mut Secrets) -> Result<Self> {
        let port = Port::reserve()?;
        let config = data_dir.path().join("nats.conf");
        fs::write(&config, CONFIG)?;
        let mut command = Command::new("nats", programs::NATS_SERVER.find()?, &data_dir.log());
        command = command.args(["-c"]).args([&config]);
        // The server reads a variable as it reads its configuration: quotes keep a path with spaces whole.
        command = command.env("NATS_STORE_DIR", format!("\"{}\"", data_dir.path().join("nats").display()));
        command = command.args(["-a", "127.0.0.1", "-p", &port.number().to_string()]);
        let mut passwords = Vec::new();
        for (user, variable) in USERS {
            let password = secrets.get(&format!("nats_{user}"))?;
            command = command.env(variable, &password);
            passwords.push((*user, password));
        }
        let mut this = Self { process: None, command, port, passwords };
        this.run().await?;
        Ok(this)
    }

    /// With the name and password of one of the users in `nats.conf`.
    pub fn url(&self, user: &str) -> Result<String> {
        let (user, password) =
            self.passwords.iter().find(|(name, _)| *name == user).context("nats.conf has no such user")?;
        Ok(format!("nats://{user}:{password}@{}", self.port.address()))
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

    /// Starts it again, on the same port and data.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await?;
        self.run().await
    }

    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    async fn run(&mut self) -> Result<()> {
        let process = self.command.spawn().await?;
        process.ready(START_TIMEOUT, async || self.greets().await).await?;
        self.process = Some(process);
        Ok(())
    }

    /// A server introduces itself, and says there whether JetStream is on.
    async fn greets(&self) -> Result<()> {
        let stream = TcpStream::connect(self.port.address()).await?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).await?;
        if line.contains("\"jetstream\":true") { Ok(()) } else { bail!("it does not announce JetStream") }
    }
}
