//! Job tokens: scoped to one job, attempt and purpose, signed, and checked on any node without state.
//!
//! `ctj1.<claims, base64url>.<HMAC-SHA256, base64url>`; the claims are MessagePack.

use crate::{Attempt, JobId};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::{fmt, net::IpAddr};

const PREFIX: &str = "ctj1.";
/// Keeps pseudonyms apart from tokens under the same secret.
const PSEUDONYM_PREFIX: &str = "ctp1.";

/// The text of a token: a secret, so it does not show in debug output.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Fetch the source and put artifacts: what a builder needs for its attempt.
    Build,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub job: JobId,
    pub attempt: Attempt,
    pub purpose: Purpose,
    /// Unix seconds; the token is void from then on.
    pub expires: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("not a job token of this service")]
    Invalid,
    #[error("the job token has expired")]
    Expired,
    #[error("the job token is for something else")]
    WrongScope,
}

/// The secret that all API nodes share.
#[derive(Clone)]
pub struct Signer(Hmac<Sha256>);

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer(..)")
    }
}

impl Signer {
    pub fn new(secret: &[u8]) -> Self {
        Self(Hmac::new_from_slice(secret).expect("HMAC takes a key of any length"))
    }

    pub fn sign(&self, claims: &Claims) -> Token {
        let claims = BASE64.encode(crate::codec::Encoding::MsgPack.encode(claims));
        let mac = self.mac(&claims).finalize().into_bytes();
        Token(format!("{PREFIX}{claims}.{}", BASE64.encode(mac)))
    }

    /// The claims of a token that this service signed and that is good at `now` (Unix seconds).
    pub fn verify(&self, token: &str, now: i64) -> Result<Claims, Error> {
        let (claims, mac) =
            token.strip_prefix(PREFIX).and_then(|rest| rest.split_once('.')).ok_or(Error::Invalid)?;
        let mac = BASE64.decode(mac).map_err(|_| Error::Invalid)?;
        self.mac(claims).verify_slice(&mac).map_err(|_| Error::Invalid)?;
        let bytes = BASE64.decode(claims).map_err(|_| Error::Invalid)?;
        let claims: Claims = crate::codec::Encoding::MsgPack.decode(&bytes).map_err(|_| Error::Invalid)?;
        if now >= claims.expires { Err(Error::Expired) } else { Ok(claims) }
    }

    /// Stands for an address where two requests of one client are to be recognised, and tells nobody which it is. Of an
    /// IPv6 address only the network counts: its host changes the rest as it likes.
    pub fn pseudonym(&self, address: IpAddr) -> i64 {
        let mut mac = self.0.clone();
        mac.update(PSEUDONYM_PREFIX.as_bytes());
        match address.to_canonical() {
            IpAddr::V4(address) => mac.update(&address.octets()),
            IpAddr::V6(address) => mac.update(&address.octets()[..8]),
        }
        let mac: [u8; 32] = mac.finalize().into_bytes().into();
        let first = mac.first_chunk().expect("a SHA-256 is longer");
        i64::from_be_bytes(*first)
    }

    fn mac(&self, claims: &str) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(PREFIX.as_bytes());
        mac.update(claims.as_bytes());
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pseudonym_is_of_one_network_and_one_secret() {
        let of = |secret: &[u8], address: &str| Signer::new(secret).pseudonym(address.parse().unwrap());
        assert_eq!(of(b"a", "192.0.2.1"), of(b"a", "::ffff:192.0.2.1"));
        assert_eq!(of(b"a", "2001:db8::1"), of(b"a", "2001:db8::2"));
        for other in ["192.0.2.2", "2001:db8:0:1::1"] {
            assert_ne!(of(b"a", "192.0.2.1"), of(b"a", other));
        }
        assert_ne!(of(b"a", "192.0.2.1"), of(b"b", "192.0.2.1"));
    }
    use proptest::prelude::*;

    fn claims() -> Claims {
        Claims { job: JobId(7), attempt: Attempt(2), purpose: Purpose::Build, expires: 1_000 }
    }

    #[test]
    fn good_until_its_second() {
        let signer = Signer::new(b"secret");
        let token = signer.sign(&claims());
        assert_eq!(signer.verify(token.secret(), 999), Ok(claims()));
        assert_eq!(signer.verify(token.secret(), 1_000), Err(Error::Expired));
        assert_eq!(Signer::new(b"other").verify(token.secret(), 0), Err(Error::Invalid));
        assert_eq!(format!("{token:?}"), "Token(..)");
    }

    proptest! {
        #[test]
        fn any_change_voids_it(position in 0_usize..200, byte in 0_u8..128) {
            let signer = Signer::new(b"secret");
            let token = signer.sign(&claims());
            let mut bytes = token.secret().as_bytes().to_vec();
            let position = position % bytes.len();
            prop_assume!(bytes[position] != byte);
            bytes[position] = byte;
            let changed = String::from_utf8(bytes).unwrap();
            prop_assert_eq!(signer.verify(&changed, 0), Err(Error::Invalid));
        }

        #[test]
        fn no_text_panics(text in ".{0,300}") {
            prop_assert!(Signer::new(b"secret").verify(&text, 0).is_err());
        }
    }
}
