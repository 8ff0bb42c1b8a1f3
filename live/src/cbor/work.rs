//! What clients say is done here, of each one after the other.

use super::{Cbor, Session, commands, keep, queue::Group};
use crate::{
    dialects::cbor::{self, Code},
    engine::channel::Mark,
    place::{self, Found, Place},
    reactor::{Answer, Order, Said, Todo, Who},
    ws::frames::{self, TRY_AGAIN},
};
use bytes::{Bytes, BytesMut};
use cratemill_protocol::{SubscriptionId, topic::Topic};
use cratemill_store::{
    patience::in_time,
    pubsub::{Membership, sessions},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, mpsc},
    time::sleep,
};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// Clients that something is done for at once; the others wait for their turn.
const AT_ONCE: usize = 512;
/// Until the past of a subscription can be read.
const AGAIN: Duration = Duration::from_millis(200);

/// Until no reactor is left: also what was said last is done, and who has gone is noted.
pub(super) async fn run(cbor: Arc<Cbor>, mut orders: mpsc::UnboundedReceiver<Order>) {
    let (places, tasks) = (Arc::new(Semaphore::new(AT_ONCE)), TaskTracker::new());
    while let Some(Order { who, session, what }) = orders.recv().await {
        let (cbor, places) = (Arc::clone(&cbor), Arc::clone(&places));
        tasks.spawn(async move {
            let Ok(_place) = places.acquire().await else { return };
            done(&cbor, who, session, what).await;
        });
    }
    tasks.close();
    tasks.wait().await;
}

async fn done(cbor: &Arc<Cbor>, who: Who, session: Session, what: Todo) {
    match what {
        Todo::Open => open(cbor, who, &session).await,
        Todo::Messages(messages) => {
            commands::run(cbor, who, &session, messages).await;
        }
        Todo::Closed => return keep::detach(cbor, &session).await,
    }
    cbor.gateway.reactors.answer(who, Answer::Done);
}

/// Goes on with what the session is subscribed to.
async fn open(cbor: &Arc<Cbor>, who: Who, session: &Session) {
    if !session.arrive(who) {
        return super::attach::hang_up(cbor, session);
    }
    let confirmed = session.confirmed();
    let members = async { sessions::memberships(&mut *cbor.pool.acquire().await?, session.id()).await };
    let members = match in_time(members).await {
        Ok(members) => members,
        Err(error) => {
            tracing::warn!(session = %session.id(), %error, "no subscriptions without the database");
            return hang_up(cbor, who);
        }
    };
    for Membership { subscription, since, group_id, .. } in members {
        if let Some(id) = group_id {
            cbor.queues.join(session, who, Group { id, subscription, since: unsigned(since) }).await;
        } else if !follow(cbor, who, session, subscription, confirmed.max(unsigned(since))).await {
            return hang_up(cbor, who);
        }
    }
    cbor.gateway.reactors.answer(who, Answer::Settled);
}

pub(super) fn unsigned(sequence: i64) -> u64 {
    u64::try_from(sequence).unwrap_or(0)
}

/// It comes back, and has all that it missed then.
pub(super) fn hang_up(cbor: &Cbor, who: Who) {
    let answer = Answer::HangUp { code: TRY_AGAIN, reason: "its subscriptions cannot be read, try again" };
    cbor.gateway.reactors.answer(who, answer);
}

/// From a message of the stream on it gets everything. False if that cannot be: it comes back, and it is tried again.
pub(super) async fn follow(
    cbor: &Arc<Cbor>,
    who: Who,
    session: &Session,
    subscription: SubscriptionId,
    mut seen: u64,
) -> bool {
    let topics: Arc<[Topic]> = [Topic::Publications(subscription)].into();
    for _ in 0..8 {
        let mark = Mark { pubsub: seen, ..Mark::default() };
        match place::find(&cbor.gateway, &topics, Some(mark), who.reactor()).await {
            Found::Place(Place { member, cursor, .. }) => {
                cbor.gateway.reactors.answer(who, Answer::Follow { member, cursor });
                return true;
            }
            Found::None => match super::log::issues(cbor, who, session, subscription, seen).await {
                Some(reached) => seen = reached,
                None => return false,
            },
            // The stream was lost: all that is there came after.
            Found::Unknown => seen = 0,
            Found::NotYet => sleep(AGAIN).await,
        }
    }
    false
}

/// Whole messages for the client.
pub(super) fn push(cbor: &Cbor, who: Who, message: &[u8]) {
    cbor.gateway.reactors.answer(who, Answer::Push(framed(message)));
}

pub(super) fn framed(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(message.len() + 10);
    frames::put_binary(message, &mut out);
    out.freeze()
}

pub(super) fn refuse(
    cbor: &Cbor,
    who: Who,
    session: &Session,
    code: Code,
    message: &str,
    about: Option<Uuid>,
) {
    let (ids, _) = session.forms();
    push(cbor, who, &cbor::error(code, message, about, ids));
}

/// What is said in one message of a client.
pub(super) fn command(said: Said, most: usize) -> Result<cbor::Parsed, cbor::Refusal> {
    let refusal = |code, message: String| {
        Err(cbor::Refusal { code, message, about: None, ids: cbor::IdForm::default() })
    };
    match said {
        Said::Command(bytes) => cbor::parse(&bytes, most),
        Said::Text => refusal(Code::Text, "Text messages not implemented".into()),
        Said::TooBig => refusal(Code::TooLarge, format!("at most {most} bytes of data")),
    }
}
