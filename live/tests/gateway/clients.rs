//! Clients that were written from the contracts alone, by somebody who had not seen our code, through the load balancer to
//! two nodes, one of which may die. They need Python and its packages: where these cannot be had the tests say that they
//! skip.

use crate::{
    event_api::SECRET,
    farm::{Farm, Node, PATIENCE},
    mastodon,
};
use cratemill_stack::{
    data_dir::DataDir,
    haproxy::{Haproxy, Nodes},
    process::Signal,
};
use sqlx::PgPool;
use std::{
    fs::{self, File},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};

/// A whole run: some of what they look at takes half a minute by itself.
const RUN: Duration = Duration::from_mins(4);
const INSTALL: Duration = Duration::from_mins(3);
const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");

/// The Python that has what they need, which is installed once for all tests.
async fn python() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients");
    let python = folder.join("venv/bin/python");
    let venv = folder.join("venv").display().to_string();
    let requirements = Path::new(CLIENTS).join("requirements.txt").display().to_string();
    let pip = python.display().to_string();
    let commands = [
        vec!["python3", "-m", "venv", "--clear", &venv],
        vec![&pip, "-m", "pip", "install", "--quiet", "--requirement", &requirements],
    ];
    installed(&folder, "requirements.txt", &commands).await.then_some(python)
}

/// The folder of the packages of npm.
async fn node_modules() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("node-clients");
    let path = folder.display().to_string();
    fs::create_dir_all(&folder).unwrap();
    fs::copy(Path::new(CLIENTS).join("package.json"), folder.join("package.json")).unwrap();
    let install = vec!["npm", "install", "--no-audit", "--no-fund", "--prefix", &path];
    installed(&folder, "package.json", &[install]).await.then_some(folder)
}

/// Whether what is wanted is there, after these commands if it was not.
async fn installed(folder: &Path, wanted: &str, commands: &[Vec<&str>]) -> bool {
    fs::create_dir_all(folder).unwrap();
    let lock = File::create(folder.join("lock")).unwrap();
    // Another test may be at it.
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await.unwrap().unwrap();
    let wanted = fs::read_to_string(Path::new(CLIENTS).join(wanted)).unwrap();
    let has = folder.join("has");
    if fs::read_to_string(&has).ok().as_ref() != Some(&wanted) {
        for command in commands {
            let output = Command::new(command[0]).args(&command[1..]).kill_on_drop(true).output();
            let output = timeout(INSTALL, output).await;
            let Ok(Ok(output)) = output else {
                eprintln!("SKIPPED: {command:?} cannot be run");
                return false;
            };
            if !output.status.success() {
                eprintln!("SKIPPED: {command:?}: {}", String::from_utf8_lossy(&output.stderr));
                return false;
            }
        }
        fs::write(&has, wanted).unwrap();
    }
    drop(lock);
    true
}

struct Scene {
    farm: Farm,
    nodes: Vec<Node>,
    balancer: Haproxy,
    _folder: DataDir,
}

impl Scene {
    async fn start(pool: PgPool) -> Self {
        let farm = Farm::start(pool).await;
        let nodes = vec![node(&farm).await, node(&farm).await];
        let folder = DataDir::temporary().unwrap();
        let live = nodes.iter().map(|node| ([127, 0, 0, 1], node.port).into()).collect();
        let behind = Nodes { api: Vec::new(), live };
        let balancer = Haproxy::start(&folder, Ipv4Addr::LOCALHOST, &behind).await.unwrap();
        balancer.wait_for_nodes(PATIENCE).await.unwrap();
        Self { farm, nodes, balancer, _folder: folder }
    }

    fn client(&self, python: &Path, program: &str, what: &str) -> Child {
        Command::new(python)
            .arg(Path::new(CLIENTS).join(program))
            .args([what, &self.balancer.url()])
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }
}

async fn node(farm: &Farm) -> Node {
    let bus = farm.nats.url("admin").unwrap();
    farm.node_with(&[
        ("DIALECTS", "events,cbor"),
        ("EVENTS_SECRET", SECRET),
        ("EVENTS_ORIGIN", "http://page.example"),
        ("CLIENT_ADDRESS_HEADER", "x-forwarded-for"),
        ("NATS_URL", &bus),
    ])
    .await
}

async fn conforms(pool: PgPool, program: &str) {
    let Some(python) = python().await else { return };
    let scene = Scene::start(pool).await;
    let client = scene.client(&python, program, "conformance");
    let output = timeout(RUN, client.wait_with_output()).await.expect("it ends").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// A node dies in the middle, and another one comes.
async fn survives(pool: PgPool, program: &str, before: Duration, after: Duration) {
    let Some(python) = python().await else { return };
    let mut scene = Scene::start(pool).await;
    let mut client = scene.client(&python, program, "survive");
    let (mut input, output) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
    let mut output = BufReader::new(output);
    let mut line = String::new();
    timeout(RUN, output.read_line(&mut line)).await.unwrap().unwrap();
    assert_eq!(line.trim(), "ready");
    // What it needs to tell quiet times from others: it has a clock of its own.
    sleep(before).await;
    scene.nodes[0].process.signal(Signal::SIGKILL);
    scene.nodes.push(node(&scene.farm).await);
    sleep(after).await;
    input.write_all(b"end\n").await.unwrap();
    let mut verdict = String::new();
    timeout(RUN, output.read_to_string(&mut verdict)).await.expect("it ends").unwrap();
    assert!(client.wait().await.unwrap().success(), "{verdict}");
    println!("{verdict}");
}

#[sqlx::test(migrations = "../migrations")]
async fn the_event_api_keeps_its_contract(pool: PgPool) {
    conforms(pool, "event_api.py").await;
}

#[sqlx::test(migrations = "../migrations")]
async fn cbor_keeps_its_contract(pool: PgPool) {
    conforms(pool, "cbor_pubsub.py").await;
}

#[sqlx::test(migrations = "../migrations")]
async fn the_event_api_survives_the_death_of_a_node(pool: PgPool) {
    survives(pool, "event_api.py", Duration::from_secs(4), Duration::from_secs(4)).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn cbor_survives_the_death_of_a_node(pool: PgPool) {
    survives(pool, "cbor_pubsub.py", Duration::from_secs(8), Duration::from_secs(15)).await;
}

/// What the contract says, and real clients where they can be had.
async fn mastodon_is_spoken(pool: PgPool, what: &str, node_modules: &str) {
    let Some(python) = python().await else { return };
    let scene = mastodon::Scene::start(&pool).await;
    let node = scene.node().await;
    let client = Command::new(python)
        .arg(Path::new(CLIENTS).join("mastodon.py"))
        .args([what, &node.url])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("DATABASE_URL", &scene.database)
        .env("REDIS_URL", scene.redis.url())
        .env("NODE_MODULES", node_modules)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let output = timeout(RUN, client.wait_with_output()).await.expect("it ends").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[sqlx::test(migrations = false)]
async fn mastodon_keeps_its_contract(pool: PgPool) {
    mastodon_is_spoken(pool, "conformance", "").await;
}

#[sqlx::test(migrations = false)]
async fn mastodon_is_what_its_clients_expect(pool: PgPool) {
    let node_modules = node_modules().await.unwrap_or_default();
    mastodon_is_spoken(pool, "clients", &node_modules.display().to_string()).await;
}
