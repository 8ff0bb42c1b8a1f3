//! What clients ask for, one thing after the other. Publications that follow each other are on their way together.

use super::{
    Cbor, Session, attach, keep, log,
    queue::Group,
    work::{command, follow, hang_up, refuse, unsigned},
};
use crate::{
    dialects::cbor::{Code, Command, Parsed, Refusal},
    engine::{Source, replay::bounds},
    metrics,
    reactor::{Answer, Said, Who},
};
use cratemill_protocol::{SubscriptionId, publication::Nonce, subjects};
use cratemill_service::bus::{Error, Numbered};
use cratemill_store::{
    patience::in_time,
    pubsub::members::{self, Joined, Left},
};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::timeout;
use uuid::Uuid;

/// Subscriptions of one session.
const MAX_SUBSCRIPTIONS: i64 = 1_000;
/// Of them to groups, each of which is a consumer of the bus.
const MAX_GROUPS: i64 = 32;
/// How long the bus may take: longer than it takes to come back after a restart.
const BUS_PATIENCE: Duration = Duration::from_secs(20);
/// Where the stream is.
const ANSWER: Duration = Duration::from_secs(5);
/// Publications of one client that are on their way together.
const TOGETHER: usize = 64;

type Why = (Code, String);

fn no_database(error: &cratemill_store::Error) -> Why {
    tracing::warn!(%error, "a command has no answer of the database");
    (Code::Unavailable, "the database is away, try again".into())
}

pub(super) async fn run(cbor: &Arc<Cbor>, who: Who, session: &Session, messages: Vec<Said>) {
    let mut publications = Vec::new();
    for said in messages {
        let parsed = command(said, cbor.most);
        if let Ok(Parsed { command: Command::SubmitPublication(subscription, data), ids, data: form }) =
            parsed
        {
            note_forms(cbor, who, session, ids, form);
            publications.push((subscription, data));
            if publications.len() >= TOGETHER {
                publish(cbor, who, session, &mut publications).await;
            }
            continue;
        }
        publish(cbor, who, session, &mut publications).await;
        match parsed {
            Ok(Parsed { command, ids, data }) => {
                note_forms(cbor, who, session, ids, data);
                let about = about(&command);
                if let Err((code, message)) = one(cbor, who, session, command).await {
                    refuse(cbor, who, session, code, &message, Some(about));
                }
            }
            Err(Refusal { code, message, about, ids }) => {
                if about.is_some() {
                    note_forms(cbor, who, session, ids, None);
                }
                refuse(cbor, who, session, code, &message, about);
            }
        }
    }
    publish(cbor, who, session, &mut publications).await;
}

/// A client is answered as it writes.
fn note_forms(
    cbor: &Cbor,
    who: Who,
    session: &Session,
    ids: crate::dialects::cbor::IdForm,
    data: Option<crate::dialects::cbor::DataForm>,
) {
    if session.writes(ids, data) {
        cbor.gateway.reactors.answer(who, Answer::Speak(ids));
    }
}

fn about(command: &Command) -> Uuid {
    match command {
        Command::GetLogIndex(id)
        | Command::GetLogEntries(id, _)
        | Command::Subscribe(id)
        | Command::SubscribeQueue(id, _)
        | Command::Unsubscribe(id)
        | Command::SubmitPublication(id, _) => id.0,
        Command::Ack(id) => *id,
    }
}

async fn one(cbor: &Arc<Cbor>, who: Who, session: &Session, command: Command) -> Result<(), Why> {
    match command {
        Command::Subscribe(subscription) => subscribe(cbor, who, session, subscription, "").await,
        Command::SubscribeQueue(subscription, group) => {
            subscribe(cbor, who, session, subscription, &group).await
        }
        Command::Unsubscribe(subscription) => unsubscribe(cbor, who, session, subscription).await,
        Command::GetLogIndex(id) => log::index(cbor, who, session, id).await,
        Command::GetLogEntries(id, entries) => log::entries(cbor, who, session, id, &entries).await,
        Command::Ack(publication) => cbor.queues.ack(cbor, session, publication).await,
        // These go together, before.
        Command::SubmitPublication(..) => Ok(()),
    }
}

async fn subscribe(
    cbor: &Arc<Cbor>,
    who: Who,
    session: &Session,
    subscription: SubscriptionId,
    group: &str,
) -> Result<(), Why> {
    // What was published before is nothing to it, though this node may not have heard of that yet.
    let last = timeout(ANSWER, bounds(&cbor.gateway.bus.jetstream, Source::Pubsub)).await;
    let away = || (Code::Unavailable, "the bus is away, try again".to_owned());
    let now = last.map_err(|_| away())?.map_err(|_| away())?.last;
    let own = (session.id(), session.epoch());
    let joined = async {
        let mut tx = cbor.pool.begin().await?;
        let most = (MAX_SUBSCRIPTIONS, MAX_GROUPS);
        let joined = members::join(&mut tx, own, subscription, group, keep::signed(now), most).await?;
        tx.commit().await?;
        Ok::<_, cratemill_store::Error>(joined)
    };
    session.unsettle();
    match in_time(joined).await {
        // It may be there, and nobody knows: whoever comes back finds out.
        Err(error) => {
            hang_up(cbor, who);
            Err(no_database(&error))
        }
        Ok(Joined::Done { since, group: Some(id) } | Joined::Before { since, group: Some(id) }) => {
            cbor.queues.join(session, who, Group { id, subscription, since: unsigned(since) }).await;
            cbor.gateway.reactors.answer(who, Answer::Settled);
            Ok(())
        }
        // It is followed, since then or since the connection is here.
        Ok(Joined::Before { group: None, .. }) => {
            cbor.gateway.reactors.answer(who, Answer::Settled);
            Ok(())
        }
        Ok(Joined::Done { since, group: None }) => {
            if !follow(cbor, who, session, subscription, unsigned(since)).await {
                hang_up(cbor, who);
                return Ok(());
            }
            cbor.gateway.reactors.answer(who, Answer::Settled);
            Ok(())
        }
        Ok(Joined::TooMany) => {
            cbor.gateway.reactors.answer(who, Answer::Settled);
            Err((
                Code::TooMany,
                format!("at most {MAX_SUBSCRIPTIONS} subscriptions, and {MAX_GROUPS} of groups"),
            ))
        }
        Ok(Joined::Superseded) => {
            attach::hang_up(cbor, session);
            Ok(())
        }
    }
}

async fn unsubscribe(
    cbor: &Arc<Cbor>,
    who: Who,
    session: &Session,
    subscription: SubscriptionId,
) -> Result<(), Why> {
    let left = async {
        let mut tx = cbor.pool.begin().await?;
        let left = members::leave(&mut tx, (session.id(), session.epoch()), subscription).await?;
        tx.commit().await?;
        Ok::<_, cratemill_store::Error>(left)
    };
    // It may be so, and nobody knows: whoever comes back finds out.
    let left = in_time(left).await.map_err(|error| {
        hang_up(cbor, who);
        no_database(&error)
    })?;
    let groups = match left {
        Left::Done(groups) => groups,
        Left::NotThere => return Err((Code::UnknownSubscription, "not subscribed".into())),
        Left::Superseded => {
            attach::hang_up(cbor, session);
            return Ok(());
        }
    };
    cbor.gateway.reactors.answer(who, Answer::Unfollow(subscription));
    cbor.queues.leave(session, subscription);
    for group in groups {
        cbor.queues.remove(group).await;
    }
    Ok(())
}

/// In their order: they go over one connection to the bus, one behind the other.
async fn publish(
    cbor: &Arc<Cbor>,
    who: Who,
    session: &Session,
    publications: &mut Vec<(SubscriptionId, Vec<u8>)>,
) {
    if publications.is_empty() {
        return;
    }
    let mut known = HashMap::new();
    let mut sent = Vec::new();
    for (subscription, data) in publications.drain(..) {
        let exists = match known.get(&subscription) {
            Some(exists) => Ok(*exists),
            None => exists(cbor, subscription).await,
        };
        let why = match exists {
            Ok(exists) => {
                known.insert(subscription, exists);
                (Code::UnknownSubscription, "nobody subscribes to it".to_owned())
            }
            Err(why) => why,
        };
        if known.get(&subscription) == Some(&true) {
            sent.push((subscription, data));
        } else {
            refuse(cbor, who, session, why.0, &why.1, Some(subscription.0));
        }
    }
    let (subscriptions, messages): (Vec<_>, Vec<_>) = sent
        .into_iter()
        .map(|(subscription, data)| {
            let id = Nonce(rand::random()).to_string();
            (subscription, (subjects::publications(subscription), Numbered { id, payload: data.into() }))
        })
        .unzip();
    let stored = cbor.gateway.bus.store_in_order(messages, BUS_PATIENCE).await;
    for (subscription, stored) in subscriptions.into_iter().zip(stored) {
        let (code, message) = match stored {
            Ok(stored) => {
                metrics::published(stored.duplicate);
                continue;
            }
            Err(Error::Refused(why)) => {
                tracing::warn!(%subscription, why, "the bus refused a publication");
                (Code::Unavailable, "there is no room for it")
            }
            Err(Error::Unavailable(why)) => {
                tracing::warn!(%subscription, why, "a publication is not stored");
                (Code::Unavailable, "the bus did not take it in time, try again")
            }
        };
        refuse(cbor, who, session, code, message, Some(subscription.0));
    }
}

async fn exists(cbor: &Cbor, subscription: SubscriptionId) -> Result<bool, Why> {
    let exists = async { members::exists(&mut *cbor.pool.acquire().await?, subscription).await };
    in_time(exists).await.map_err(|error| no_database(&error))
}
