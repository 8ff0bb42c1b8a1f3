//! Tokens for user topics: JSON Web Tokens, signed with HMAC-SHA-256, and checked on any node without state. Pure.
//!
//! ```text
//! {"exp": 1767323045, "sub": "ci", "publish": ["topic.team.>"], "subscribe": ["topic.private.team.deploys"]}
//! ```

use cratemill_protocol::{UserTopic, subjects, user_topic};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, TokenData, Validation};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, Error as _},
};
use std::{fmt, str::FromStr};

/// RFC 7518 wants a key at least as long as the hash.
const MIN_SECRET_BYTES: usize = 32;
/// Room for patterns; more is not looked at.
pub const MAX_TOKEN_BYTES: usize = 4 * 1024;
/// Clocks of who signs and who checks differ by less.
const LEEWAY_S: i64 = 30;

/// What all live nodes share, and whoever makes tokens for them.
#[derive(Clone)]
pub struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl FromStr for Secret {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() < MIN_SECRET_BYTES {
            return Err(format!("expected at least {MIN_SECRET_BYTES} bytes"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// The text of a user topic, where `*` stands for one of its names, and a `>` at the end for one or more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(String);

impl Pattern {
    fn matches(&self, topic: &UserTopic) -> bool {
        subjects::matches(&self.0, topic)
    }
}

impl FromStr for Pattern {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        // With a name for each wildcard it is a topic.
        let last = text.split('.').count() - 1;
        let names = text.split('.').enumerate().map(|(i, name)| match name {
            "*" => "x",
            ">" if i == last => "x",
            name => name,
        });
        let topic: Result<UserTopic, user_topic::Error> = names.collect::<Vec<_>>().join(".").parse();
        let shown: String = text.chars().take(80).collect();
        topic
            .map(|_| Self(text.to_owned()))
            .map_err(|error| format!("no pattern of topics: {shown:?}: {error}"))
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Unix seconds; the token is void from then on.
    #[serde(deserialize_with = "seconds")]
    pub exp: i64,
    /// And before then.
    #[serde(default, deserialize_with = "some_seconds", skip_serializing_if = "Option::is_none")]
    pub nbf: Option<i64>,
    /// Who has it, for people; nothing depends on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<Pattern>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subscribe: Vec<Pattern>,
}

impl Claims {
    pub fn has_expired(&self, now_s: i64) -> bool {
        now_s >= self.exp.saturating_add(LEEWAY_S)
    }

    pub fn may_publish(&self, topic: &UserTopic) -> bool {
        self.publish.iter().any(|pattern| pattern.matches(topic))
    }

    pub fn may_subscribe(&self, topic: &UserTopic) -> bool {
        self.subscribe.iter().any(|pattern| pattern.matches(topic))
    }
}

fn some_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    seconds(deserializer).map(Some)
}

/// Some write them with a fraction.
#[allow(
    clippy::cast_possible_truncation,
    reason = "a cast ends at the ends of the range, which are times too"
)]
fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let number = serde_json::Number::deserialize(deserializer)?;
    let whole = number.as_i64().or_else(|| number.as_f64().map(|seconds| seconds.floor() as i64));
    whole.ok_or_else(|| D::Error::custom("expected Unix seconds"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the token is longer than {MAX_TOKEN_BYTES} bytes")]
    TooLong,
    #[error("not a token of this service")]
    Invalid,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not good yet")]
    Early,
}

/// Makes tokens and checks them.
#[derive(Clone)]
pub struct Signer {
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer(..)")
    }
}

impl Signer {
    pub fn new(Secret(secret): &Secret) -> Self {
        // One algorithm, whatever a token says of itself. Times are checked here, against the caller's clock.
        let mut validation = Validation::new(Algorithm::HS256);
        validation.validate_exp = false;
        validation.required_spec_claims.clear();
        Self {
            encoding: EncodingKey::from_secret(secret.as_bytes()),
            decoding: DecodingKey::from_secret(secret.as_bytes()),
            validation,
        }
    }

    pub fn sign<C: Serialize>(&self, claims: &C) -> String {
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &self.encoding)
            .expect("claims are JSON, and any bytes are a key")
    }

    /// The claims of a token that was signed with this secret, at whatever time they are good.
    pub fn open<C: DeserializeOwned + Clone>(&self, token: &str) -> Result<C, Error> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Error::TooLong);
        }
        let TokenData { header, claims } =
            jsonwebtoken::decode::<C>(token, &self.decoding, &self.validation).map_err(|_| Error::Invalid)?;
        // Whoever does not know what a header calls critical has to refuse it, and we know of nothing.
        if header.crit.is_some() {
            return Err(Error::Invalid);
        }
        Ok(claims)
    }

    /// The claims of a token for user topics that is good at `now` (Unix seconds).
    pub fn verify(&self, token: &str, now: i64) -> Result<Claims, Error> {
        let claims: Claims = self.open(token)?;
        if now >= claims.exp.saturating_add(LEEWAY_S) {
            return Err(Error::Expired);
        }
        if claims.nbf.is_some_and(|nbf| now.saturating_add(LEEWAY_S) < nbf) {
            return Err(Error::Early);
        }
        Ok(claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn signer(secret: &str) -> Signer {
        Signer::new(&secret.parse().unwrap())
    }

    fn patterns(texts: &[&str]) -> Vec<Pattern> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn claims() -> Claims {
        let (publish, subscribe) = (patterns(&["topic.team.>"]), patterns(&["topic.private.a"]));
        Claims { exp: 1_000, nbf: Some(500), sub: Some("ci".into()), publish, subscribe }
    }

    /// A token with any header and claims, signed with `secret` and any HMAC.
    fn forge(header: &Value, claims: &Value, algorithm: Algorithm, secret: &str) -> String {
        let part = |value: &Value| BASE64.encode(value.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let key = EncodingKey::from_secret(secret.as_bytes());
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, algorithm).unwrap();
        format!("{message}.{signature}")
    }

    #[test]
    fn good_in_its_time() {
        let token = signer(SECRET).sign(&claims());
        for (now, expected) in [
            (469, Err(Error::Early)),
            (470, Ok(claims())),
            (1_029, Ok(claims())),
            (1_030, Err(Error::Expired)),
            (i64::MAX, Err(Error::Expired)),
        ] {
            assert_eq!(signer(SECRET).verify(&token, now), expected, "{now}");
        }
        let other = "another 0123456789abcdef01234567";
        assert_eq!(signer(other).verify(&token, 600), Err(Error::Invalid));
    }

    #[test]
    fn golden() {
        // Made by another implementation (Python's hmac), so that others can make them.
        let token = "eyJhbGciOiAiSFMyNTYiLCAidHlwIjogIkpXVCJ9.eyJleHAiOiAxMDAwLCAibmJmIjogNTAwLCAic3ViIjogImNpI\
                     iwgInB1Ymxpc2giOiBbInRvcGljLnRlYW0uPiJdLCAic3Vic2NyaWJlIjogWyJ0b3BpYy5wcml2YXRlLmEiXSwgIml\
                     hdCI6IDF9.H87EK0EQxL5OhCSo8PSXndyR6OZl2QRRaUSLa9Oix0g";
        assert_eq!(signer(SECRET).verify(token, 600), Ok(claims()));
    }

    #[test]
    fn only_our_algorithm_and_claims_as_they_should_be() {
        let good = json!({"alg": "HS256", "typ": "JWT"});
        let verify = |header: &Value, claims: &Value, algorithm| {
            signer(SECRET).verify(&forge(header, claims, algorithm, SECRET), 600)
        };
        assert!(verify(&good, &json!({"exp": 1_000}), Algorithm::HS256).is_ok());
        assert!(
            verify(&json!({"alg": "HS256"}), &json!({"exp": 1e3, "nbf": 499.5}), Algorithm::HS256).is_ok()
        );
        for header in [
            json!({"alg": "none"}),
            json!({"alg": "None"}),
            json!({"alg": "HS384"}),
            json!({"alg": "RS256"}),
            json!({"alg": "ES256"}),
            json!({"alg": ""}),
            json!({"typ": "JWT"}),
            json!({"alg": "HS256", "crit": ["b64"], "b64": false}),
        ] {
            assert_eq!(
                verify(&header, &json!({"exp": 1_000}), Algorithm::HS256),
                Err(Error::Invalid),
                "{header}"
            );
        }
        let other_hash = json!({"alg": "HS512"});
        assert_eq!(verify(&other_hash, &json!({"exp": 1_000}), Algorithm::HS512), Err(Error::Invalid));
        for claims in [
            json!({}),
            json!({"exp": "1000"}),
            json!({"exp": null}),
            json!({"exp": 1_000, "nbf": "1"}),
            json!({"exp": 1_000, "publish": "topic.a"}),
            json!({"exp": 1_000, "publish": ["builds"]}),
            json!({"exp": 1_000, "aud": "somebody else"}),
            json!([]),
        ] {
            assert_eq!(verify(&good, &claims, Algorithm::HS256), Err(Error::Invalid), "{claims}");
        }
        let long = json!({"exp": 1_000, "sub": "x".repeat(MAX_TOKEN_BYTES)});
        assert_eq!(verify(&good, &long, Algorithm::HS256), Err(Error::TooLong));
        // Without its signature, whatever it says.
        let token = signer(SECRET).sign(&claims());
        let (message, _) = token.rsplit_once('.').unwrap();
        for unsigned in [message.to_owned(), format!("{message}."), format!("{message}..")] {
            assert_eq!(signer(SECRET).verify(&unsigned, 600), Err(Error::Invalid));
        }
    }

    #[test]
    fn patterns_are_of_user_topics_and_match_as_subjects_do() {
        for (pattern, topic, expected) in [
            ("topic.a", "topic.a", true),
            ("topic.a", "topic.a.b", false),
            ("topic.>", "topic.private.a", true),
            ("topic.team.>", "topic.team.a.b", true),
            ("topic.team.>", "topic.team", false),
            ("topic.team.>", "topic.teams.a", false),
            ("topic.*.deploys", "topic.team.deploys", true),
            ("topic.*.deploys", "topic.private.team.deploys", false),
        ] {
            let pattern: Pattern = pattern.parse().unwrap();
            assert_eq!(pattern.matches(&topic.parse().unwrap()), expected, "{pattern:?} {topic}");
        }
        for bad in [
            "",
            ">",
            "*",
            "*.>",
            "topic",
            "topic.",
            "topic.>.a",
            "topic.a*",
            "topic.*a",
            "topic.**",
            "event.>",
            "topic.a.>.>",
        ] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_are_long_and_hidden() {
        assert!(SECRET[1..].parse::<Secret>().is_err());
        let secret: Secret = SECRET.parse().unwrap();
        assert_eq!(format!("{secret:?} {:?}", signer(SECRET)), "Secret(..) Signer(..)");
    }

    proptest! {
        #[test]
        fn any_change_voids_it(position in any::<prop::sample::Index>(), byte in 0_u8..128) {
            let token = signer(SECRET).sign(&claims());
            let mut bytes = token.clone().into_bytes();
            let position = position.index(bytes.len());
            prop_assume!(bytes[position] != byte);
            bytes[position] = byte;
            let changed = String::from_utf8(bytes).unwrap();
            prop_assert_eq!(signer(SECRET).verify(&changed, 600), Err(Error::Invalid));
        }

        #[test]
        fn no_text_panics(text in ".{0,300}", near in "[A-Za-z0-9_.-]{0,300}") {
            prop_assert!(signer(SECRET).verify(&text, 0).is_err());
            prop_assert!(signer(SECRET).verify(&near, 0).is_err());
        }
    }
}
