//! One batch of messages: decoded, applied in one transaction, acknowledged.

use crate::metrics;
use async_nats::jetstream::{AckKind, Message};
use cratemill_protocol::bus::{self, DownloadBatch};
use cratemill_store::{PgPool, database, downloads};
use futures_util::future::join_all;
use tokio::time::Instant;

/// Times that the database refuses a message's data, alone, before it is given up.
const MAX_REFUSED: i64 = 5;

/// Applies and acknowledges what can be; an error means that nothing was, and that all of it comes again.
pub async fn settle(pool: &PgPool, messages: Vec<Message>) -> Result<(), cratemill_store::Error> {
    let (messages, batches) = decode(messages).await;
    if batches.is_empty() {
        return Ok(());
    }
    match apply(pool, &batches).await {
        Ok(()) => {
            acknowledge(&messages).await;
            Ok(())
        }
        // One bad message must not keep the others from being counted: each stands for itself.
        Err(error) if database::is_permanent(&error) => one_by_one(pool, messages, batches).await,
        Err(error) => {
            // Now rather than after the acknowledgement deadline.
            join_all(messages.iter().map(|message| message.ack_with(AckKind::Nak(None)))).await;
            Err(error)
        }
    }
}

/// Poison is terminated at once: it would come again for ever.
async fn decode(messages: Vec<Message>) -> (Vec<Message>, Vec<DownloadBatch>) {
    let mut good = (Vec::with_capacity(messages.len()), Vec::with_capacity(messages.len()));
    for message in messages {
        match bus::decode::<DownloadBatch>(&message.payload) {
            Ok(batch) => {
                good.0.push(message);
                good.1.push(batch);
            }
            Err(error) => terminate(&message, &error.to_string()).await,
        }
    }
    good
}

async fn apply(pool: &PgPool, batches: &[DownloadBatch]) -> Result<(), cratemill_store::Error> {
    let started = Instant::now();
    let mut tx = pool.begin().await?;
    let counted = downloads::apply(&mut tx, batches).await?;
    tx.commit().await?;
    metrics::applied_in(started.elapsed().as_secs_f64());
    metrics::batches("applied", batches.len());
    metrics::counted(counted);
    tracing::debug!(batches = batches.len(), counted, "counted");
    Ok(())
}

/// An acknowledgement that is lost means that the message comes again, which changes nothing.
async fn acknowledge(messages: &[Message]) {
    let acks = join_all(messages.iter().map(Message::double_ack)).await;
    let lost = acks.iter().filter(|ack| ack.is_err()).count();
    if lost > 0 {
        tracing::warn!(lost, "batches could not be acknowledged: they come again");
    }
}

async fn one_by_one(
    pool: &PgPool,
    messages: Vec<Message>,
    batches: Vec<DownloadBatch>,
) -> Result<(), cratemill_store::Error> {
    for (message, batch) in messages.iter().zip(batches) {
        match apply(pool, std::slice::from_ref(&batch)).await {
            Ok(()) => acknowledge(std::slice::from_ref(message)).await,
            Err(error) if database::is_permanent(&error) && deliveries(message) >= MAX_REFUSED => {
                terminate(message, &error.to_string()).await;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn deliveries(message: &Message) -> i64 {
    message.info().map_or(1, |info| info.delivered)
}

async fn terminate(message: &Message, why: &str) {
    tracing::error!(subject = %message.subject, why, "a download batch cannot be counted: dropped");
    metrics::batches("poison", 1);
    if let Err(error) = message.ack_with(AckKind::Term).await {
        tracing::debug!(%error, "it comes again");
    }
}
