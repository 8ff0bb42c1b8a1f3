//! Whoever holds a stack may be killed at any moment: nothing of it survives, and nothing stands in the way of the next.

use cratemill_stack::{Cluster, Options};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// In the environment of [`holder`]: the folder of its stack.
const DATA_DIR: &str = "STACK_TEST_DATA_DIR";
const READY: &str = "holder is ready";
/// Postgres ends its backends one by one.
const PATIENCE: Duration = Duration::from_secs(10);

/// The programs around our own; those die by the same means.
fn infrastructure(data_dir: &Path) -> Options {
    Options {
        api: 0,
        live: 0,
        dispatcher: 0,
        counter: 0,
        builder: 0,
        redis: true,
        data_dir: Some(data_dir.to_owned()),
        ..Options::default()
    }
}

#[tokio::test]
#[ignore = "the process that the test below starts and kills"]
async fn holder() {
    let Some(data_dir) = std::env::var_os(DATA_DIR) else { return };
    let _cluster = Cluster::start(infrastructure(Path::new(&data_dir))).await.unwrap();
    println!("{READY}");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn nothing_survives_the_killing_of_its_owner() {
    let data_dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let mut holder = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "holder", "--nocapture"])
            .env(DATA_DIR, data_dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(holder.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.contains(READY)), "the stack starts");
        let children = descendants(holder.id());
        let names: BTreeSet<_> = children.iter().filter_map(|pid| name(*pid)).collect();
        for program in ["postgres", "nats-server", "haproxy", "redis-server"] {
            assert!(names.contains(program), "{program} runs among {names:?}");
        }
        kill(Pid::from_raw(i32::try_from(holder.id()).unwrap()), Signal::SIGKILL).unwrap();
        holder.wait().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left: Vec<_> = children.iter().filter_map(|pid| name(*pid)).collect();
            if left.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "these survive: {left:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let cluster = Cluster::start(infrastructure(data_dir.path())).await.unwrap();
    cluster.stop().await.unwrap();
}

fn descendants(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        found.extend(pids.filter(|pid| status(*pid, "PPid:") == Some(parent.to_string())));
        next += 1;
    }
    found.split_off(1)
}

/// Of a process that lives: one that nobody has reaped yet does not.
fn name(pid: u32) -> Option<String> {
    let state = status(pid, "State:")?;
    if state.starts_with('Z') { None } else { status(pid, "Name:") }
}

fn status(pid: u32, field: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(text.lines().find_map(|line| line.strip_prefix(field))?.trim().to_owned())
}
