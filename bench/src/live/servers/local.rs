//! Servers that are this program, in a process of their own.

use anyhow::Result;
use cratemill_stack::{
    data_dir::DataDir,
    ports::Port,
    process::{Command, Process, Signal},
};
use std::{net::SocketAddr, time::Duration};
use tokio::net::TcpStream;

const START_TIMEOUT: Duration = Duration::from_secs(10);
const STOP_GRACE: Duration = Duration::from_secs(5);

pub(in crate::live) struct Local {
    process: Process,
    port: Port,
    _data_dir: DataDir,
}

impl Local {
    /// `command` is one of this program, that takes an address to listen on.
    pub(in crate::live) async fn start(name: &str, command: &str) -> Result<Self> {
        let (data_dir, port) = (DataDir::temporary()?, Port::reserve()?);
        let address = port.address();
        let process = Command::new(name, std::env::current_exe()?, &data_dir.log())
            .args([command, "--listen", &address.to_string()])
            .spawn()
            .await?;
        process.ready(START_TIMEOUT, async || Ok(TcpStream::connect(address).await.map(drop)?)).await?;
        Ok(Self { process, port, _data_dir: data_dir })
    }

    pub(in crate::live) fn address(&self) -> SocketAddr {
        self.port.address()
    }

    pub(in crate::live) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(in crate::live) async fn stop(self) -> Result<()> {
        self.process.stop(Signal::SIGTERM, STOP_GRACE).await.map(drop)
    }
}
