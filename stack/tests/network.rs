//! A network of its own for a child: it reaches this machine while its link is whole, and no other way.

#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

use cratemill_stack::{network::Network, process::Command};
use std::{path::Path, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(10);
/// A packet on a whole link takes microseconds.
const SILENCE: Duration = Duration::from_millis(300);
/// Says a line, then repeats what it hears. In bash, whose redirections speak TCP.
const ECHO: &str = "exec 3<>/dev/tcp/$0/$1; echo hello >&3; cat <&3 >&3";

#[tokio::test]
async fn a_cut_link_is_silent_and_a_healed_one_goes_on() {
    if !Network::available("a_cut_link_is_silent_and_a_healed_one_goes_on").unwrap() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let network = Network::start(dir.path()).await.unwrap();
    let listener = TcpListener::bind((network.host(), 0)).await.unwrap();
    let (host, port) = (network.host().to_string(), listener.local_addr().unwrap().port().to_string());
    let child = Command::new("child", "/bin/bash", dir.path()).args(["-c", ECHO, &host, &port]);
    let _child = network.inside(child).unwrap().spawn().await.unwrap();
    let (stream, _) = timeout(PATIENCE, listener.accept()).await.expect("it connects").unwrap();
    let mut stream = BufReader::new(stream);
    assert_eq!(line(&mut stream).await, "hello\n");

    network.cut().await.unwrap();
    stream.write_all(b"are you there\n").await.unwrap();
    timeout(SILENCE, line(&mut stream)).await.expect_err("nothing comes through");
    assert_eq!(listener.local_addr().unwrap().ip(), network.host(), "this side stays");
    network.heal().await.unwrap();
    assert_eq!(line(&mut stream).await, "are you there\n", "the same connection goes on");

    // Nothing else is to be seen from inside.
    let loopback = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = loopback.local_addr().unwrap().port().to_string();
    let stranger = Command::new("stranger", "/bin/bash", dir.path());
    let stranger = stranger.args(["-c", ECHO, "127.0.0.1", &port]);
    network.inside(stranger).unwrap().run(PATIENCE).await.unwrap_err();
}

async fn line(stream: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    timeout(PATIENCE, stream.read_line(&mut line)).await.expect("a line").unwrap();
    line
}

#[tokio::test]
async fn nothing_of_it_is_left() {
    if !Network::available("nothing_of_it_is_left").unwrap() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let network = Network::start(dir.path()).await.unwrap();
    let (host, other) = (network.host(), Network::start(dir.path()).await.unwrap());
    assert_ne!(host, other.host());
    let device = Path::new("/sys/class/net").join(network.device());
    assert!(device.exists());
    drop(network);
    // The kernel takes a namespace apart in its own time.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while device.exists() {
        assert!(tokio::time::Instant::now() < deadline, "{} is left", device.display());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
