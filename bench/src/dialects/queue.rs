//! A group at two nodes: each publication to one of its members, which acknowledges it.

use super::farm::Farm;
use crate::statistics::{count, hundredths, median};
use anyhow::{Context, Result, bail};
use futures_util::{SinkExt as _, StreamExt as _, stream::SplitSink, stream::SplitStream};
use serde_json::{Value, json};
use std::{net::SocketAddr, time::Instant};
use tokio::{net::TcpStream, sync::mpsc, task::JoinSet};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Bytes, Message},
};

const MEMBERS: usize = 4;
const PUBLICATIONS: usize = 20_000;
const DATA: [u8; 100] = [7; 100];

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A command with one id, and what follows it: ids are written as byte strings.
fn command(name: &str, field: &str, id: u128, fields: usize) -> Vec<u8> {
    let mut out = vec![0xa1];
    put_text(name, &mut out);
    out.push(0xa0 + u8::try_from(fields).unwrap_or(1));
    put_text(field, &mut out);
    out.push(0x50);
    out.extend_from_slice(&id.to_be_bytes());
    out
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    // No text here is longer.
    out.push(0x60 + u8::try_from(text.len().min(23)).unwrap_or(0));
    out.extend_from_slice(text.as_bytes());
}

pub(super) fn subscribe(id: u128) -> Vec<u8> {
    command("Subscribe", "subscription_id", id, 1)
}

fn subscribe_queue(id: u128) -> Vec<u8> {
    let mut out = command("SubscribeQueue", "subscription_id", id, 2);
    put_text("group", &mut out);
    put_text("workers", &mut out);
    out
}

pub(super) fn publication(id: u128) -> Vec<u8> {
    let mut out = command("SubmitPublication", "subscription_id", id, 2);
    put_text("submission", &mut out);
    out.extend_from_slice(&[0x58, 100]);
    out.extend_from_slice(&DATA);
    out
}

/// The publication of an Issue: its last sixteen bytes.
pub(super) fn issued(message: &[u8]) -> Option<u128> {
    let id = message.strip_prefix(b"\xa1\x65Issue\x82\x50")?.get(17..33)?;
    id.try_into().ok().map(u128::from_be_bytes)
}

pub(super) async fn connect(address: SocketAddr) -> Result<Socket> {
    let (a, b) = (rand::random::<u64>(), rand::random::<u64>());
    let id = format!(
        "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
        a >> 32,
        (a >> 16) & 0xffff,
        a & 0xfff,
        (b >> 48) & 0xfff,
        b & 0xffff_ffff_ffff
    );
    Ok(connect_async(format!("ws://{address}/ws/{id}")).await?.0)
}

pub(super) async fn measure(runs: usize) -> Result<Value> {
    let (mut rates, mut cpus) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let farm = Farm::start(2).await?;
        let (rate, cpu_us) = one(&farm).await?;
        println!(
            "  {rate:.0} publications/s delivered and acknowledged, {cpu_us:.0} us of CPU each but the clients'"
        );
        rates.push(rate);
        cpus.push(cpu_us);
        farm.stop().await?;
    }
    Ok(json!({
        "queue_members": MEMBERS,
        "queue_per_s": hundredths(median(rates)),
        "queue_cpu_us_each": hundredths(median(cpus)),
    }))
}

async fn one(farm: &Farm) -> Result<(f64, f64)> {
    let queue = rand::random();
    let (done, mut dones) = mpsc::unbounded_channel();
    let mut members = JoinSet::new();
    for number in 0..MEMBERS {
        let mut socket = connect(farm.address(number)?).await?;
        socket.send(Message::binary(subscribe_queue(queue))).await?;
        settle(&mut socket).await?;
        let (sink, stream) = socket.split();
        members.spawn(work(sink, stream, done.clone()));
    }
    let mut publisher = connect(farm.address(0)?).await?;
    let before = farm.cpu()? + farm.other_cpu()?;
    let began = Instant::now();
    let publish = async {
        for _ in 0..PUBLICATIONS {
            publisher.feed(Message::binary(publication(queue))).await?;
        }
        publisher.flush().await?;
        anyhow::Ok(())
    };
    let finish = async {
        for _ in 0..PUBLICATIONS {
            dones.recv().await.context("the members have ended")?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        result = async { tokio::try_join!(publish, finish) } => drop(result?),
        Some(ended) = members.join_next() => bail!("a member has ended: {ended:?}"),
    }
    let took = began.elapsed();
    let cpu = (farm.cpu()? + farm.other_cpu()?).saturating_sub(before);
    Ok((count(PUBLICATIONS) / took.as_secs_f64(), cpu.as_secs_f64() * 1e6 / count(PUBLICATIONS)))
}

/// Whatever was said before is done when this is answered.
pub(super) async fn settle(socket: &mut Socket) -> Result<()> {
    socket.send(Message::binary(command("GetLogIndex", "log_id", rand::random(), 1))).await?;
    loop {
        match socket.next().await.context("the connection ended")?? {
            Message::Binary(bytes) if bytes.starts_with(b"\xa1\x65Error") => return Ok(()),
            Message::Binary(_) | Message::Ping(_) => {}
            other => bail!("{other:?}"),
        }
    }
}

async fn work(
    mut sink: SplitSink<Socket, Message>,
    mut stream: SplitStream<Socket>,
    done: mpsc::UnboundedSender<()>,
) -> Result<()> {
    while let Some(message) = stream.next().await {
        let Message::Binary(bytes) = message? else { continue };
        let Some(publication) = issued(&bytes) else { bail!("{bytes:?}") };
        let ack = command("Ack", "publication_id", publication, 1);
        sink.send(Message::Binary(Bytes::from(ack))).await?;
        if done.send(()).is_err() {
            break;
        }
    }
    Ok(())
}
