//! Where a client is, as far as whoever counts its requests needs to know.

use axum::http::{HeaderMap, HeaderName};
use std::net::{IpAddr, Ipv6Addr};

/// What the load balancer writes into `header`, if there is one; without it the address is the peer's.
pub fn of(headers: &HeaderMap, header: Option<&HeaderName>, peer: IpAddr) -> IpAddr {
    let claimed = header.and_then(|name| last_address(headers, name));
    network(claimed.unwrap_or(peer))
}

/// What the nearest proxy has written down: it comes last, and what is before it anybody may have made up.
fn last_address(headers: &HeaderMap, name: &HeaderName) -> Option<IpAddr> {
    let last = headers.get_all(name).iter().next_back()?.to_str().ok()?;
    last.rsplit(',').next()?.trim().parse().ok()
}

/// Somebody who has one address of IPv6 has all of its network.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        },
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_what_the_nearest_proxy_says() {
        let name = HeaderName::from_static("x-forwarded-for");
        for (values, expected) in [
            (vec![], None),
            (vec!["10.0.0.1"], Some("10.0.0.1")),
            (vec!["1.2.3.4, 10.0.0.1"], Some("10.0.0.1")),
            (vec!["10.0.0.1", "::1"], Some("::1")),
            (vec!["10.0.0.1", "x"], None),
        ] {
            let mut headers = HeaderMap::new();
            for value in &values {
                headers.append(name.clone(), value.parse().unwrap());
            }
            assert_eq!(last_address(&headers, &name), expected.map(address), "{values:?}");
        }
        assert_eq!(network(address("2001:db8:1:2:3:4:5:6")), address("2001:db8:1:2::"));
        assert_eq!(network(address("::ffff:10.0.0.1")), address("10.0.0.1"));
    }
}
