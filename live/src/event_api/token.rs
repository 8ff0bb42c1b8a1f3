//! Tokens of users: HS256, whoever may have made them with the secret. With two secrets the first signs and both are good,
//! so that a secret is changed without logging anybody out.

use super::error::Error;
use crate::auth::{
    self,
    token::{Secret, Signer},
};
use axum::http::HeaderMap;
use cratemill_protocol::UserId;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Names and order are those that clients know.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Claims {
    sub: UserId,
    /// Always empty.
    #[serde(default)]
    company: String,
    /// Unix seconds.
    exp: i64,
}

#[derive(Debug)]
pub(super) struct Tokens {
    signers: Vec<Signer>,
    expiry: Duration,
}

impl Tokens {
    /// The first secret signs.
    pub(super) fn new(secrets: &[Secret], expiry: Duration) -> Self {
        Self { signers: secrets.iter().map(Signer::new).collect(), expiry }
    }

    /// None without a secret, which the configuration does not let happen.
    pub(super) fn issue(&self, user: UserId, now_s: i64) -> Option<String> {
        let expiry_s = i64::try_from(self.expiry.as_secs()).unwrap_or(i64::MAX);
        let claims = Claims { sub: user, company: String::new(), exp: now_s.saturating_add(expiry_s) };
        Some(self.signers.first()?.sign(&claims))
    }

    /// Who asks. That there still is such a user is for the database to say.
    pub(super) fn user(&self, headers: &HeaderMap, now_s: i64) -> Result<UserId, Error> {
        let token = auth::bearer(headers).ok_or(Error::NoToken)?;
        let claims = self.signers.iter().find_map(|signer| signer.open::<Claims>(token).ok());
        claims.filter(|claims| now_s < claims.exp).map(|claims| claims.sub).ok_or(Error::Token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{HeaderValue, header};
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

    const HOUR: Duration = Duration::from_hours(1);

    fn secret(text: &str) -> Secret {
        text.repeat(32).parse().unwrap()
    }

    fn headers(token: &str) -> HeaderMap {
        let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
        HeaderMap::from_iter([(header::AUTHORIZATION, value)])
    }

    #[test]
    fn a_secret_is_changed_without_logging_anybody_out() {
        let user = UserId("6d1f8a3e-7f0f-4b5a-9a3a-0d2f8c5b1e77".parse().unwrap());
        let old = Tokens::new(&[secret("a")], HOUR);
        let both = Tokens::new(&[secret("b"), secret("a")], HOUR);
        let new = Tokens::new(&[secret("b")], HOUR);
        let before = headers(&old.issue(user, 0).unwrap());
        let after = headers(&both.issue(user, 0).unwrap());
        assert_eq!(both.user(&before, 10).unwrap(), user);
        assert_eq!(both.user(&after, 10).unwrap(), user);
        assert_eq!(new.user(&after, 3_599).unwrap(), user);
        assert!(new.user(&after, 3_600).is_err(), "it has expired");
        assert!(new.user(&before, 10).is_err(), "that secret is void");
        assert!(new.user(&HeaderMap::new(), 10).is_err());
    }

    #[test]
    fn claims_golden() {
        let user = UserId("6d1f8a3e-7f0f-4b5a-9a3a-0d2f8c5b1e77".parse().unwrap());
        let token = Tokens::new(&[secret("a")], HOUR).issue(user, 5).unwrap();
        let mut parts =
            token.split('.').map(|part| String::from_utf8(URL_SAFE_NO_PAD.decode(part).unwrap_or_default()));
        assert_eq!(parts.next().unwrap().unwrap(), r#"{"typ":"JWT","alg":"HS256"}"#);
        let claims = r#"{"sub":"6d1f8a3e-7f0f-4b5a-9a3a-0d2f8c5b1e77","company":"","exp":3605}"#;
        assert_eq!(parts.next().unwrap().unwrap(), claims);
    }
}
