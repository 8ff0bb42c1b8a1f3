//! How often somebody may sign up or log in: by address, and by the name that is tried. Each node counts for itself.

use super::error::Error;
use crate::client_address;
use axum::http::{HeaderMap, HeaderName};
use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    state::keyed::HashMapStateStore,
};
use std::{
    hash::{BuildHasher as _, Hash, RandomState},
    net::IpAddr,
    num::NonZeroU32,
    time::Duration,
};

/// At once; people of one office, or one program that sets things up.
const ADDRESS_BURST: NonZeroU32 = NonZeroU32::new(100).unwrap();
/// Beyond that, about what the processors of a small node can hash.
const ADDRESS_EVERY: Duration = Duration::from_millis(500);
/// Somebody who guesses a password has so many tries from one address,
const GUESS_BURST: NonZeroU32 = NonZeroU32::new(20).unwrap();
const GUESS_EVERY: Duration = Duration::from_secs(3);
/// and from all addresses together, so many that nobody keeps the owner of the name out by trying.
const NAME_BURST: NonZeroU32 = NonZeroU32::new(200).unwrap();
const NAME_EVERY: Duration = Duration::from_secs(1);
/// Addresses and names that are remembered, by hashes of a hundred bytes with what is known of each. Of those beyond, as of a flood, none gets in.
const MAX_KEYS: usize = 100_000;

type Limiter<K> = RateLimiter<K, HashMapStateStore<K>, DefaultClock>;

pub(super) struct Limits {
    addresses: Limiter<IpAddr>,
    guesses: Limiter<u64>,
    names: Limiter<u64>,
    /// Nobody outside can tell which names have the same hash.
    hasher: RandomState,
    /// Who is asked for the client's address: the load balancer, in this header.
    header: Option<HeaderName>,
}

impl std::fmt::Debug for Limits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Limits")
    }
}

impl Limits {
    pub(super) fn new(header: Option<HeaderName>) -> Self {
        Self {
            addresses: RateLimiter::hashmap(quota(ADDRESS_EVERY, ADDRESS_BURST)),
            guesses: RateLimiter::hashmap(quota(GUESS_EVERY, GUESS_BURST)),
            names: RateLimiter::hashmap(quota(NAME_EVERY, NAME_BURST)),
            hasher: RandomState::new(),
            header,
        }
    }

    /// Before anything is done for them.
    pub(super) fn address(&self, headers: &HeaderMap, peer: IpAddr) -> Result<(), Error> {
        check(&self.addresses, &self.client(headers, peer))
    }

    /// Once it is known which name they try.
    pub(super) fn name(&self, headers: &HeaderMap, peer: IpAddr, name: &str) -> Result<(), Error> {
        check(&self.guesses, &self.hasher.hash_one((self.client(headers, peer), name)))?;
        check(&self.names, &self.hasher.hash_one(name))
    }

    fn client(&self, headers: &HeaderMap, peer: IpAddr) -> IpAddr {
        client_address::of(headers, self.header.as_ref(), peer)
    }
}

fn quota(every: Duration, burst: NonZeroU32) -> Quota {
    Quota::with_period(every).map_or(Quota::per_second(burst), |quota| quota.allow_burst(burst))
}

fn check<K: Hash + Eq + Clone>(limiter: &Limiter<K>, key: &K) -> Result<(), Error> {
    if limiter.len() > MAX_KEYS {
        limiter.retain_recent();
        limiter.shrink_to_fit();
    }
    if limiter.len() > MAX_KEYS {
        return Err(Error::TooMany(ADDRESS_EVERY));
    }
    limiter.check_key(key).map_err(|until| {
        let wait = until.wait_time_from(DefaultClock::default().now());
        // Whole seconds, and not none.
        Error::TooMany(Duration::from_secs(wait.as_secs() + 1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_address_and_each_name_has_its_burst() {
        let limits = Limits::new(None);
        let try_address = |text| limits.address(&HeaderMap::new(), address(text));
        for _ in 0..ADDRESS_BURST.get() {
            try_address("10.0.0.1").unwrap();
        }
        assert!(matches!(try_address("10.0.0.1"), Err(Error::TooMany(wait)) if wait.as_secs() > 0));
        try_address("10.0.0.2").unwrap();
        let guess = |from: &str, name: &str| limits.name(&HeaderMap::new(), address(from), name);
        for _ in 0..GUESS_BURST.get() {
            guess("10.0.0.1", "a").unwrap();
        }
        assert!(guess("10.0.0.1", "a").is_err());
        guess("10.0.0.2", "a").unwrap();
        guess("10.0.0.1", "b").unwrap();
        let others = (0..=255).map(|n| guess(&format!("10.0.1.{n}"), "a"));
        assert!(others.filter(Result::is_err).count() > 50, "many who try one name are limited too");
    }
}
