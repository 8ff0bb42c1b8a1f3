//! A Redis server, for peers and dialects that want one: in memory only. Or a sentinel, which knows where the others are.

use crate::{
    data_dir::DataDir,
    ports::Port,
    process::{Command, Process, Signal},
    programs,
};
use anyhow::{Result, bail};
use std::{fs, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const START_TIMEOUT: Duration = Duration::from_secs(10);
const STOP_GRACE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Redis {
    // Before its port is given back the server has ended.
    process: Option<Process>,
    command: Command,
    port: Port,
}

impl Redis {
    pub async fn start(data_dir: &DataDir) -> Result<Self> {
        let options = ["--save", "", "--appendonly", "no", "--dir"].map(Into::into);
        Self::run(data_dir, options.into_iter().chain([data_dir.path().into()])).await
    }

    /// A copy of another server, which may come to be the one that is written to.
    pub async fn replica(data_dir: &DataDir, of: &Self) -> Result<Self> {
        let port = of.port.number().to_string();
        let options = ["--save", "", "--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"];
        let options = options.into_iter().chain(["--replicaof", "127.0.0.1", &port, "--dir"]);
        let options: Vec<_> = options.map(Into::into).chain([data_dir.path().into()]).collect();
        Self::run(data_dir, options).await
    }

    /// Watches a server under this name, and lets a replica take its place half a second after it was heard of last.
    pub async fn sentinel(data_dir: &DataDir, name: &str, of: &Self) -> Result<Self> {
        let file = data_dir.path().join("sentinel.conf");
        let watched = format!(
            "sentinel monitor {name} 127.0.0.1 {} 1\nsentinel down-after-milliseconds {name} 500\n\
             sentinel failover-timeout {name} 3000\n",
            of.port.number()
        );
        fs::write(&file, watched)?;
        Self::run(data_dir, [file.into(), "--sentinel".into()]).await
    }

    async fn run(data_dir: &DataDir, options: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Self> {
        let port = Port::reserve()?;
        let name = format!("redis-{}", port.number());
        let command = Command::new(name, programs::REDIS_SERVER.find()?, &data_dir.log());
        let mut options: Vec<_> = options.into_iter().collect();
        // The file of a sentinel comes first.
        let at = usize::from(options.first().is_some_and(|first| !first.to_string_lossy().starts_with("--")));
        let number = port.number().to_string();
        let bound = ["--bind", "127.0.0.1", "--port", &number].map(Into::into);
        options.splice(at..at, bound);
        let mut this = Self { process: None, command: command.args(options), port };
        this.restart().await?;
        Ok(this)
    }

    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.port.address())
    }

    pub async fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            Some(process) => process.stop(Signal::SIGTERM, STOP_GRACE).await.map(drop),
            None => Ok(()),
        }
    }

    /// `kill -9`.
    pub async fn kill9(&mut self) -> Result<()> {
        match self.process.take() {
            Some(process) => process.kill().await.map(drop),
            None => Ok(()),
        }
    }

    /// Starts it, again if it runs, on the same port and with nothing in it.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await?;
        let process = self.command.spawn().await?;
        let address = self.port.address();
        let probe = async || {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(b"PING\r\n").await?;
            let mut reply = [0; 7];
            stream.read_exact(&mut reply).await?;
            if reply == *b"+PONG\r\n" { Ok(()) } else { bail!("it does not answer PING") }
        };
        process.ready(START_TIMEOUT, probe).await?;
        self.process = Some(process);
        Ok(())
    }

    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }
}
