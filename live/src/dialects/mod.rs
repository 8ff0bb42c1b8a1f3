//! What viewers speak. A dialect parses a subscription, says who may have it, and encodes what the engine delivers;
//! it touches neither the bus nor a socket.

pub mod native;
