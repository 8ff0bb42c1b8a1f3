//! A Postgres server of our own: a data folder, a port on loopback, a password, and no socket file.

use crate::{
    data_dir::DataDir,
    ports::Port,
    process::{Command, Process, Signal},
    programs,
    secrets::Secrets,
};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::{Instant, sleep};

const ROLE: &str = "cratemill";
/// Without a running server, so that a cluster is either whole or not there.
const CREATE_DATABASE: &str = r#"echo "CREATE DATABASE $1" | "$2" --single -D "$3" postgres"#;
/// initdb takes half a second, on a slow disk ten.
const INIT_TIMEOUT: Duration = Duration::from_mins(1);
/// It may have to replay a log after a crash.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_GRACE: Duration = Duration::from_secs(10);
/// A predecessor whose owner was killed has been told to end at once.
const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(10);
/// Services and tests hold pools of ten or so connections each; an idle one costs little.
const MAX_CONNECTIONS: u32 = 300;

#[derive(Debug)]
pub struct Postgres {
    // Before its port is given back the server has ended.
    process: Option<Process>,
    command: Command,
    pg_isready: Command,
    cluster: PathBuf,
    port: Port,
    password: String,
}

impl Postgres {
    /// Data that is kept is always written to the disk; other data only where it is to be `durable`.
    pub async fn start(data_dir: &DataDir, secrets: &mut Secrets, durable: bool) -> Result<Self> {
        let program = programs::POSTGRES.find()?.canonicalize()?;
        let password = secrets.get("postgres")?;
        let (folder, user) = data_dir.for_postgres()?;
        let cluster = folder.join("data");
        let tool = |name: &str| {
            let mut command = Command::new(name, program.with_file_name(name), &data_dir.log());
            command.user.clone_from(&user);
            command.env("LC_ALL", "C.UTF-8")
        };
        if !cluster.exists() {
            init(&folder, &cluster, &password, &tool).await?;
        }
        let port = Port::reserve()?;
        let number = port.number().to_string();
        let pg_isready = tool("pg_isready").args(["-q", "-h", "127.0.0.1", "-p", &number]);
        let mut command = tool("postgres").args(settings(&cluster, &number, durable || data_dir.is_kept()));
        // Ends it at once, and its own children with it; SIGKILL would leave those for a moment.
        command.last_signal = Signal::SIGQUIT;
        let mut this = Self { process: None, command, pg_isready, cluster, port, password };
        this.run().await?;
        Ok(this)
    }

    /// For sqlx and libpq alike; the role may create databases.
    pub fn url(&self) -> String {
        format!("postgres://{ROLE}:{}@{}/{ROLE}", self.password, self.port.address())
    }

    /// Stops it as an operator would: clients are disconnected, everything is written.
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(process) = self.process.take() {
            process.stop(Signal::SIGINT, STOP_GRACE).await?;
        }
        Ok(())
    }

    /// `kill -9`: what was committed must be there after the next start.
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
        clear_stale_pid(&self.cluster).await?;
        let process = self.command.spawn().await?;
        let probe = async || self.pg_isready.run(START_TIMEOUT).await;
        process.ready(START_TIMEOUT, probe).await?;
        self.process = Some(process);
        Ok(())
    }
}

/// Makes the database cluster beside its place and moves it there when it is whole.
async fn init(folder: &Path, cluster: &Path, password: &str, tool: &impl Fn(&str) -> Command) -> Result<()> {
    let unfinished = folder.join("data.new");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    // Readable by its user only, who owns the folder.
    let password_file = folder.join("password");
    fs::write(&password_file, password)?;
    let owner = fs::metadata(folder)?;
    std::os::unix::fs::chown(&password_file, Some(owner.uid()), Some(owner.gid()))?;
    let initdb =
        tool("initdb").args(["--no-sync", "--username", ROLE, "--encoding=UTF8", "--locale=C.UTF-8"]);
    let initdb = initdb.args(["--auth=scram-sha-256", "--pwfile"]).args([&password_file]);
    let result = initdb.args(["--pgdata"]).args([&unfinished]).run(INIT_TIMEOUT).await;
    fs::remove_file(&password_file)?;
    result?;

    let mut create = tool("postgres");
    let postgres = std::mem::replace(&mut create.program, "/bin/sh".into());
    "create-database".clone_into(&mut create.name);
    let create = create.args(["-c", CREATE_DATABASE, "sh", ROLE]).args([&postgres, &unfinished]);
    create.run(INIT_TIMEOUT).await?;
    fs::rename(&unfinished, cluster).context("cannot move the new database cluster to its place")
}

fn settings(cluster: &Path, port: &str, durable: bool) -> Vec<std::ffi::OsString> {
    let mut arguments: Vec<std::ffi::OsString> = vec!["-D".into(), cluster.into(), "-p".into(), port.into()];
    // A killed process loses nothing either way; what goes away with its stack need not outlive a power failure.
    let fsync = format!("fsync={}", if durable { "on" } else { "off" });
    let max_connections = format!("max_connections={MAX_CONNECTIONS}");
    for setting in [
        "listen_addresses=127.0.0.1",
        // A path of a socket file may be at most 107 bytes long; a data folder's may be longer.
        "unix_socket_directories=",
        "shared_buffers=64MB",
        "log_line_prefix=%m [%p] ",
        "timezone=UTC",
        &max_connections,
        &fsync,
    ] {
        arguments.extend(["-c".into(), setting.into()]);
    }
    arguments
}

/// Waits for what an earlier server left to end, and removes its pid file if another process has that pid now.
///
/// The rest Postgres does itself; but it believes in any process of that number.
async fn clear_stale_pid(cluster: &Path) -> Result<()> {
    let deadline = Instant::now() + PREDECESSOR_TIMEOUT;
    while let Some(pid) = process_working_in(cluster) {
        if Instant::now() >= deadline {
            bail!("a Postgres server (pid {pid}) still runs on {}: stop it first", cluster.display());
        }
        sleep(Duration::from_millis(20)).await;
    }
    let file = cluster.join("postmaster.pid");
    let Ok(text) = fs::read_to_string(&file) else { return Ok(()) };
    let pid = text.lines().next().unwrap_or_default().trim();
    if Path::new("/proc").join(pid).exists() {
        fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    Ok(())
}

/// A server and each of its children work in its data folder.
fn process_working_in(folder: &Path) -> Option<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == folder))
}
