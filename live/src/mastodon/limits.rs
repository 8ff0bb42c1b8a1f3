//! How many connections one token or one address may have at once, where the operator sets a bound. Each node counts for
//! itself.

use super::config::Flags;
use crate::{
    client_address,
    dialects::mastodon::{channel::TokenId, request::Error},
};
use axum::http::{HeaderMap, HeaderName};
use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

#[derive(Debug)]
pub(super) struct Limits {
    most: Most,
    /// Who is asked for the client's address: the load balancer, in this header.
    header: Option<HeaderName>,
    tokens: Mutex<HashMap<TokenId, u32>>,
    addresses: Mutex<HashMap<IpAddr, u32>>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Most {
    token: Option<u32>,
    address: Option<u32>,
}

impl From<Flags> for Most {
    fn from(flags: Flags) -> Self {
        Self { token: flags.max_connections_per_token, address: flags.max_connections_per_address }
    }
}

/// The place of a connection among those of its token and its address; dropping it gives it back.
#[derive(Debug)]
pub struct Guard {
    limits: Arc<Limits>,
    token: Option<TokenId>,
    address: Option<IpAddr>,
}

impl Limits {
    pub(super) fn new(most: Most, header: Option<HeaderName>) -> Arc<Self> {
        Arc::new(Self { most, header, tokens: Mutex::default(), addresses: Mutex::default() })
    }

    /// Nothing to keep where there are no bounds.
    pub(super) fn admit(
        self: &Arc<Self>,
        token: TokenId,
        headers: &HeaderMap,
        peer: Option<IpAddr>,
    ) -> Result<Option<Guard>, Error> {
        if self.most.token.is_none() && self.most.address.is_none() {
            return Ok(None);
        }
        let mut guard = Guard { limits: Arc::clone(self), token: None, address: None };
        if let Some(most) = self.most.token {
            one_more(&self.tokens, token, most)?;
            guard.token = Some(token);
        }
        let address = peer.map(|peer| client_address::of(headers, self.header.as_ref(), peer));
        if let (Some(most), Some(address)) = (self.most.address, address) {
            one_more(&self.addresses, address, most)?;
            guard.address = Some(address);
        }
        Ok(Some(guard))
    }
}

fn one_more<K: Hash + Eq>(counts: &Mutex<HashMap<K, u32>>, key: K, most: u32) -> Result<(), Error> {
    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    let count = counts.get(&key).copied().unwrap_or(0);
    if count >= most {
        return Err(Error::TooManyConnections);
    }
    counts.insert(key, count + 1);
    Ok(())
}

fn one_less<K: Hash + Eq>(counts: &Mutex<HashMap<K, u32>>, key: &K) {
    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.token.iter().for_each(|token| one_less(&self.limits.tokens, token));
        self.address.iter().for_each(|address| one_less(&self.limits.addresses, address));
    }
}
