//! A Redis server, for peers and dialects that want one: in memory only.

use crate::{
    data_dir::DataDir,
    ports::Port,
    process::{Command, Process, Signal},
    programs,
};
use anyhow::{Result, bail};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const START_TIMEOUT: Duration = Duration::from_secs(10);
const STOP_GRACE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Redis {
    process: Process,
    port: Port,
}

impl Redis {
    pub async fn start(data_dir: &DataDir) -> Result<Self> {
        let port = Port::reserve()?;
        let mut command = Command::new("redis", programs::REDIS_SERVER.find()?, &data_dir.log());
        command = command.args(["--bind", "127.0.0.1", "--port", &port.number().to_string()]);
        command = command.args(["--save", "", "--appendonly", "no", "--dir"]).args([data_dir.path()]);
        let process = command.spawn().await?;
        let address = port.address();
        let probe = async || {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(b"PING\r\n").await?;
            let mut reply = [0; 7];
            stream.read_exact(&mut reply).await?;
            if reply == *b"+PONG\r\n" { Ok(()) } else { bail!("it does not answer PING") }
        };
        process.ready(START_TIMEOUT, probe).await?;
        Ok(Self { process, port })
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.port.address())
    }

    pub async fn stop(self) -> Result<()> {
        self.process.stop(Signal::SIGTERM, STOP_GRACE).await.map(drop)
    }

    pub fn process(&self) -> &Process {
        &self.process
    }
}
