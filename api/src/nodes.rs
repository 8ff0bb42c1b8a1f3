//! Messages to API nodes, this one among them. One that is lost is repaired from the database, at a builder's next
//! heartbeat or when its session is looked at, so that a bus that is away fails no request whose change is committed.

use cratemill_protocol::bus::{self, NodeMessage};
use cratemill_service::bus::Bus;

pub(crate) async fn tell(bus: &Bus, subject: String, message: &NodeMessage) {
    if let Err(error) = bus.client.publish(subject.clone(), bus::encode(message).into()).await {
        tracing::warn!(subject, %error, "a message to nodes is lost: they will see it in the database");
    }
}
