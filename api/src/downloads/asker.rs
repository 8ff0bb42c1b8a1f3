//! Who asks for a download, as far as its count depends on it.

use crate::address;
use axum::http::{HeaderMap, HeaderValue, header};
use cratemill_protocol::{bus::ClientClass, token::Signer};
use cratemill_service::http::PeerAddr;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    pub(super) client: ClientClass,
    /// Of clients that ask twice for what they have once, so that the counters recognise the second time.
    pub(super) who: Option<i64>,
}

impl Asker {
    pub fn of(headers: &HeaderMap, peer: PeerAddr, signer: &Signer) -> Self {
        let agent = headers.get(header::USER_AGENT).map(HeaderValue::as_bytes).unwrap_or_default();
        let client = ClientClass::of_user_agent(agent);
        let who = client.asks_twice().then(|| signer.pseudonym(address::of(headers, peer)));
        Self { client, who }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_asks_twice_is_recognised() {
        let signer = Signer::new(b"secret");
        let of = |agent: &str, from: &str| {
            let headers = [(header::USER_AGENT, agent.parse().unwrap())].into_iter().collect();
            Asker::of(&headers, PeerAddr(from.parse().unwrap()), &signer)
        };
        let (first, second) =
            (of("cargo-binstall/1.17", "10.0.0.1:1"), of("cargo-binstall/1.17", "10.0.0.1:2"));
        assert_eq!(first, second);
        assert_ne!(first, of("cargo-binstall/1.17", "10.0.0.2:1"));
        assert_eq!(of("curl/8", "10.0.0.1:1"), Asker { client: ClientClass::Curl, who: None });
    }
}
