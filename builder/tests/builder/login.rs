//! Keys, challenges, refusals, and the end of the program.

use crate::peer::Peer;
use cratemill_builder::{agent::Signal, config::Config, identity};
use cratemill_protocol::builder::{ClientMessage, CloseReason, ServerMessage};
use ssh_key::{LineEnding, PrivateKey, rand_core::OsRng};
use std::{
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

#[tokio::test]
async fn logs_in_asks_for_its_slots_beats_and_drains() {
    let mut peer = Peer::start().await;
    let builder = Peer::dial(peer.config());
    let mut line = peer.accept().await;
    let hello = line.log_in_beating(1, vec![]).await;
    assert_eq!((hello.slots, hello.targets.len()), (2, 1));
    assert_eq!(line.receive().await, ClientMessage::JobRequest { slots: 2 });
    let ClientMessage::Heartbeat(beat) = line.receive().await else { panic!("a heartbeat") };
    assert!(beat.load.free_disk_bytes > 0 && beat.load.free_memory_bytes > 0 && beat.running.is_empty());
    builder.signals.send(Signal::Drain).await.unwrap();
    loop {
        match line.receive().await {
            ClientMessage::Goodbye { .. } => break,
            ClientMessage::Heartbeat(_) => {}
            other => panic!("{other:?}"),
        }
    }
    builder.ended().await.unwrap();
}

#[tokio::test]
async fn a_full_disk_takes_no_job() {
    let mut peer = Peer::start().await;
    let builder = Peer::dial(Config { reserve_bytes: u64::MAX, ..peer.config() });
    let mut line = peer.accept().await;
    assert_eq!(line.log_in_beating(1, vec![]).await.slots, 2, "which is what it has, not what it asks for");
    assert_eq!(line.receive().await, ClientMessage::JobRequest { slots: 0 });
    assert!(matches!(line.receive().await, ClientMessage::Heartbeat(_)), "asked for once");
    assert!(matches!(line.receive().await, ClientMessage::Heartbeat(_)), "and no more");
    builder.signals.send(Signal::Abort).await.unwrap();
}

#[tokio::test]
async fn signs_for_nobody_but_the_server_it_dialled() {
    let mut peer = Peer::start().await;
    let builder = Peer::dial(peer.config());
    let mut line = peer.accept().await;
    line.hello().await;
    line.challenge("https://elsewhere.test").await;
    assert_eq!(line.receive_or_end().await, None);
    let error = builder.ended().await.unwrap_err().to_string();
    assert!(error.contains("https://elsewhere.test") && error.contains("--server-name"), "{error}");
}

#[tokio::test]
async fn a_final_refusal_ends_it_and_another_makes_it_dial_again() {
    let mut peer = Peer::start().await;
    let builder = Peer::dial(peer.config());
    let mut line = peer.accept().await;
    line.log_in(vec![]).await;
    let close = |reason, message: &str| ServerMessage::Close { reason, message: message.to_owned() };
    line.send(close(CloseReason::Draining, "this node goes away")).await;
    let mut line = peer.accept().await;
    line.hello().await;
    line.send(close(CloseReason::UnknownKey, "no such key")).await;
    let error = builder.ended().await.unwrap_err().to_string();
    assert!(error.contains("no such key"), "{error}");
}

#[tokio::test]
async fn rubbish_from_a_server_makes_it_dial_again() {
    let mut peer = Peer::start().await;
    let builder = Peer::dial(peer.config());
    let mut line = peer.accept().await;
    line.hello().await;
    // Not for this moment.
    line.send(ServerMessage::Drain).await;
    let mut line = peer.accept().await;
    line.log_in(vec![]).await;
    builder.signals.send(Signal::Abort).await.unwrap();
    assert!(builder.ended().await.is_err());
}

#[tokio::test]
async fn an_encrypted_key_wants_its_passphrase() {
    let mut peer = Peer::start().await;
    let key = PrivateKey::read_openssh_file(&peer.key_file).unwrap();
    key.encrypt(&mut OsRng, "open sesame")
        .unwrap()
        .write_openssh_file(&peer.key_file, LineEnding::LF)
        .unwrap();
    let passphrase_file = peer.folder.path().join("passphrase");
    let source =
        |file: Option<PathBuf>| identity::Source::File { path: peer.key_file.clone(), passphrase_file: file };
    std::fs::write(&passphrase_file, "wrong").unwrap();
    let error = identity::Identity::load(&source(Some(passphrase_file.clone()))).unwrap_err();
    assert!(error.to_string().contains("does not open"), "{error}");
    std::fs::write(&passphrase_file, "open sesame\n").unwrap();
    let mut config = peer.config();
    config.key = source(Some(passphrase_file));
    let builder = Peer::dial(config);
    peer.accept().await.log_in(vec![]).await;
    builder.signals.send(Signal::Drain).await.unwrap();
    builder.ended().await.unwrap();
}

struct SshAgent(Child);

impl Drop for SshAgent {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test]
async fn an_ssh_agent_signs_and_the_key_stays_there() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent");
    let child =
        Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn().unwrap();
    let _agent = SshAgent(child);
    let keys = ["ed25519", "rsa", "ecdsa"].map(|kind| {
        let path = folder.path().join(kind);
        let made =
            Command::new("ssh-keygen").args(["-q", "-N", "", "-t", kind, "-f"]).arg(&path).status().unwrap();
        assert!(made.success());
        path
    });
    // Answers once it listens.
    let add =
        |key: &PathBuf| Command::new("ssh-add").arg("-q").arg(key).env("SSH_AUTH_SOCK", &socket).status();
    // It has a name before it is listened on.
    while UnixStream::connect(&socket).is_err() {
        tokio::task::yield_now().await;
    }
    let none = identity::Identity::from_agent(&socket, None).unwrap_err();
    assert!(none.to_string().contains("has no key"), "{none}");
    for key in &keys {
        assert!(add(key).unwrap().success());
    }
    let many = identity::Identity::from_agent(&socket, None).unwrap_err();
    assert!(many.to_string().contains("3 keys"), "{many}");
    for key in &keys {
        let public = ssh_key::PublicKey::read_openssh_file(&key.with_extension("pub")).unwrap();
        let fingerprint = cratemill_protocol::sshsig::fingerprint(&public);
        let identity = identity::Identity::from_agent(&socket, Some(&fingerprint)).unwrap();
        let signature = identity.sign("test@v1", b"text".to_vec()).await.unwrap();
        cratemill_protocol::sshsig::verify(&public, "test@v1", b"text", &signature).unwrap();
    }
}
