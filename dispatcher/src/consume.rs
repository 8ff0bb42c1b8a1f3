//! Work that many processes take from one durable consumer: taken with a bound, acknowledged when it is done.

use async_nats::jetstream::{AckKind, Message, consumer::pull};
use cratemill_service::{
    bus::Bus,
    outage::{Outage, pause},
    streams,
};
use futures_util::{FutureExt, StreamExt, future::ready};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// One pull at most, so that one that got lost is soon made again.
const PULL: Duration = Duration::from_secs(15);
/// A bus that says nothing for twice as long has forgotten the pull.
const HEARTBEAT: Duration = Duration::from_secs(3);

/// A durable consumer of a stream, and how it is worked off.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    pub stream: &'static str,
    pub consumer: &'static str,
    pub filter: &'static str,
    /// A message whose handling takes longer is handed out again.
    pub ack_wait: Duration,
    /// Messages handled at once.
    pub concurrency: usize,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handled {
    /// All that follows from it is committed.
    Done,
    /// Something that it needs is away: hand it out again after this.
    Later(Duration),
    /// It can never be handled; why is in the log.
    Poison,
}

/// Handles messages until the process drains; those in hand are finished first.
pub async fn run<F, Fut>(bus: Bus, work: Work, shutdown: CancellationToken, handle: F) -> anyhow::Result<()>
where
    F: Fn(Message) -> Fut,
    Fut: Future<Output = (Message, Handled)>,
{
    let mut outage = Outage::new(work.consumer);
    while !shutdown.is_cancelled() {
        let Some(consumer) =
            streams::shared_consumer(&bus, work.stream, work.consumer, work.filter, work.ack_wait, &shutdown)
                .await
        else {
            return Ok(());
        };
        let stream = consumer
            .stream()
            .max_messages_per_batch(work.concurrency)
            .heartbeat(HEARTBEAT)
            .expires(PULL)
            .messages()
            .await;
        let failure = match stream {
            Ok(mut messages) => {
                outage.over();
                let mut failure = None;
                let failed = &mut failure;
                // Ends at the first error instead of dropping what is in hand, and is made anew.
                let good = (&mut messages).take_until(shutdown.cancelled()).scan((), move |(), message| {
                    ready(message.map_err(|error| *failed = Some(error.to_string())).ok())
                });
                good.for_each_concurrent(work.concurrency, async |message| {
                    settle(handle(message).await).await;
                })
                .await;
                hand_back(messages).await;
                failure
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = failure {
            pause(outage.failed(error), &shutdown).await;
        }
    }
    Ok(())
}

/// Messages that were taken and not begun: another process gets them now, and not after their deadline.
async fn hand_back(mut messages: pull::Stream) {
    while let Some(Some(Ok(message))) = messages.next().now_or_never() {
        settle((message, Handled::Later(Duration::ZERO))).await;
    }
}

/// An acknowledgement that is lost means that the message comes again, which changes nothing.
async fn settle((message, handled): (Message, Handled)) {
    let result = match handled {
        Handled::Done => message.double_ack().await,
        Handled::Later(wait) => message.ack_with(AckKind::Nak(Some(wait))).await,
        Handled::Poison => message.ack_with(AckKind::Term).await,
    };
    if let Err(error) = result {
        tracing::debug!(subject = %message.subject, %error, "a message could not be acknowledged: it comes again");
    }
}

/// How often the bus has handed a message out, this time included.
pub fn deliveries(message: &Message) -> i64 {
    message.info().map_or(1, |info| info.delivered)
}
