//! Whose request it is.

use axum::http::HeaderMap;
use cratemill_service::http::PeerAddr;
use std::net::IpAddr;

/// Who is at the other end: what the nearest proxy says, which adds its word behind what it was told, else the socket.
pub(crate) fn of(headers: &HeaderMap, peer: PeerAddr) -> IpAddr {
    let last = headers.get_all("x-forwarded-for").iter().next_back();
    let told = last.and_then(|value| value.to_str().ok()?.rsplit(',').next()?.trim().parse().ok());
    told.unwrap_or_else(|| peer.0.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_proxys_word_counts() {
        let peer = PeerAddr(([127, 0, 0, 1], 9).into());
        let headers = |value: &str| {
            [("x-forwarded-for".parse().unwrap(), value.parse().unwrap())].into_iter().collect()
        };
        assert_eq!(of(&headers("6.6.6.6, 10.0.0.3"), peer), IpAddr::from([10, 0, 0, 3]));
        assert_eq!(of(&headers("rubbish"), peer), peer.0.ip());
        assert_eq!(of(&HeaderMap::new(), peer), peer.0.ip());
    }
}
