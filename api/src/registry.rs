//! Asking the dispatchers to look at the registry now: they alone know it.

use async_nats::{RequestErrorKind, connection::State};
use cratemill_protocol::{
    CrateName,
    bus::{self, RefreshReply, RefreshRequest},
    subjects,
};
use cratemill_service::bus::Bus;
use std::time::Duration;

/// A registry answers within a second or is in trouble; a person waits for this answer.
const TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) enum Refresh {
    /// The database says what the registry says.
    Done,
    NotFound,
    /// Why, for the one who asked.
    Unavailable(&'static str),
}

pub(crate) async fn refresh(bus: &Bus, name: &CrateName) -> Refresh {
    // Without a connection the request would wait in a buffer for all of its time.
    if bus.client.connection_state() != State::Connected {
        return Refresh::Unavailable("the bus is away, the registry cannot be asked now");
    }
    let request = bus::encode(&RefreshRequest { krate: name.clone() });
    let sent = bus.client.request(subjects::REGISTRY_REFRESH, request.into());
    match tokio::time::timeout(TIMEOUT, sent).await {
        Ok(Ok(reply)) => read(&reply.payload, name),
        Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => {
            Refresh::Unavailable("no dispatcher runs, the registry cannot be asked now")
        }
        Ok(Err(error)) => {
            tracing::warn!(krate = %name, %error, "no answer from a dispatcher");
            Refresh::Unavailable("the dispatcher did not answer, try again")
        }
        Err(_) => Refresh::Unavailable("the dispatcher did not answer in time, try again"),
    }
}

fn read(payload: &[u8], name: &CrateName) -> Refresh {
    match bus::decode(payload) {
        Ok(RefreshReply::Fresh) => Refresh::Done,
        Ok(RefreshReply::NotFound) => Refresh::NotFound,
        Ok(RefreshReply::Unavailable { message }) => {
            tracing::warn!(krate = %name, why = message, "the registry could not be asked");
            Refresh::Unavailable("the registry could not be asked, try again")
        }
        Err(error) => {
            tracing::error!(krate = %name, %error, "a dispatcher's answer is not one");
            Refresh::Unavailable("the dispatcher's answer was not understood")
        }
    }
}
