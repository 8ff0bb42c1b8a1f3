//! Ports on loopback that no other stack of this machine takes.
//!
//! A port must stay ours while the program on it restarts. So it lies below the range from which the kernel takes ports
//! of outgoing connections, and it is reserved among stacks by a socket with a name but no file: the kernel gives it
//! back when this process ends, in whatever way.

use anyhow::{Result, bail};
use rand::Rng;
use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixAddr, UnixListener},
    },
};

/// Below Linux' ephemeral range (32768 and up), above what well-known servers use.
const RANGE: std::ops::Range<u16> = 20_000..32_000;
/// With a thousand ports of the range taken, this many tries fail once in 10^53.
const TRIES: usize = 50;

#[derive(Debug)]
pub struct Port {
    number: u16,
    _reservation: UnixListener,
}

impl Port {
    pub fn reserve() -> Result<Self> {
        for _ in 0..TRIES {
            if let Some(port) = Self::try_reserve(rand::rng().random_range(RANGE)) {
                return Ok(port);
            }
        }
        bail!("no free port between {} and {} after {TRIES} tries", RANGE.start, RANGE.end);
    }

    fn try_reserve(number: u16) -> Option<Self> {
        let name = UnixAddr::from_abstract_name(format!("cratemill-stack-port-{number}")).ok()?;
        let reservation = UnixListener::bind_addr(&name).ok()?;
        // The port itself may be somebody's who knows nothing of stacks.
        TcpListener::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
        Some(Self { number, _reservation: reservation })
    }

    pub fn number(&self) -> u16 {
        self.number
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.number).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserved_port_is_nobody_elses_until_it_is_dropped() {
        let port = Port::reserve().unwrap();
        let number = port.number();
        assert!(Port::try_reserve(number).is_none());
        drop(port);
        let port = Port::try_reserve(number).expect("free again");
        drop(port);
        let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, number)).unwrap();
        assert!(Port::try_reserve(number).is_none());
    }
}
