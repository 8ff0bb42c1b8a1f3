//! Messages to API nodes, this one among them. Leases repair one that is lost, so that a bus that is away fails no
//! request whose change is committed already.

use cratemill_protocol::bus::{self, NodeMessage};
use cratemill_service::bus::Bus;

pub(crate) async fn tell(bus: &Bus, subject: String, message: &NodeMessage) {
    if let Err(error) = bus.client.publish(subject.clone(), bus::encode(message).into()).await {
        tracing::warn!(subject, %error, "a message to nodes is lost, its lease will end it");
    }
}
