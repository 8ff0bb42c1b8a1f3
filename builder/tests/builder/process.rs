//! The program itself: its signals, its errors, and what it leaves behind when it is killed.

use crate::{
    fixture,
    peer::{Line, Peer},
};
use cratemill_builder::sandbox::Cgroups;
use cratemill_protocol::builder::{ClientMessage, Event, ServerMessage};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cratemill-builder"));
    for name in ["SERVER", "KEY_FILE", "WORK_DIR", "TARGETS", "SSH_AUTH_SOCK"] {
        command.env_remove(name);
    }
    // What else fills the disk while the tests run is none of their business.
    command.env("MIN_FREE_DISK_MIB", "0");
    command
}

fn start(peer: &Peer) -> Child {
    let work = peer.folder.path().join("work");
    program()
        .args(["--server", &peer.service.url, "--slots", "2", "--key"])
        .arg(&peer.key_file)
        .arg("--work-dir")
        .arg(work)
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
}

/// Logs in and gives a job that sleeps for ever, under a name that no other test uses.
async fn occupy(peer: &mut Peer, seconds: &str) -> Line {
    let mut line = peer.accept().await;
    let hello = line.log_in(vec![]).await;
    let script = format!("std::process::Command::new(\"/bin/sleep\").arg(\"{seconds}\").status().unwrap();");
    let job = peer.job(7, &hello.targets[0], fixture::with_build_script(&script));
    line.send(ServerMessage::Jobs { jobs: vec![job] }).await;
    loop {
        if let ClientMessage::JobEvent(event) = line.receive().await
            && matches!(&event.event, Event::Log { text, .. } if text.contains("Compiling"))
        {
            break;
        }
    }
    let sleeping = || !sleepers(seconds).is_empty();
    until(sleeping).await;
    line
}

fn sleepers(seconds: &str) -> Vec<PathBuf> {
    let wanted = format!("/bin/sleep\0{seconds}\0");
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    processes
        .filter(|path| std::fs::read(path.join("cmdline")).is_ok_and(|c| c == wanted.as_bytes()))
        .collect()
}

/// There is no event for a process of somebody else to begin or to end.
async fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come about");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn killed_it_leaves_no_process_and_the_next_start_cleans_up() {
    let mut peer = Peer::start().await;
    let mut child = start(&peer);
    let line = occupy(&mut peer, "61611").await;
    let prefix =
        format!("cratemill-{}-", std::fs::read_to_string(peer.folder.path().join("work/instance")).unwrap());
    signal(&child, Signal::SIGKILL);
    child.wait().unwrap();
    drop(line);
    until(|| sleepers("61611").is_empty()).await;
    assert!(peer.folder.path().join("work/jobs/7-1").exists());

    let mut child = start(&peer);
    peer.accept().await.log_in(vec![]).await;
    assert!(!peer.folder.path().join("work/jobs/7-1").exists());
    if let Cgroups::V1 { memory, .. } = Cgroups::detect("cratemill-test-") {
        let names = std::fs::read_dir(memory).unwrap().flatten().map(|entry| entry.file_name());
        let left: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with(&prefix)).collect();
        assert!(left.is_empty(), "{left:?}");
    }
    signal(&child, Signal::SIGTERM);
    assert!(child.wait().unwrap().success());
}

#[tokio::test]
async fn the_second_signal_ends_it_at_once() {
    let mut peer = Peer::start().await;
    let mut child = start(&peer);
    let mut line = occupy(&mut peer, "61622").await;
    signal(&child, Signal::SIGTERM);
    while line.receive().await != (ClientMessage::JobRequest { slots: 0 }) {}
    assert!(!sleepers("61622").is_empty(), "draining, the job goes on");
    signal(&child, Signal::SIGTERM);
    assert!(!tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap().success());
    assert!(sleepers("61622").is_empty());
}

fn fails(args: &[&str], key: Option<&Path>) -> String {
    let mut command = program();
    command.args(args);
    if let Some(key) = key {
        command.arg("--key").arg(key);
    }
    let Output { status, stderr, .. } = command.output().unwrap();
    assert!(!status.success());
    String::from_utf8(stderr).unwrap()
}

#[tokio::test]
async fn what_is_wrong_is_said_before_it_dials() {
    let peer = Peer::start().await;
    let key = Some(peer.key_file.as_path());
    let work = peer.folder.path().join("w").display().to_string();
    for (args, key, words) in [
        (&[][..], None, "--server"),
        (&["--server", "http://x"], None, "--key"),
        (&["--server", "not a url"], key, "is not a URL"),
        (&["--server", "ftp://x"], key, "http:// or https://"),
        (&["--server", "http://x"], Some(Path::new("/nonexistent")), "cannot read the key"),
        (&["--server", "http://x", "--agent"], None, "SSH_AUTH_SOCK"),
        (&["--server", "http://x", "--toolchain", "/nonexistent"], key, "there is no toolchain"),
        (&["--server", "http://x", "--target", "m68k-none"], key, "rustup target add m68k-none"),
        (&["--server", "http://x", "--max-memory-mib", "0"], key, "would let no job run"),
    ] {
        let args = [args, &["--work-dir", &work]].concat();
        let stderr = fails(&args, key);
        assert!(stderr.contains(words), "{args:?}: {stderr}");
    }
}
