//! Starts every child from one thread that lives as long as the process.
//!
//! A child asks the kernel for a signal when its parent dies, and for the kernel the parent is the *thread* that
//! forked: a child that a runtime's worker started would die with that worker.

use anyhow::{Context, Result};
use std::{process, sync::LazyLock, thread};
use tokio::sync::{mpsc, oneshot};

/// A spawn takes about a millisecond and whoever asks waits for it: a queue beyond this is a bug elsewhere.
const QUEUE: usize = 64;

struct Request {
    command: process::Command,
    reply: oneshot::Sender<std::io::Result<process::Child>>,
}

static SPAWNER: LazyLock<mpsc::Sender<Request>> = LazyLock::new(|| {
    let (sender, mut requests) = mpsc::channel::<Request>(QUEUE);
    thread::Builder::new()
        .name("spawner".into())
        .spawn(move || {
            while let Some(Request { mut command, reply }) = requests.blocking_recv() {
                // Whoever asked may have gone: then nobody would look after the child.
                if let Err(Ok(mut orphan)) = reply.send(command.spawn()) {
                    let _ = orphan.kill();
                    let _ = orphan.wait();
                }
            }
        })
        .expect("a process can start one more thread");
    sender
});

pub(crate) async fn spawn(command: process::Command) -> Result<process::Child> {
    let program = command.get_program().display().to_string();
    let (reply, child) = oneshot::channel();
    SPAWNER.send(Request { command, reply }).await.context("the spawner thread ended")?;
    child.await.context("the spawner thread ended")?.with_context(|| format!("cannot start {program}"))
}
