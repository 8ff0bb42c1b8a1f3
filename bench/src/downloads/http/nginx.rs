//! The peer: an nginx that answers every request with one redirect, as long as ours and with the same headers, and counts
//! nothing.

use crate::{cpu, downloads::answer::headers};
use anyhow::{Context, Result, ensure};
use cratemill_stack::{
    data_dir::DataDir,
    ports::Port,
    process::{Command, Process, Signal},
    programs,
};
use std::{fmt::Write, fs, net::SocketAddr, path::Path, time::Duration};
use tokio::net::TcpStream;

const START_TIMEOUT: Duration = Duration::from_secs(10);
const STOP_GRACE: Duration = Duration::from_secs(5);
/// What nginx says by itself.
const ITS_OWN: [&str; 5] = ["location", "content-length", "content-type", "date", "connection"];

pub(super) struct Nginx {
    process: Process,
    port: Port,
    // Removed after the server has ended.
    _data_dir: DataDir,
}

impl Nginx {
    /// `answer` is the head of one of ours.
    pub(super) async fn start(answer: &str) -> Result<Self> {
        programs::install_missing(&[programs::NGINX], |text| println!("{text}"))?;
        let (data_dir, port) = (DataDir::temporary()?, Port::reserve()?);
        let (folder, config) = (data_dir.path(), data_dir.path().join("nginx.conf"));
        fs::write(&config, render(folder, port.address(), answer)?)?;
        let mut command = Command::new("nginx", programs::NGINX.find()?, &data_dir.log());
        command = command.args(["-p"]).args([folder]).args(["-e", "stderr", "-c"]).args([&config]);
        // Ends it at once, and its worker with it; SIGKILL would leave that one behind.
        command.last_signal = Signal::SIGTERM;
        let process = command.spawn().await?;
        let address = port.address();
        process.ready(START_TIMEOUT, async || Ok(TcpStream::connect(address).await.map(drop)?)).await?;
        Ok(Self { process, port, _data_dir: data_dir })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Of all its processes.
    pub(super) fn cpu(&self) -> Result<Duration> {
        cpu::of_tree(self.process.pid())
    }

    pub(super) async fn stop(self) -> Result<()> {
        self.process.stop(Signal::SIGTERM, STOP_GRACE).await.map(drop)
    }
}

/// One worker, since what a core can do is asked; no log, and connections that are kept.
fn render(folder: &Path, address: SocketAddr, answer: &str) -> Result<String> {
    let (mut location, mut more) = (None, String::new());
    for (name, value) in headers(answer) {
        let plain = !value.contains(['"', '$', '\\', ';', '{', '}']);
        ensure!(plain, "nginx would read something in {name}: {value}");
        if name.eq_ignore_ascii_case("location") {
            location = Some(value);
        } else if !ITS_OWN.iter().any(|own| name.eq_ignore_ascii_case(own)) {
            let _ = writeln!(more, "            add_header {name} \"{value}\";");
        }
    }
    let location = location.context("the answer is no redirect")?;
    let folder = folder.display();
    Ok(format!(
        "daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
events {{ worker_connections 4096; }}
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
    server {{
        listen {address};
        location / {{
{more}            return 302 \"{location}\";
        }}
    }}
}}
"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_answers_as_we_do() {
        let answer = "HTTP/1.1 302 Found\r\nlocation: http://s3/a?b=%20c&d\r\ncache-control: private\r\n\
            content-length: 0\r\ndate: now\r\n\r\n";
        let address = SocketAddr::from(([127, 0, 0, 1], 7));
        let config = render(Path::new("/f"), address, answer).unwrap();
        assert!(config.contains("return 302 \"http://s3/a?b=%20c&d\";"), "{config}");
        assert_eq!(config.matches("add_header").count(), 1);
        assert!(config.contains("add_header cache-control \"private\";"), "{config}");
        assert!(render(Path::new("/f"), address, "HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(render(Path::new("/f"), address, "HTTP/1.1 302 x\r\nlocation: $host\r\n\r\n").is_err());
    }
}
