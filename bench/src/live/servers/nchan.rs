//! The peer: nginx with nchan, from Debian's package.

use crate::cpu;
use anyhow::Result;
use cratemill_stack::{
    data_dir::DataDir,
    ports::Port,
    process::{Command, Process, Signal},
    programs,
};
use nix::{sys::signal, unistd::Pid};
use std::{fs, net::SocketAddr, path::Path, time::Duration};
use tokio::net::TcpStream;

/// Below `/live/`, where the load balancer leads to live nodes.
pub(in crate::live) const FOLLOW_PATH: &str = "/live/follow";
pub(in crate::live) const PUBLISH_PATH: &str = "/publish";
const START_TIMEOUT: Duration = Duration::from_secs(10);
const STOP_GRACE: Duration = Duration::from_secs(5);

pub(in crate::live) struct Nchan {
    process: Option<Process>,
    command: Command,
    port: Port,
    // Removed after the server has ended.
    _data_dir: DataDir,
}

impl Nchan {
    pub(in crate::live) async fn start() -> Result<Self> {
        let mut this = Self::prepare(None)?;
        this.run().await?;
        Ok(this)
    }

    /// With the URL of a Redis several of them share their channels.
    pub(in crate::live) fn prepare(redis: Option<&str>) -> Result<Self> {
        programs::install_missing(&[programs::NGINX, programs::NCHAN], |text| println!("{text}"))?;
        let (data_dir, port) = (DataDir::temporary()?, Port::reserve()?);
        let (folder, config) = (data_dir.path(), data_dir.path().join("nginx.conf"));
        fs::write(&config, render(folder, &programs::NCHAN.find()?, port.address(), redis))?;
        let mut command = Command::new("nginx", programs::NGINX.find()?, &data_dir.log());
        command = command.args(["-p"]).args([folder]).args(["-e", "stderr", "-c"]).args([&config]);
        // Ends it at once, and its worker with it; SIGKILL would leave that one behind.
        command.last_signal = Signal::SIGTERM;
        Ok(Self { process: None, command, port, _data_dir: data_dir })
    }

    pub(in crate::live) async fn run(&mut self) -> Result<()> {
        let (process, address) = (self.command.spawn().await?, self.address());
        process.ready(START_TIMEOUT, async || Ok(TcpStream::connect(address).await.map(drop)?)).await?;
        self.process = Some(process);
        Ok(())
    }

    pub(in crate::live) fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Of the process whose children are the others, while it runs.
    pub(in crate::live) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// `kill -9` for all of its processes. The first is ended first: it would start another worker.
    pub(in crate::live) async fn kill9(&mut self) -> Result<()> {
        let Some(process) = self.process.take() else { return Ok(()) };
        let workers = cpu::children(process.pid());
        process.kill().await?;
        for pid in workers {
            // It may have ended by itself.
            let _ = signal::kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL);
        }
        Ok(())
    }

    pub(in crate::live) async fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            Some(process) => process.stop(Signal::SIGTERM, STOP_GRACE).await.map(drop),
            None => Ok(()),
        }
    }
}

/// One worker, since what a core can do is asked; as many events are kept as a viewer may fall behind, and no log.
fn render(folder: &Path, module: &Path, address: SocketAddr, redis: Option<&str>) -> String {
    let (folder, module) = (folder.display(), module.display());
    let (upstream, shared) = match redis {
        Some(url) => (
            format!("upstream bus {{ nchan_redis_server {url}; }}"),
            "nchan_redis_pass bus; nchan_redis_storage_mode distributed;",
        ),
        None => (String::new(), ""),
    };
    format!(
        "load_module {module};
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {folder}/nginx.pid;
events {{ worker_connections 19900; }}
http {{
    access_log off;
    server_tokens off;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    nchan_shared_memory_size 256M;
    {upstream}
    server {{
        listen {address} backlog=4096;
        location = /readyz {{ return 200; }}
        location = {PUBLISH_PATH} {{
            nchan_publisher http;
            nchan_channel_id queue;
            nchan_message_buffer_length 4000;
            nchan_message_timeout 10m;
            {shared}
        }}
        location = {FOLLOW_PATH} {{
            nchan_subscriber eventsource;
            nchan_channel_id queue;
            nchan_subscriber_first_message newest;
            {shared}
        }}
    }}
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_that_share_need_a_redis() {
        let render = |redis| render(Path::new("/f"), Path::new("/m.so"), ([127, 0, 0, 1], 7).into(), redis);
        assert!(!render(None).contains("redis"));
        let shared = render(Some("redis://127.0.0.1:1"));
        assert_eq!(shared.matches("nchan_redis_pass bus;").count(), 2, "{shared}");
    }
}
